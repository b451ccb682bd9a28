"""What the folder of a run remembers, and with which other settings it may be resumed."""

import dataclasses
import importlib.metadata
import json
import os
from typing import Any

import jax
import ml_collections
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.checkpoints.manager import CHECKPOINTS_FOLDER, Checkpoints
from segmenter_jax.checkpoints.model_dir import WORKDIR_MODELS, save_model
from segmenter_jax.conversion.locate import is_fetched
from segmenter_jax.conversion.opening import SourceNetwork
from segmenter_jax.data.datasets import DATA_DIR
from segmenter_jax.models import SegmenterConfig
from segmenter_jax.models.params import Params, abstract_params, init_params
from segmenter_jax.runtime import processes
from segmenter_jax.runtime.console import logger
from segmenter_jax.runtime.errors import first_line
from segmenter_jax.runtime.files import absolute, write_whole
from segmenter_jax.training import sharding

CONFIG_FILE = "config.json"
ORIGIN_FILE = "init_from.json"

_TRIAL_FOLDER = ".trial"

# In ORIGIN_FILE, for the next start of the run; see `convert.load_init`.
_NETWORK = "network"

# Fields of a config that a saved state belongs to: a run with another value cannot resume from it.
FIXED_FIELDS = frozenset(
    {
        "seed",
        "optimizer.name",
        "augment.crop_size",
        "model.variant",
        "model.patch_size",
        "model.width",
        "model.depth",
        "model.num_heads",
        "model.distilled",
        "model.dropout_rate",
        "model.attention_dropout_rate",
        "model.drop_path_rate",
        "model.layer_norm_eps",
        "model.decoder_layer_norm_eps",
        "model.gelu",
        "model.decoder",
        "model.decoder_depth",
        "model.decoder_dropout_rate",
        "model.decoder_attention_dropout_rate",
        "model.decoder_drop_path_rate",
        "model.head_norm",
        "model.head_dropout_rate",
    }
)

# Fields that add a part to a saved state: their value may change, but not from or to off.
SWITCHED_FIELDS = frozenset({"ema_decay", "optimizer.freeze_encoder"})


