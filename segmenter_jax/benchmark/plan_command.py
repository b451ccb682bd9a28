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

HELP = "whether a config fits devices that are not there, and how fast it may be; nothing runs"

_EPILOG = """
Fields of the config are overridden as --config.batch_size=64, with the equals sign.
For TPUs install '.[tpu]', for GPUs '.[cuda]'; neither needs the device.
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the subject."""
    parser.epilog = _EPILOG
    parser.add_argument("--config", required=True, help="name of a config, or path of a file")
    parser.add_argument(
        "--topology",
        action="append",
        required=True,
        help="such as v4:2x2x1, v5e:2x4, v5p:2x2x2, v6e:2x4, tpu7x:2x2x1, a100:8, h100:8, h200:8; "
        "several with commas between them, or by repeating the flag",
    )
    parser.add_argument("--num_classes", type=int, help="of a dataset that is not at hand")
    parser.add_argument(
        "--search",
        action="store_true",
        help="also the largest batch that fits, and the cheapest change that makes the recipe fit",
    )
    parser.add_argument(
        "--trials",
        type=int,
        default=10,
        help="programs that a search compiles, 4 for the batch",
    )
    parser.add_argument(
        "--json", nargs="?", const="-", help="append a JSON line to this file; without one print it"
    )


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
