"""A run begins or goes on: what checkpoints remember of its data, and what must be the same."""

from typing import Any

import numpy as np
from etils import epath

from segmenter_jax.checkpoints.manager import CheckpointError, Checkpoints
from segmenter_jax.data.specs import ILLEGAL_LABEL, DatasetSpec
from segmenter_jax.runtime.console import logger
from segmenter_jax.runtime.errors import first_few
from segmenter_jax.training.experiment import Experiment
from segmenter_jax.training.state import TrainState
from segmenter_jax.training.workdir import initial_params


def data_record(experiment: Experiment, step: int) -> dict[str, Any]:
    """What a checkpoint remembers of the data, as JSON values.

    Returns:
      `position`: the order of the data is a function of these values and of nothing else; `labels`:
      the dataset's spec, which gives the model's outputs their meaning.
    """
    config = experiment.config
    position = {
        "next_batch": step,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "dataset": config.dataset.name,
        "num_records": experiment.dataset.splits[config.dataset.train_split],
    }
    return {"position": position, "labels": experiment.dataset.spec.to_dict()}


def restore_or_init(
    experiment: Experiment, checkpoints: Checkpoints, workdir: epath.Path
) -> tuple[TrainState, bool]:
    """State to train from.

    Returns:
      The state, and whether it is that of a checkpoint.

    Raises:
      ValueError: the checkpoints are of a run with other labels or another network, or
        `init_from` does not fit.
    """
    program, spec = experiment.program, experiment.dataset.spec

    def check(record: dict[str, Any]) -> None:
        changes = label_changes(DatasetSpec.from_dict(record["labels"]), spec)
        if changes:
            raise CheckpointError(
                f"its run had other labels: {first_few(changes, 3, '; ')}. Build the dataset as "
                f"it was, or start in another --workdir with --config.init_from={workdir}, which "
                "takes over what classes of the same names have learnt"
            )

    restored = checkpoints.restore(program.abstract_state(), check)
    if restored is None:
        params = initial_params(experiment.config, experiment.description, workdir)
        return program.place(params), False
    state, record = restored
    logger.info("resumed at step %d", int(state.step))
    was, now = record["position"], data_record(experiment, int(state.step))["position"]
    if was != now:
        logger.warning("the data order changes here: it was saved as %s, and is now %s", was, now)
    return state, True


def label_changes(was: DatasetSpec, now: DatasetSpec) -> list[str]:
    """Why a model trained on one dataset does not go on with another; empty if it may.

    Colours do not matter, nor do label values that only one of the datasets has.
    """
    for count, noun in (("num_classes", "classes"), ("channels", "image channels")):
        there, here = getattr(was, count), getattr(now, count)
        if there != here:
            return [f"{there} {noun} there, {here} here"]
    names = zip(was.class_names, now.class_names, strict=True)
    changed = [f"class {i} was {a!r}, is {b!r}" for i, (a, b) in enumerate(names) if a != b]
    tables = zip(_meanings(was), _meanings(now), strict=True)
    return changed or [
        f"label value {value} was {a}, is {b}"
        for value, (a, b) in enumerate(tables)
        if a and b and a != b
    ]


def _meanings(spec: DatasetSpec) -> list[str]:
    """For each value of a label file its class; empty where it must not occur."""
    names = np.full(256, "ignored", object)
    names[: spec.num_classes] = [repr(name) for name in spec.class_names]
    names[ILLEGAL_LABEL] = ""
    return names[spec.label_lookup()].tolist()
