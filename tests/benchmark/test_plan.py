"""Plans: what the command refuses, and one tiny network compiled for eight TPU chips."""

import contextlib
import importlib.util
import io
import json
import re

import pytest

from segmenter_jax.benchmark.cli import main
from segmenter_jax.benchmark.plan_programs import dataset_spec, programs
from segmenter_jax.benchmark.topologies import describe
from segmenter_jax.runtime.config_flag import read_config
from segmenter_jax.training import sharding

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: jax[tpu]"
)

TINY = (
    *("--config.model.width=64", "--config.model.depth=2", "--config.model.num_heads=1"),
    *("--config.model.scan_layers=True", "--config.model.decoder_depth=1"),
    *("--config.augment.crop_size=64", "--config.augment.photometric=False"),
    *("--config.eval.window=64", "--config.optimizer.name=sgd"),
)


def failure(capsys, *arguments):
    assert main(["plan", *arguments]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_wrong_configs_and_topologies_are_refused_in_one_line(capsys):
    assert "has no field 'batch'" in failure(
        capsys, "--config=quickstart", "--topology=v5e:2x4", "--config.batch=3"
    )
    assert "--config=nonesuch: there is no file" in failure(
        capsys, "--config=nonesuch", "--topology=v5e:2x4"
    )


@needs_libtpu
def test_an_unknown_topology_is_refused_with_the_choices(capsys):
    error = failure(capsys, "--config=quickstart", "--topology=v5e:2x4,v9:2x2")
    assert "topology 'v9:2x2' is not known" in error and "v5p:2x2x2" in error


@needs_libtpu
def test_pieces_may_be_fewer_than_a_side_of_the_slice():
    mesh = sharding.make_mesh(fsdp=4, devices=describe("v6e:16x16").devices)
    assert dict(mesh.shape) == {"data": 64, "fsdp": 4}
    assert len(set(mesh.devices.flat)) == 256


@needs_libtpu
def test_two_cores_of_a_v4_chip_are_one_device_and_those_of_a_v7_are_two():
    assert [len(describe(name).devices) for name in ("v4:2x2x1", "tpu7x:2x2x1")] == [4, 8]


def test_missing_compilers_are_named_with_what_to_install(capsys, monkeypatch):
    find = importlib.util.find_spec
    compilers = ("libtpu", "jax_cuda12_plugin", "jax_cuda13_plugin")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in compilers else find(name)
    )
    for topology, extra in (("v5e:2x4", "'.[tpu]'"), ("h100:8", "'.[cuda]'")):
        error = failure(capsys, "--config=quickstart", f"--topology={topology}")
        assert f"{topology}: compiling for" in error and f"pip install {extra}" in error


def test_classes_of_an_unknown_dataset_are_asked_for():
    config = read_config("folder", ["--config.dataset.data_dir=/nonexistent"])
    assert dataset_spec(config, 3).num_classes == 3
    with pytest.raises(ValueError, match="or give --num_classes"):
        dataset_spec(config, None)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """What the command prints and writes for a network of two layers on eight chips."""
    path = tmp_path_factory.mktemp("plan") / "plan.jsonl"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        words = ["plan", "--config=quickstart", "--topology=v5e:2x4", f"--json={path}", *TINY]
        assert main(words) == 0
    return printed.getvalue(), json.loads(path.read_text())


@needs_libtpu
def test_a_plan_says_what_fits_and_what_is_sent(planned):
    text, result = planned
    assert result["device"] == "TPU v5 lite" and result["recipe"]["mesh"] == {"data": 8, "fsdp": 1}
    step = result["step"]
    assert step["fits"] and step["capacity"] == 15.75 * 2**30
    assert step["total"] == sum(step["memory"].values())
    # Gradients are summed once; bfloat16 halves some of it.
    assert 0.4 < step["collectives"]["sent_over_minimum"] <= 1.01
    assert step["collectives"]["all-gather_count"] == 0
    assert re.search(r"FACT: the compiled programs(.*\n)+fits +yes +yes +yes\n", text)


@needs_libtpu
def test_a_plan_tells_the_memory_of_merging_beside_the_train_state(planned):
    _, result = planned
    step, forward, merging = (result[name] for name in ("step", "evaluation", "merging"))
    held = forward["memory"]["train state"]
    assert held == step["memory"]["arguments"]
    assert merging["memory"]["train state"] == held + forward["params"]
    assert merging["fits"] and 0 < merging["memory"]["results"] < merging["memory"]["arguments"]
    assert merging["estimate"]["ms"] > 0


@needs_libtpu
def test_a_norm_before_the_head_is_folded_in_what_is_evaluated():
    linear = ("--config.model.decoder=linear", "--config.model.head_norm=batch")
    config = read_config("quickstart", [*TINY, *linear])
    assert programs(config, describe("v5e:2x4")).evaluation().total > 0


@needs_libtpu
def test_a_plan_estimates_every_part(planned):
    text, result = planned
    e = result["step"]["estimate"]
    assert e["ms"] == pytest.approx(sum(e["parts_ms"].values()))
    assert e["images_per_s_per_device"] == pytest.approx(2 / e["ms"] * 1e3)
    assert {"encoder attention", "encoder MLP", "loss", "optimizer"} <= set(e["parts_ms"])
    assert "by the compiler, not measured" in text
