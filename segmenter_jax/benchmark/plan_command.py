"""The subject `plan` of the benchmarks' command line."""

import argparse
import json
import pathlib
from importlib import metadata

from segmenter_jax.benchmark.measure import Result
from segmenter_jax.benchmark.plan import plan
from segmenter_jax.benchmark.plan_programs import programs
from segmenter_jax.benchmark.plan_report import describe_plan, overview
from segmenter_jax.benchmark.plan_search import search
from segmenter_jax.benchmark.topologies import describe, stay_on_cpu
from segmenter_jax.runtime.command import FAILED
from segmenter_jax.runtime.config_flag import read_config
from segmenter_jax.runtime.files import naming


def run(arguments: argparse.Namespace) -> int:
    """Plans a config for each topology; returns the exit code.

    Args:
      arguments: of the flags, and `overrides` of the config.
    """
    stay_on_cpu()
    config = read_config(arguments.config, arguments.overrides)
    # Wrong names are found before the first of them compiles for minutes.
    names = [name for text in arguments.topology for name in text.split(",")]
    results = []
    for topology in [describe(name) for name in names]:
        parts = programs(config, topology, arguments.num_classes)
        result = {"benchmark": "plan", "config": arguments.config} | plan(parts)
        print(describe_plan(result), flush=True)
        if arguments.search:
            result["search"] = search(
                parts, result["step"], arguments.num_classes, arguments.trials
            )
        result["versions"] = " ".join(f"{n} {metadata.version(n)}" for n in ("jax", "jaxlib"))
        results.append(result)
        _write(result, arguments.json)
    if len(results) > 1:
        print(f"\n{overview(results)}")
    return FAILED if any(result["step"]["fits"] is None for result in results) else 0


def _write(result: Result, path: str | None) -> None:
    if path:
        line = json.dumps(result)
        if path == "-":
            print(line)
        else:
            with naming(path), pathlib.Path(path).expanduser().open("a", encoding="utf-8") as file:
                file.write(line + "\n")
