"""Features once: the tokens of a frozen encoder on disk, for heads that are trained in seconds.

What is kept are the first crops that a run with batches of `BATCH` would draw, with their colours:
training sees these very crops, in another order each time around, instead of new ones. Tokens are
rounded to float16.
"""

import dataclasses
import functools
import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from segmenter_jax.checkpoints.checksums import weights_digest
from segmenter_jax.conversion.adapt import ENCODER_FIELDS, ENCODER_NUMERICS
from segmenter_jax.data.pipeline import train_batches
from segmenter_jax.data.rows_file import RowsFile
from segmenter_jax.models.params import Params
from segmenter_jax.runtime.console import logger
from segmenter_jax.runtime.files import sync
from segmenter_jax.runtime.ownership import sole_owner
from segmenter_jax.runtime.progress import Progress
from segmenter_jax.training import sharding
from segmenter_jax.training.experiment import Experiment
from segmenter_jax.training.program import TrainProgram, prepare_image, step_keys
from segmenter_jax.training.stop_request import StopRequest

# Crops at a time, or the next multiple of the devices' number; whatever the batch of training.
BATCH = 8

_ABOUT_FILE = "about.json"


class FeatureSource:
    """Random access to kept features and their labels.

    Opens its files when first read and travels to worker processes as a path.

    Args:
      folder: of the features.
      length: number of crops.
    """

    def __init__(self, folder: Path, length: int):
        self._folder = folder
        self._length = length

    def __reduce__(self) -> tuple[type["FeatureSource"], tuple[Path, int]]:
        return FeatureSource, (self._folder, self._length)

    @functools.cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        names = "features", "label"
        return {name: np.load(self._folder / f"{name}.npy", mmap_mode="r") for name in names}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns `features` float16 (N, D) and `label` uint8 (S, S)."""
        return {name: np.array(array[index]) for name, array in self._arrays.items()}


def as_they_are(record: Mapping[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The transform of kept features: none."""
    del rng
    return dict(record)


def kept_features(
    experiment: Experiment, encoder: Params, stop: StopRequest
) -> FeatureSource | None:
    """Features for a run with `StepOptions.from_features`: those on disk, or computed now.

    Args:
      experiment: the run; of one process.
      encoder: parameters of the encoder, on the devices.
      stop: ends the work early; what is computed stays, and the next call goes on from there.

    Returns:
      The features; None after a stop.

    Raises:
      OSError: they cannot be written, for example for lack of space; names the file.
    """
    config, program = experiment.config, experiment.program
    about = _about(experiment, encoder)
    text = json.dumps(about, indent=2, sort_keys=True) + "\n"
    parent = Path(config.features.folder or experiment.dataset.directory.parent / "features")
    folder = parent.expanduser().resolve() / hashlib.sha256(text.encode()).hexdigest()[:16]
    crops = about["batches"] * about["batch_size"]
    with sole_owner(folder, beside=True, wait=True):
        if folder.exists():
            logger.info("features of %d crops, kept in %s", crops, folder)
            return FeatureSource(folder, crops)
        part = folder.with_name(f".incomplete.{folder.name}")
        files = _files(part, program, crops)
        size, free = sum(f.full_bytes for f in files.values()), _free_bytes(parent)
        if size > free + sum(f.bytes for f in files.values()):
            raise OSError(
                f"{folder}: features of {crops} crops take {size / 1e9:.1f} GB, free are "
                f"{free / 1e9:.1f} GB; set config.features.views lower, to 0 to keep none, or "
                "config.features.folder to another disk"
            )
        logger.info("keeping features of %d crops, %.2f GB, in %s", crops, size / 1e9, folder)
        part.mkdir(parents=True, exist_ok=True)
        if not _compute(experiment, encoder, files, about, stop):
            return None
        (part / _ABOUT_FILE).write_text(text)
        for path in part.iterdir():
            sync(path)
        part.rename(folder)
    return FeatureSource(folder, crops)


def _about(experiment: Experiment, encoder: Params) -> dict[str, Any]:
    """All that the features are a function of, as JSON values."""
    config, program, dataset = experiment.config, experiment.program, experiment.dataset
    network, options, split = program.model.config, program.options, config.dataset.train_split
    batch_size = math.ceil(BATCH / program.mesh.size) * program.mesh.size
    transform = dataclasses.asdict(experiment.transform)
    transform.pop("spec")
    sizes = "patch_size", "position_size", "image_size", "in_channels"
    fields = *ENCODER_FIELDS, *ENCODER_NUMERICS, *sizes
    return {
        "encoder": weights_digest(jax.device_get(encoder)),
        "network": {name: getattr(network, name) for name in fields},
        "compute_dtype": network.compute_dtype(program.mesh),
        "images": {name: getattr(options, name) for name in ("mean", "std", "photometric")},
        "transform": transform,
        "labels": dataset.spec.to_dict(),
        "dataset": dataset.digest,
        "split": split,
        "seed": config.seed,
        "batch_size": batch_size,
        "batches": math.ceil(config.features.views * dataset.splits[split] / batch_size),
    }


def _files(folder: Path, program: TrainProgram, crops: int) -> dict[str, RowsFile]:
    return {
        name: RowsFile(folder / f"{name}.npy", (crops, *x.shape[1:]), np.dtype(x.dtype))
        for name, x in program.abstract_batch(1).items()
    }


def _free_bytes(folder: Path) -> int:
    place = folder.expanduser().resolve()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def encode_batch(program: TrainProgram) -> Any:
    """The compiled (encoder parameters, batch of images, step) -> features of the batch."""
    model, options = program.model, program.options

    def encode(encoder: Params, batch: dict[str, jax.Array], step: jax.Array) -> jax.Array:
        color_key, _ = step_keys(program.seed, step)
        image = prepare_image(batch, color_key, options)
        features = model.apply({"params": {"encoder": encoder}}, image, method="encode_patches")
        return features.astype(np.float16)

    return jax.jit(encode, out_shardings=sharding.batch_sharding(program.mesh))


def _compute(
    experiment: Experiment,
    encoder: Params,
    files: dict[str, RowsFile],
    about: Mapping[str, Any],
    stop: StopRequest,
) -> bool:
    """Appends what is missing; whether it was not stopped."""
    config, program = experiment.config, experiment.program
    batches, batch_size = about["batches"], about["batch_size"]
    first = min(file.rows for file in files.values()) // batch_size
    for file in files.values():
        file.cut(first * batch_size)
    encode = encode_batch(program)
    stream = train_batches(
        experiment.dataset.source(config.dataset.train_split),
        experiment.transform,
        global_batch_size=batch_size,
        seed=config.seed,
        start_step=first,
        num_threads=config.loader.num_threads,
        prefetch=config.loader.prefetch,
    )
    written = first
    waiting: tuple[jax.Array, np.ndarray] | None = None
    with stream, Progress((batches - first) * batch_size, "crop", "features") as progress:
        # Rows of one batch are written while the devices work on the next.
        for index in range(first, batches + 1):
            done, waiting = waiting, None
            if index < batches and not stop.received:
                batch = next(stream)
                waiting = encode(encoder, program.put(batch), np.int32(index)), batch["label"]
            if done:
                for name, rows in zip(("features", "label"), done, strict=True):
                    files[name].append(np.asarray(rows))
                written += 1
                progress.update(batch_size)
    if stop.received:
        logger.info("%s: leaving after %d of %d batches", stop.reason, written, batches)
    return written == batches
