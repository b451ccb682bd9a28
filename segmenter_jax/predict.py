"""Segments files, folders and videos from the command line.

python -m segmenter_jax.predict MODEL photo.jpg folder/ clip.mp4 -o overlays/
"""

import argparse
import collections
import contextlib
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from segmenter_jax.checkpoints.checksums import weights_digest
from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.inference.geometry import InferenceSettings
from segmenter_jax.inference.plan import Plan, planned_outputs
from segmenter_jax.inference.predictor import Predictor, read_model
from segmenter_jax.inference.ray_engine import Job, connect, segment_on_ray
from segmenter_jax.inference.records import Records, gather, shard_name
from segmenter_jax.inference.results import MISSING, SAVED, Results, Wanted
from segmenter_jax.inference.run import Run
from segmenter_jax.runtime.command import (
    FAILED,
    add_protocol_flags,
    protocol_overrides,
    run_command,
)
from segmenter_jax.runtime.compilation import prepare_compilation
from segmenter_jax.runtime.host import keep_freed_memory
from segmenter_jax.runtime.ownership import part_owner, sole_owner
from segmenter_jax.runtime.tables import align

# Work that took longer ends with a table.
_LONG_SECONDS = 60

# Named in a message, of any number.
_NAMED = 3


class Shard(NamedTuple):
    """One of the parts that the inputs are in.

    Attributes:
      index: from 0.
      count: of the parts.
    """

    index: int
    count: int


def _command(arguments: argparse.Namespace) -> int:
    keep_freed_memory()
    prepare_compilation()
    if arguments.shard and arguments.engine == "ray":
        raise ValueError("--engine ray shares the work out itself: leave --shard out")
    if arguments.tar and arguments.engine == "ray":
        raise ValueError("--engine ray takes no tar files: share them out with --shard")
    plan = planned_outputs(arguments.inputs, arguments.tar)
    if arguments.shard:
        plan.keep_shard(*arguments.shard)
    folder = pathlib.Path(arguments.output).expanduser()
    with _owned(folder, arguments.shard):
        return _segment(arguments, plan, folder)


def _owned(folder: pathlib.Path, shard: Shard | None) -> contextlib.AbstractContextManager:
    if shard is None:
        return sole_owner(folder)
    return part_owner(folder, *shard, enter=lambda: gather(folder, shard.count))


def _segment(arguments: argparse.Namespace, plan: Plan, folder: pathlib.Path) -> int:
    started, shard = time.monotonic(), arguments.shard
    if arguments.engine == "ray":
        # The devices are for those who segment.
        jax.config.update("jax_platforms", "cpu")
    description, params = read_model(arguments.model)
    weights = weights_digest(params)
    settings = InferenceSettings.of(description, **protocol_overrides(arguments))
    wanted = Wanted(arguments.save, arguments.alpha, arguments.video)
    # What is wrong with it has to show before anything is forgotten.
    segment = _way(arguments, description, params, weights, wanted)
    # Those on the devices are all that is needed from here on.
    del params
    records = Records(folder, shard_name(*shard) if shard else "")
    results = Results(folder, plan, wanted, description, settings, weights, records)
    planned = len(plan)
    _keep_unfinished(plan, results, arguments.overwrite)
    results.start(plan)
    failed = segment(plan, results)

    todo = len(plan)
    done, skipped = todo - failed, planned - todo
    # Of several shards one writes what is common, with what the others may see.
    if (done or (skipped and not results.has_legend())) and not (shard and shard.index):
        # The classes of results that were there already are not known.
        results.write_legend(everything=skipped > 0 or shard is not None)
    if not arguments.quiet:
        if (seconds := time.monotonic() - started) > _LONG_SECONDS:
            print("\n".join(align(results.facts.table())))
            print(f"{done / seconds:.3g} files/s in {seconds:.0f} s")
        before = f", {skipped} were there already" if skipped else ""
        print(
            f"{done} of {todo} files segmented into {results.folder}{before} "
            f"({settings.protocol()})"
        )
    return FAILED if failed else 0


