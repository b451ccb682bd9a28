"""Busy share and longest operations: by hand for a GPU, and of a real trace on this machine."""

import json

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from segmenter_jax.benchmark.cli import main
from segmenter_jax.benchmark.trace import summarise_trace


def plane(name, **lines):
    """A device in a trace; lines are lists of (name, start in us, end in us)."""
    names = sorted({event[0] for events in lines.values() for event in events})
    text = [f'name: "{name}"']
    text += [
        f'event_metadata {{ key: {i} value {{ id: {i} name: "{name}" }} }}'
        for i, name in enumerate(names, 1)
    ]
    text.append('stat_metadata { key: 1 value { id: 1 name: "name" } }')
    for line, events in lines.items():
        inner = "".join(
            f"events {{ metadata_id: {names.index(event) + 1} offset_ps: {start}000000 "
            f'duration_ps: {end - start}000000 stats {{ metadata_id: 1 str_value: "step/{event}" }}'
            " }"
            for event, start, end in events
        )
        text.append(f'lines {{ name: "{line.replace("_", " ")}" {inner} }}')
    return f"planes {{ {' '.join(text)} }}\n"


def test_streams_of_a_gpu_overlap_and_other_lines_do_not_count():
    first = plane(
        "/device:GPU:0",
        Stream_1=[("gemm", 0, 40), ("gemm", 60, 80)],
        Stream_2=[("copy", 30, 50)],
        XLA_Modules=[("jit_step", 0, 100)],
    )
    second = plane("/device:GPU:1", Stream_1=[("gemm", 10, 110)])
    host = plane("/host:CPU", python=[("run", 0, 1000)])
    result = summarise_trace(ProfileData.from_text_proto(first + second + host), top=1)
    assert result["span_ms"] == pytest.approx(0.18) and result["busy_ms"] == pytest.approx(0.17)
    assert result["busy_percent"] == pytest.approx(100 * 17 / 18)
    assert result["launches"] == 4
    (longest,) = result["longest"]
    assert (longest["name"], longest["source"], longest["count"]) == ("gemm", "step/gemm", 3)
    assert longest["ms"] == pytest.approx(0.16) and longest["percent"] == pytest.approx(100 * 8 / 9)


def test_time_within_a_loop_is_that_of_its_operations():
    operations = [("while", 0, 100), ("dot", 10, 40), ("dot", 50, 80), ("add", 100, 110)]
    data = ProfileData.from_text_proto(plane("/device:TPU:0", XLA_Ops=operations))
    result = summarise_trace(data, top=3)
    times = {operation["name"]: operation["ms"] for operation in result["longest"]}
    assert times == pytest.approx({"dot": 0.06, "while": 0.04, "add": 0.01})
    assert result["busy_percent"] == 100


def test_command_reads_a_trace_of_this_machine(capsys, tmp_path):
    product = jax.jit(lambda x: x @ x)
    x = jnp.ones((256, 256))
    with jax.profiler.trace(str(tmp_path)):
        product(x).block_until_ready()
    assert main(["trace", str(tmp_path), "--top=3"]) == 0
    *table, last = capsys.readouterr().out.splitlines()
    result = json.loads(last)
    assert 0 < result["busy_percent"] <= 100
    assert table[0].split() == ["ms", "percent", "count", "name", "source"]
    assert result["longest"][0]["name"] in table[1]


def test_folder_without_a_trace_is_refused(capsys, tmp_path):
    assert main(["trace", str(tmp_path)]) == 1
    assert "no *.xplane.pb below it" in capsys.readouterr().err
