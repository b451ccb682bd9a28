"""Model directories: a trained model that explains itself.

A model directory holds `model.json` (see `ModelDescription`) and the float32 parameters: in
`params/`, written by Orbax in parallel, or, where it is handed on, in the one file
`model.safetensors`, which other tools can read as well. It is written whole or not at all, with
`model.json` last: a directory without it is no model.
"""

import os
import tempfile
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import safetensors.numpy
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from segmenter_jax.checkpoints.atomic import abandon, publish, recover, staging, whole
from segmenter_jax.checkpoints.checksums import weights_digest
from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.models import SegmenterConfig
from segmenter_jax.models.params import Params, abstract_params
from segmenter_jax.runtime import processes
from segmenter_jax.runtime.errors import first_few, first_line
from segmenter_jax.runtime.files import absolute, check_no_pattern, is_local

MODEL_FILE = "model.json"
PARAMS_FOLDER = "params"
PARAMS_FILE = "model.safetensors"

# In the metadata of PARAMS_FILE, see `weights_digest`.
_DIGEST = "weights_sha256"

# Where a workdir keeps its models, in order of preference.
WORKDIR_MODELS = ("model/best", "model/latest")


def check_params(params: Params, config: SegmenterConfig, source: str) -> None:
    """Checks names and shapes of parameters against the network.

    Args:
      params: nested dictionaries; leaves have a `shape` and a floating `dtype`.
      config: the network.
      source: where the parameters come from, for messages.

    Raises:
      ValueError: a parameter is missing, unexpected, or of another shape or kind.
    """
    found, expected = (flatten_dict(tree, sep="/") for tree in (params, abstract_params(config)))
    for problem, names in (
        ("missing", expected.keys() - found.keys()),
        ("unexpected", found.keys() - expected.keys()),
    ):
        if names:
            listed = first_few(sorted(names), 5)
            raise ValueError(f"{source}: {len(names)} parameters are {problem}: {listed}")
    for name, leaf in found.items():
        if tuple(leaf.shape) != expected[name].shape:
            raise ValueError(
                f"{source}: parameter {name} has shape {tuple(leaf.shape)}, "
                f"the model expects {expected[name].shape}"
            )
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise ValueError(f"{source}: parameter {name} is {leaf.dtype}, expected floating point")


def save_model(path: os.PathLike | str, description: ModelDescription, params: Params) -> None:
    """Writes a model directory, whole or not at all; replaces an existing one.

    With several processes, all of them call this with their shards of the same parameters.

    Args:
      path: the directory; its parents are made.
      description: what `model.json` says.
      params: parameter tree of the network, of NumPy or (possibly sharded) jax arrays.

    Raises:
      ValueError: the parameters are not those of the network, `path` holds something else, or
        what was written cannot be read back.
    """
    path = absolute(path)
    check_no_pattern(path)
    check_params(params, description.model, "save_model")
    if jax.process_index() == 0:
        recover(path, MODEL_FILE)
    processes.barrier("save_model: recovered")
    _check_free(path)
    try:
        _write_params(staging(path), params)
        if jax.process_index() == 0:
            _read_params(staging(path) / PARAMS_FOLDER, description.model)
            publish(path, MODEL_FILE, description.to_json())
    except BaseException:
        if jax.process_index() == 0:
            abandon(path, MODEL_FILE)
        raise
    processes.barrier("save_model: written")


def _check_free(path: epath.Path) -> None:
    if path.is_file() or (
        path.is_dir() and not (path / MODEL_FILE).exists() and any(path.iterdir())
    ):
        raise ValueError(f"{path}: exists and is not a model directory; it is left as it is")


def _write_params(folder: epath.Path, params: Params) -> None:
    if jax.process_index() == 0:
        folder.mkdir(parents=True)
    processes.barrier("save_model: prepared")
    params = jax.tree.map(lambda x: x if x.dtype == np.float32 else x.astype(np.float32), params)
    with ocp.Checkpointer(_handler()) as checkpointer:
        checkpointer.save(folder / PARAMS_FOLDER, args=ocp.args.PyTreeSave(params))


def save_portable(
    path: os.PathLike | str,
    description: ModelDescription,
    params: Params,
    files: Mapping[str, bytes],
) -> None:
    """Writes a model directory with its parameters in one file, whole or not at all.

    Args:
      path: the directory; its parents are made, and a model that is there is replaced.
      description: what `model.json` says.
      params: parameter tree of the network, on the host.
      files: content of what else is to lie there, by name.

    Raises:
      ValueError: the parameters are not those of the network, or `path` holds something else.
    """
    path = absolute(path)
    check_params(params, description.model, "save_portable")
    recover(path, MODEL_FILE)
    _check_free(path)
    named = {n: np.asarray(x, np.float32, "C") for n, x in flatten_dict(params, sep="/").items()}
    digest = weights_digest(unflatten_dict(named, sep="/"))
    folder = staging(path)
    try:
        folder.mkdir(parents=True)
        # Its `save_file` makes a file that only its owner can read.
        weights = safetensors.numpy.save(named, metadata={_DIGEST: digest})
        for name, content in {PARAMS_FILE: weights, **files}.items():
            (folder / name).write_bytes(content)
        publish(path, MODEL_FILE, description.to_json())
    except BaseException:
        abandon(path, MODEL_FILE)
        raise


