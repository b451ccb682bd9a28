"""The benchmark measures what the commands run, and its arithmetic is the published one."""

import json
import subprocess
import sys
from typing import get_args

import jax
import pytest

from segmenter_jax.benchmark import flops
from segmenter_jax.benchmark.cli import main
from segmenter_jax.benchmark.report import read_result, table
from segmenter_jax.benchmark.subjects import SUBJECTS
from segmenter_jax.data.builders import Shapes
from segmenter_jax.models import SegmenterConfig
from segmenter_jax.models.choices import Decoder
from tests.tiny import tiny_network

TINY = [
    *("--width=64", "--depth=1", "--num_heads=2", "--size=32", "--batch_size=2", "--classes=3"),
    *("--decoder=linear", "--steps=2", "--warmup=1", "--devices=1", "--peak_tflops=0.5"),
]


def run(capsys, *arguments):
    code = main([*arguments])
    output = capsys.readouterr()
    assert code == 0, output.err
    return output.out


def result_of(output):
    return json.loads(output.splitlines()[-1])


@pytest.mark.parametrize(
    "variant, size, decoder, expected",
    [
        ("Ti/16", 512, "mask", 25.3),
        ("S/16", 512, "mask", 76.8),
        ("B/16", 512, "mask", 258.6),
        ("L/16", 512, "mask", 799),
        ("L/16", 640, "mask", 1342),
        ("B/8", 512, "mask", 1558),
    ],
)
def test_forward_work_is_the_published_one(variant, size, decoder, expected):
    config = SegmenterConfig.from_variant(
        variant, num_classes=150, image_size=(size, size), decoder=decoder
    )
    assert sum(flops.forward_flops(config).values()) / 1e9 == pytest.approx(expected, rel=2e-3)


def test_forward_work_of_the_linear_decoder_is_the_compiled_one():
    config = tiny_network(image_size=(64, 64), patch_size=16, decoder="linear")
    # 16 patches and the class token.
    tokens, width = 17, 64
    block = 2 * tokens * 12 * width**2 + 4 * tokens**2 * width
    work = {"embedding": 2 * 16 * 768 * width, "encoder": block, "decoder": 2 * 16 * width * 5}
    assert flops.forward_flops(config) == work
    # The backward pass has two products for each of the forward pass, where there is one.
    assert flops.train_flops(config) == 3 * sum(work.values())
    frozen = flops.train_flops(config, freeze_encoder=True)
    assert frozen == sum(work.values()) + 2 * work["decoder"]


def test_forward_work_of_the_decoder_with_queries_is_the_compiled_one():
    config = tiny_network(
        image_size=(64, 64), patch_size=16, depth=2, decoder="eomt", num_queries=7
    )
    tokens, width, mlp = 17, 64, 8 * 64**2
    first, last = (2 * n * (4 * width**2 + mlp) + 4 * n**2 * width for n in (tokens, tokens + 7))
    # Grids of 16 patches and of 64 places are doubled; masks have 256.
    decoder = 2 * (16 + 64) * 4 * width**2 + 2 * 7 * width * (3 * width + 6) + 2 * 256 * 7 * width
    work = {"embedding": 2 * 16 * 768 * width, "encoder": first + last, "decoder": decoder}
    assert flops.forward_flops(config) == work


def test_every_decoder_has_a_count_of_its_own():
    assert sorted(flops._DECODER_WORK) == sorted(get_args(Decoder))
    assert len({*flops._DECODER_WORK.values()}) == len(flops._DECODER_WORK)


def test_utilisation_states_its_inputs():
    values = flops.utilisation(2 * 10**9, 50.0, 4, (0.5, "datasheet"))
    assert values == {
        "gflops_per_image": 2.0,
        "achieved_tflops": 0.1,
        "peak_tflops": 2.0,
        "peak_source": "datasheet",
        "mfu_percent": pytest.approx(5.0),
    }