def _way(
    arguments: argparse.Namespace,
    description: ModelDescription,
    params: Any,
    weights: str,
    wanted: Wanted,
) -> Callable[[Plan, Results], int]:
    """What segments and returns how much was skipped: this process, or a Ray cluster."""
    protocol, quiet = protocol_overrides(arguments), arguments.quiet
    outputs = ("ids", "confidence") if "confidence" in arguments.save else ("ids",)
    if arguments.engine == "ray":
        ray = connect()
        model = arguments.model if "://" in arguments.model else os.path.abspath(arguments.model)
        job = Job(model, weights, protocol, wanted, outputs)
        return lambda plan, results: segment_on_ray(ray, job, plan, results, quiet)
    predictor = Predictor(description, params)
    engine = predictor.engine(**protocol)
    return lambda plan, results: Run(predictor, engine, outputs, results, quiet).segment(plan)


def _keep_unfinished(plan: Plan, results: Results, overwrite: bool) -> None:
    """Keeps what has to be made; says why of results that are there."""
    counts: collections.Counter[str] = collections.Counter()
    examples = collections.defaultdict(list)

    def has_to_be_made(path: pathlib.Path) -> bool:
        try:
            reason = results.unfinished(path)
        except OSError:
            # Reading it will say why.
            return True
        if reason not in (None, MISSING):
            counts[reason] += 1
            if len(examples[reason]) < _NAMED:
                examples[reason].append(path)
        return reason is not None

    if overwrite:
        return
    plan.keep(has_to_be_made)
    for reason, count in counts.items():
        named = ", ".join(map(str, examples[reason]))
        more = f", and {count - _NAMED} more" if count > _NAMED else ""
        print(
            f"made again: {named}{more}: results in {results.folder} were {reason}",
            file=sys.stderr,
        )


def _shard(text: str) -> Shard:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a shard i/n with i in 0..n-1, such as 0/4 to 3/4"
        )
    return Shard(int(index), int(count))


def _saved_list(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := sorted(set(names) - set(SAVED)):
        raise argparse.ArgumentTypeError(f"unknown results {unknown}; choose from {SAVED}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segmenter_jax.predict",
        description="Segments pictures and videos. OUTPUT gets the folders overlay/, ids/ (class "
        "ids as grey values), palette/ (class ids that show in their colours) and confidence/ "
        "(probability of the class, black to white), and legend.png. Videos become videos in "
        "overlay/ and folders of frames elsewhere. results.jsonl says how each result was made: "
        "what the same model made of the same file with the same settings is not made again. A "
        "file that cannot be read is reported and skipped; the exit code is then 1.",
    )
    parser.add_argument(
        "model", help="model directory, workdir of a run, checkpoint, or hf://OWNER/NAME"
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        help='files, folders, which are mirrored, or patterns like "a/**/*.jpg"',
    )
    parser.add_argument(
        "--tar",
        action="store_true",
        help="inputs are tar files of pictures (WebDataset); each gets a tar file of results in "
        "tar/ with members such as KEY.ids.png",
    )
    parser.add_argument("-o", "--output", required=True, help="folder of the results")
    parser.add_argument(
        "--save",
        type=_saved_list,
        default=("overlay", "ids"),
        help=f"results to write, of {','.join(SAVED)}; default: overlay,ids",
    )
    parser.add_argument("--alpha", type=float, default=0.5, help="weight of the colours, 0..1")
    parser.add_argument(
        "--video",
        choices=(".mp4", ".gif"),
        help="format of written videos; default: .gif for a GIF, else .mp4",
    )
    parser.add_argument("--overwrite", action="store_true", help="also make what is finished")
    parser.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="only the I-th of N parts of the inputs, from 0/N; parts may run at the same time",
    )
    parser.add_argument(
        "--engine",
        choices=("here", "ray"),
        default="here",
        help="ray: on all machines of a Ray cluster, which see the same files; default: here",
    )
    parser.add_argument(
        "--quiet", action="store_true", help="show no progress and no summary, only what went wrong"
    )
    add_protocol_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(_parser(), _command, argv)


if __name__ == "__main__":
    sys.exit(main())