def check_same_run(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Before a resume, reports what changed in the config and refuses what cannot change.

    Args:
      config: see configs/common.py.
      workdir: of the run; nothing is written to it.

    Raises:
      ValueError: the checkpoints of the run do not fit the config; names the fields.
    """
    path = workdir / CONFIG_FILE
    if not path.exists():
        return
    values = json.loads(path.read_text()), _json_values(config)
    was, now = (flatten_dict(value, sep=".") for value in values)
    changed = [name for name in sorted(was | now) if was.get(name) != now.get(name)]
    # A field that an older config does not have says nothing about its checkpoints.
    refused = [name for name in changed if name in was and _fixed(name, was[name], now)]
    if refused:
        listed = "; ".join(f"{name} was {was[name]!r}, is {now[name]!r}" for name in refused)
        raise ValueError(f"{workdir} holds a run of another config: {listed}")
    for name in changed:
        logger.warning(
            "config.%s was %r when this run began, is now %r", name, was.get(name), now.get(name)
        )


def keep_config(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Writes the config of a run that was not refused; process 0 does, others nothing."""
    if jax.process_index() == 0:
        _write_json(workdir / CONFIG_FILE, _json_values(config))


def workdir_of(model: os.PathLike | str) -> epath.Path | None:
    """Workdir of the run that a model is of; None for a model of no run.

    Args:
      model: workdir, or one of the models in it.
    """
    if is_fetched(model):
        return None
    path = absolute(model)
    workdirs = [path, *(path.parents[1] for name in WORKDIR_MODELS if path.match(f"*/{name}"))]
    workdir = next((w for w in workdirs if (w / CONFIG_FILE).exists()), None)
    if workdir is None or not any((workdir / name).exists() for name in WORKDIR_MODELS):
        return None
    return workdir


def run_config(model: os.PathLike | str) -> dict[str, Any] | None:
    """Config of the run that a model is of, as JSON values; None for a model of no run."""
    workdir = workdir_of(model)
    return None if workdir is None else json.loads((workdir / CONFIG_FILE).read_text())


def evaluated_on(model: os.PathLike | str, dataset: str | None = None) -> dict[str, str] | None:
    """What the run of a model was evaluated on: "dataset", "data_dir" and "split".

    Args:
      model: see `run_config`.
      dataset: another one, which then has its own validation split.

    Returns:
      None for a model of no run.
    """
    if not (config := run_config(model)):
        return None
    run = config["dataset"]
    same = dataset in (None, run["name"])
    return {
        "dataset": dataset or run["name"],
        "data_dir": run.get("data_dir", DATA_DIR),
        "split": run["eval_split"] if same else "validation",
    }


def _json_values(config: ml_collections.ConfigDict) -> Any:
    return json.loads(json.dumps(config.to_dict()))


def _fixed(name: str, was: Any, now: dict[str, Any]) -> bool:
    """Whether a checkpoint of a run with the old value of a field fits no run with the new one."""
    if name in SWITCHED_FIELDS:
        return bool(was) != bool(now[name])
    return name in FIXED_FIELDS


def _write_json(path: epath.Path, value: Any) -> None:
    with write_whole(path) as part:
        part.write_text(json.dumps(value, indent=2) + "\n")


def initial_params(
    config: ml_collections.ConfigDict, description: ModelDescription, workdir: epath.Path
) -> Params:
    """Fresh parameters, or those of `config.init_from`, on the host or on one device.

    Args:
      config: see configs/common.py.
      description: of the model to be trained.
      workdir: receives `init_from.json`, which says where the parameters come from.

    Raises:
      ValueError: `config.init_from` cannot be read, or is another network.
    """
    if not config.init_from:
        if jax.process_index() == 0:
            # Of an earlier start that was given a source and left no checkpoint.
            (workdir / ORIGIN_FILE).unlink(missing_ok=True)
        return init_params(description.model, config.seed)
    # Readers of foreign formats are needed here only.
    from segmenter_jax.conversion.convert import load_init

    params, origin, report = load_init(
        config.init_from,
        description,
        config.seed,
        config.position_method,
        config.init_entry or None,
    )
    logger.info("parameters from %s\n%s", config.init_from, report)
    if jax.process_index() == 0:
        _write_json(workdir / ORIGIN_FILE, origin)
    return params


def remembered_source(workdir: epath.Path) -> SourceNetwork | None:
    """The encoder that a run with checkpoints began with, whatever its config or that file say now.

    None for a run without, which begins again.
    """
    path, folder = workdir / ORIGIN_FILE, workdir / CHECKPOINTS_FOLDER
    begun = folder.exists() and any(step.name.isdecimal() for step in folder.iterdir())
    origin = json.loads(path.read_text()) if begun and path.exists() else {}
    return SourceNetwork(**origin[_NETWORK]) if _NETWORK in origin else None


def with_origin(description: ModelDescription, workdir: epath.Path) -> ModelDescription:
    """Completes a description by what `initial_params` left in `workdir`.

    The source of the first parameters may be gone when a run resumes.
    """
    path = workdir / ORIGIN_FILE
    if not path.exists():
        return description
    origin = json.loads(path.read_text())
    origin.pop(_NETWORK, None)
    provenance = description.provenance | {"init_from": origin}
    return dataclasses.replace(description, provenance=provenance)


def try_saving(mesh: jax.sharding.Mesh, workdir: epath.Path) -> None:
    """Saves a tiny model and checkpoint as training does, reads them back, and removes them.

    A run needs this at its end, where it is too late to learn that it does not work.

    Args:
      mesh: where the run keeps its state.
      workdir: of the run.

    Raises:
      ValueError: saving fails; says where and why.
    """
    folder = workdir / _TRIAL_FOLDER
    config = SegmenterConfig(
        2, (8, 8), width=8, depth=1, num_heads=1, patch_size=8, decoder="linear"
    )
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), abstract_params(config))
    description = ModelDescription(config, ("a", "b"), ((0,) * 3, (1,) * 3), (0.5,) * 3, (0.5,) * 3)
    step = jax.make_array_from_callback((), sharding.replicated(mesh), lambda _: np.int32(0))
    try:
        _remove(folder)  # What an interrupted start has left.
        save_model(folder / "model", description, params)
        checkpoints = Checkpoints(folder, keep=1)
        checkpoints.save({"step": step}, {}, 0)
        checkpoints.close()
        checkpoints = Checkpoints(folder, keep=1)
        checkpoints.restore({"step": jax.ShapeDtypeStruct((), np.int32, sharding=step.sharding)})
        checkpoints.close()
        processes.barrier("saved")
        _remove(folder)
    except Exception as error:  # Orbax, and the file systems under it, raise many types.
        version = importlib.metadata.version("orbax-checkpoint")
        raise ValueError(
            f"{os.fspath(workdir)}: nothing was trained, since models and checkpoints cannot be "
            f"saved here (orbax-checkpoint {version}): {type(error).__name__}: {first_line(error)}"
        ) from error


def _remove(folder: epath.Path) -> None:
    if jax.process_index() == 0 and folder.exists():
        folder.rmtree()