def test_step_writes_a_line_that_another_run_compares_with(capsys, tmp_path):
    path = tmp_path / "results.jsonl"
    first = result_of(run(capsys, "step", *TINY, f"--json={path}"))
    assert first["benchmark"] == "step" and first["tokens"] == 5
    assert first["images_per_s"] == pytest.approx(2e3 / first["step_ms"])
    assert first["min_ms"] <= first["q1_ms"] <= first["step_ms"] <= first["q3_ms"]
    assert first["temp_memory_mb"] > 0 and first["compile_s"] > 0
    config = SegmenterConfig.from_variant(
        "Ti/16",
        num_classes=3,
        image_size=(32, 32),
        width=64,
        depth=1,
        num_heads=2,
        decoder="linear",
    )
    work = 3 * sum(flops.forward_flops(config).values())
    assert first["mfu_percent"] == pytest.approx(100 * work * first["images_per_s"] / 0.5e12)
    assert f"jax {jax.__version__}" in first["versions"]
    assert read_result(path) == first

    output = run(capsys, "step", *TINY, f"--compare={path}")
    header = output.splitlines()[0].split()
    assert header == ["this", "other", "this", "/", "other"]
    second = result_of(output)
    row = next(line for line in output.splitlines() if line.startswith("step_ms"))
    assert float(row.split()[-1]) == pytest.approx(second["step_ms"] / first["step_ms"], abs=1e-3)


def test_profile_traces_the_stated_steps_after_the_timed_ones(capsys, tmp_path):
    run(capsys, "step", *TINY, f"--profile={tmp_path}", "--profile_steps=2")
    (trace,) = tmp_path.rglob("*.xplane.pb")
    lines = [
        line for p in jax.profiler.ProfileData.from_file(str(trace)).planes for line in p.lines
    ]
    names = [event.name for line in lines for event in line.events]
    assert sum("step.py" in name and "__call__" in name for name in names) == 2


def test_freed_memory_is_kept_for_the_next_allocation():
    # Its own process: the setting lasts for the rest of one.
    code = """
import resource
from segmenter_jax.runtime.host import keep_freed_memory

keep_freed_memory()
faults = []
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(64 << 20)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(faults[0] > 1000, faults[2] < 1000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True True\n"


def test_infer_reports_protocol_and_rate(capsys):
    result = result_of(run(capsys, "infer", *TINY))
    assert result["protocol"] == "window 32, stride 32, base native, scales 1, flip no"
    assert result["images_per_s"] == pytest.approx(2e3 / result["step_ms"])


def test_evaluate_and_loader_run_on_a_built_dataset(capsys, tmp_path):
    shapes = Shapes(data_dir=tmp_path, counts={"train": 6, "validation": 3})
    shapes.download_and_prepare(file_format="array_record")
    data = f"--data_dir={tmp_path}"
    evaluated = result_of(run(capsys, "evaluate", *TINY, data, "--split=validation"))
    assert evaluated["images_per_s"] == pytest.approx(evaluated["images"] / evaluated["seconds"])
    loaded = result_of(run(capsys, "loader", *TINY, data, "--rounds=1", "--prefetch=1"))
    assert loaded["loader_over_resident"] == pytest.approx(
        loaded["loader_step_ms"] / loaded["resident_step_ms"]
    )
    assert loaded["loader_images_per_s"] > 0
    assert loaded["read and transform, images/s per core"] > 0


def test_kernels_compare_every_implementation(capsys):
    losses = result_of(run(capsys, "loss", *TINY))
    assert losses["relative_loss_difference"] < 1e-5
    assert losses["relative_gradient_difference"] < 1e-5
    heads = result_of(run(capsys, "attention", *TINY))
    assert heads["heads_train_ms"] > 0 and heads["shape"] == [2, 5, 2, 32]
    assert "cuDNN" in heads["cudnn_unavailable"]


def test_table_shows_equal_and_missing_values():
    text = table({"a": 2.0, "b": "x", "c": 1}, {"a": 4.0, "b": "x"})
    lines = [line.split() for line in text.splitlines()]
    assert lines[1:] == [["a", "2", "4", "0.500"], ["b", "x", "same"], ["c", "1"]]


def test_failures_are_one_line(capsys, tmp_path):
    empty = tmp_path / "empty"
    empty.write_text("no result\n")
    for arguments, message in (
        (["--variant=X/16"], "variant='X/16' is unknown"),
        (["--steps=0"], "--steps must be at least 1, got 0"),
        ([f"--compare={empty}"], "no line holds a JSON object"),
    ):
        assert main(["loss", *TINY, *arguments]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1


def test_every_subject_has_help(capsys):
    for subject in SUBJECTS:
        with pytest.raises(SystemExit) as exit_info:
            main([subject, "--help"])
        assert exit_info.value.code == 0
        assert "--batch_size" in capsys.readouterr().out
