"""Files, folders and videos segmented into a folder of results."""

import argparse
import collections
import contextlib
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

from segmenter_jax.checkpoints.checksums import weights_digest
from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.inference.geometry import InferenceSettings
from segmenter_jax.inference.plan import Plan, planned_outputs
from segmenter_jax.inference.predictor import Predictor, read_model
from segmenter_jax.inference.ray_engine import Job, connect, segment_on_ray
from segmenter_jax.inference.records import Records, Shard, gather, shard_name
from segmenter_jax.inference.results import MISSING, Results, Wanted
from segmenter_jax.inference.run import Run
from segmenter_jax.runtime.command import FAILED, protocol_overrides
from segmenter_jax.runtime.compilation import prepare_compilation
from segmenter_jax.runtime.files import place
from segmenter_jax.runtime.host import keep_freed_memory
from segmenter_jax.runtime.ownership import part_owner, sole_owner
from segmenter_jax.runtime.tables import align

# Work that took longer ends with a table.
_LONG_SECONDS = 60

# Named in a message, of any number.
_NAMED = 3


def run(arguments: argparse.Namespace) -> int:
    """Segments what the arguments name; returns the exit code."""
    keep_freed_memory()
    prepare_compilation()
    if arguments.shard and arguments.engine == "ray":
        raise ValueError("--engine ray shares the work out itself: leave --shard out")
    if arguments.tar and arguments.engine == "ray":
        raise ValueError("--engine ray takes no tar files: share them out with --shard")
    plan = planned_outputs(arguments.inputs, arguments.tar)
    if arguments.shard:
        plan.keep_shard(*arguments.shard)
    folder = place(arguments.output)
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
    with contextlib.closing(Records(folder, shard_name(*shard) if shard else "")) as records:
        results = Results(
            folder, plan, wanted, description, settings, weights, records, plan.source_record
        )
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
        reason = results.unfinished(path)
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
