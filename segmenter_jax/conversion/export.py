"""Writes models in the layout of the authors' PyTorch Segmenter."""

import os

import numpy as np
from etils import epath

from segmenter_jax.checkpoints.atomic import abandon, publish, recover, staging
from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.checkpoints.model_dir import flatten
from segmenter_jax.conversion.arrays import CheckpointError
from segmenter_jax.conversion.reference import VARIANT_FILE, make_variant, state_dict
from segmenter_jax.models.params import Params
from segmenter_jax.runtime.files import absolute, is_local

_FILES = {"reference": "checkpoint.pth", "safetensors": "model.safetensors"}


def save_reference(
    path: os.PathLike | str, description: ModelDescription, params: Params, kind: str
) -> list[str]:
    """Writes a folder with a state dict and `variant.yml`, whole or not at all.

    The encoder's ImageNet heads, which a Segmenter never uses, are written as zeros.

    Args:
      path: the folder; one of the same kind is replaced.
      description, params: the model.
      kind: "reference" for `checkpoint.pth` (needs PyTorch), "safetensors" for
        `model.safetensors`.

    Returns:
      Sentences on what the reference computes differently.

    Raises:
      ValueError: the reference has no such network, or `path` holds something else.
    """
    path = absolute(path)
    if not is_local(path):
        raise CheckpointError(f"{path}: the reference's layout is written to local folders only")
    recover(path, VARIANT_FILE)
    if path.exists() and not (path / VARIANT_FILE).exists():
        raise CheckpointError(f"{path}: exists and holds no {VARIANT_FILE}; it is left as it is")
    variant, notes = make_variant(description)
    flat = {name: np.asarray(leaf, np.float32) for name, leaf in flatten(params).items()}
    arrays = state_dict(description.model, flat)
    target = staging(path)
    try:
        target.mkdir(parents=True)
        _write(target / _FILES[kind], kind, arrays, description.model.num_classes)
        publish(path, VARIANT_FILE, variant)
    except BaseException:
        abandon(path, VARIANT_FILE)
        raise
    return notes


def _write(file: epath.Path, kind: str, arrays: dict[str, np.ndarray], num_classes: int) -> None:
    if kind == "safetensors":
        from safetensors.numpy import save_file

        save_file(arrays, file, metadata={"format": "pt"})
        return
    try:
        import torch
    except ImportError:
        raise CheckpointError(f"{file}: writing it needs PyTorch: pip install torch") from None
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch.save({"model": tensors, "n_cls": num_classes}, file)
