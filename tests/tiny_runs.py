"""Tiny training runs as a user would start them: command lines, a small dataset, a small model."""

import json
import os
import pathlib
import subprocess
import sys

import cv2
import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp

from segmenter_jax.configs import folder as folder_config
from segmenter_jax.data.builders.shapes import render_scene
from segmenter_jax.data.specs import SHAPES

ROOT = pathlib.Path(__file__).resolve().parents[1]

OVERRIDES = {
    "total_steps": 6,
    "batch_size": 4,
    "model.width": 64,
    "model.depth": 2,
    "model.num_heads": 2,
    "model.decoder_depth": 1,
    "model.drop_path_rate": 0.1,
    "dataset.name": "tiny",
    "augment.crop_size": 48,
    "augment.base_size": 48,
    "eval.window": 48,
    "eval.stride": 32,
    "eval.batch_size": 4,
    "eval.every_steps": 0,
    "checkpoint.every_steps": 3,
    "log.every_steps": 2,
    "optimizer.warmup_steps": 2,
}

# Overrides with which starting a process takes longer than training.
LIGHT = {
    "model__depth": 1,
    "model__decoder": "linear",
    "augment__photometric": False,
    "augment__crop_size": 32,
    "augment__base_size": 32,
    "eval__window": 32,
}


def write_dataset(folder: pathlib.Path, train: int = 6, val: int = 3) -> pathlib.Path:
    """Writes a folder dataset of generated scenes and returns the folder."""
    for split, source, count in (("train", "train", train), ("val", "validation", val)):
        for index in range(count):
            image, label = render_scene(source, index)
            for kind, array, suffix in (
                ("images", image[..., ::-1], "jpg"),
                ("annotations", label, "png"),
            ):
                path = folder / kind / split / f"scene_{index}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(str(path), array)
    classes = [
        {"id": i, "name": name, "color": list(color)}
        for i, (name, color) in enumerate(zip(SHAPES.class_names, SHAPES.colors, strict=True))
    ]
    (folder / "classes.json").write_text(json.dumps({"classes": classes, "ignore_ids": [255]}))
    return folder


def environment(devices: int = 1) -> dict[str, str]:
    """Environment of a child process with simulated CPU devices."""
    flags = os.environ["XLA_FLAGS"].split()
    kept = [flag for flag in flags if "device_count" not in flag]
    flag = f"--xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": " ".join([*kept, flag])}


def run_python(*arguments: object, devices: int = 1) -> subprocess.CompletedProcess:
    """Runs the interpreter in the repository's root and waits for it."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=900,
    )


def _values(source: pathlib.Path, overrides: dict[str, object]) -> dict[str, object]:
    values = {"dataset.source": source, "dataset.data_dir": source.parent / "built"}
    return OVERRIDES | values | {n.replace("__", "."): v for n, v in overrides.items()}


def tiny_config(source: pathlib.Path, **overrides: object) -> ml_collections.ConfigDict:
    """Config of a tiny run in this process, on one device; write "__" for "." in names."""
    values = {"mesh.num_devices": 1} | _values(source, overrides)
    config = folder_config.get_config()
    config.update_from_flattened_dict(
        {n: str(v) if isinstance(v, pathlib.Path) else v for n, v in values.items()}
    )
    return config


def train_arguments(workdir: pathlib.Path, source: pathlib.Path, **overrides: object) -> list[str]:
    """Arguments of a tiny run of configs/folder.py; write "__" for "." in names."""
    flags = [f"--config.{name}={value}" for name, value in _values(source, overrides).items()]
    return [
        "-m",
        "segmenter_jax.main",
        "--config=configs/folder.py",
        f"--workdir={workdir}",
        *flags,
    ]


def state_bytes(workdir: pathlib.Path, step: int) -> dict[str, bytes]:
    """Every array of a checkpoint as bytes, by name; saved by whatever devices."""
    folder = workdir / "checkpoints" / str(step) / "state"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        names = checkpointer.metadata(folder).item_metadata.tree
        kind = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), names)
        state = checkpointer.restore(folder, restore_args=kind)
    paths, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in paths}