def load_model(path: os.PathLike | str) -> tuple[ModelDescription, Params]:
    """Reads a model directory.

    Args:
      path: a model directory or a workdir.

    Returns:
      The description, and the parameters as float32 NumPy arrays.

    Raises:
      ValueError: no model is there, `model.json` is wrong, or the parameters do not belong to it.
    """
    try:
        return _read_model(resolve_model_dir(path))
    except (ValueError, OSError):
        # Once more: a run may have replaced the model while it was being read.
        return _read_model(resolve_model_dir(path))


def _read_model(path: epath.Path) -> tuple[ModelDescription, Params]:
    description = load_description(path)
    place = params_place(path)
    read = _read_file if place.name == PARAMS_FILE else _read_params
    return description, read(place, description.model)


def params_place(folder: epath.Path) -> epath.Path:
    """The folder or file of a model directory that holds its parameters."""
    file = folder / PARAMS_FILE
    return file if file.exists() else folder / PARAMS_FOLDER


def _read_file(file: epath.Path, config: SegmenterConfig) -> Params:
    with tempfile.TemporaryDirectory() as folder:
        local = file if is_local(file) else file.copy(os.path.join(folder, PARAMS_FILE))
        try:
            with safetensors.safe_open(local, "numpy") as content:
                digest = (content.metadata() or {}).get(_DIGEST)
                named = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as error:
            raise ValueError(f"{file}: damaged parameters: {first_line(error)}") from error
    params = unflatten_dict(named, sep="/")
    check_params(params, config, os.fspath(file))
    if (found := weights_digest(params)) != digest:
        raise ValueError(
            f"{file}: damaged parameters: their SHA-256 is {found}, the file says {digest}"
        )
    return params


def _read_params(folder: epath.Path, config: SegmenterConfig) -> Params:
    # Not through a checkpointer, which waits for the other processes.
    handler = ocp.PyTreeCheckpointHandler()
    try:
        metadata = handler.metadata(folder).tree
    except Exception as error:
        raise ValueError(f"{folder}: no readable parameters: {first_line(error)}") from error
    check_params(metadata, config, os.fspath(folder))
    kinds = jax.tree.map(
        lambda _: ocp.RestoreArgs(restore_type=np.ndarray, dtype=np.float32), metadata
    )
    try:
        return handler.restore(folder, args=ocp.args.PyTreeRestore(metadata, restore_args=kinds))
    except Exception as error:
        raise ValueError(f"{folder}: damaged parameters: {first_line(error)}") from error


def load_description(path: os.PathLike | str) -> ModelDescription:
    """Reads the `model.json` of a model directory or a workdir; raises as `load_model` does."""
    file = resolve_model_dir(path) / MODEL_FILE
    return ModelDescription.from_json(file.read_text(), source=os.fspath(file))


def find_model_dir(path: os.PathLike | str) -> epath.Path | None:
    """The model directory that a user means; None if there is none.

    Args:
      path: a model directory, or a workdir, of which the best model counts, else the latest.
    """
    folders = (whole(candidate, MODEL_FILE) for candidate in _candidates(path))
    return next((folder for folder in folders if folder is not None), None)


def resolve_model_dir(path: os.PathLike | str) -> epath.Path:
    """As `find_model_dir`, but that there is none raises a ValueError that says where it looked."""
    if (folder := find_model_dir(path)) is not None:
        return folder
    looked_for = ", ".join(os.fspath(folder / MODEL_FILE) for folder in _candidates(path))
    path = absolute(path)
    exists = "is no model directory or workdir" if path.exists() else "does not exist"
    raise ValueError(f"{path}: {exists}; looked for {looked_for}")


def _candidates(path: os.PathLike | str) -> list[epath.Path]:
    path = absolute(path)
    return [path, *(path / name for name in WORKDIR_MODELS)]


def _handler() -> ocp.PyTreeCheckpointHandler:
    # Saving is synchronous here, so host arrays need not be copied first: half of the memory.
    handlers = ocp.type_handlers
    registry = handlers.create_type_handler_registry(
        (jax.Array, handlers.get_type_handler(jax.Array)),
        (np.ndarray, handlers.NumpyHandler(deepcopy_host_arrays=False)),
    )
    return ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
