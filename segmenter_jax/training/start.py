"""The first parameters of a run, and where they come from."""

import dataclasses
import json

import jax
from etils import epath

from segmenter_jax.models.params import Params, init_params
from segmenter_jax.runtime.console import logger
from segmenter_jax.training.experiment import Experiment

ORIGIN_FILE = "init_from.json"


def initial_params(experiment: Experiment, workdir: epath.Path) -> Params:
    """Fresh parameters, or those of `config.init_from`, on the host or on one device.

    Args:
      experiment: the run.
      workdir: receives `init_from.json`, which says where the parameters come from.

    Raises:
      ValueError: `config.init_from` cannot be read, or is another network.
    """
    config = experiment.config
    if not config.init_from:
        if jax.process_index() == 0:
            # Of an earlier start that was given a source and left no checkpoint.
            (workdir / ORIGIN_FILE).unlink(missing_ok=True)
        return init_params(experiment.model.config, config.seed)
    # Readers of foreign formats are needed here only.
    from segmenter_jax.conversion.convert import load_init

    params, origin, report = load_init(config.init_from, experiment.description, config.seed)
    logger.info("parameters from %s\n%s", config.init_from, report)
    if jax.process_index() == 0:
        temporary = workdir / f".{ORIGIN_FILE}.incomplete"
        temporary.write_text(json.dumps(origin, indent=2) + "\n")
        temporary.replace(workdir / ORIGIN_FILE)
    return params


def with_origin(experiment: Experiment, workdir: epath.Path) -> Experiment:
    """The run with its model's description completed by what `initial_params` left in `workdir`.

    The source of the first parameters may be gone when a run goes on.
    """
    path = workdir / ORIGIN_FILE
    if not path.exists():
        return experiment
    origin = json.loads(path.read_text())
    description = experiment.description
    provenance = description.provenance | {"init_from": origin}
    return dataclasses.replace(
        experiment, description=dataclasses.replace(description, provenance=provenance)
    )
