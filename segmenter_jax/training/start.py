"""Training from Python: what the command does, and the model it leaves."""

import os
from typing import Any

import ml_collections

from segmenter_jax.inference.predictor import Predictor, load
from segmenter_jax.runtime.compilation import prepare_compilation
from segmenter_jax.runtime.config_flag import read_config
from segmenter_jax.runtime.console import setup_console
from segmenter_jax.runtime.host import keep_freed_memory
from segmenter_jax.training.loop import train_and_evaluate


def train(
    config: str | ml_collections.ConfigDict, workdir: os.PathLike | str, **overrides: Any
) -> Predictor:
    """Trains a model, or goes on with a run, and loads the model that it leaves.

    Args:
      config: name of a config, path of a file, or a config, which is used as it is.
      workdir: folder of the run; everything that the command leaves is there.
      **overrides: fields of the config, "__" for each dot: `dataset__source="mine"`.

    Returns:
      What `segmenter_jax.load(workdir)` does.

    Raises:
      ValueError: there is no such config or field, or something in the config, the dataset or the
        workdir is wrong.
      KeyboardInterrupt: a signal stopped the run, which was saved.
    """
    if isinstance(config, str):
        changes = {name.replace("__", "."): value for name, value in overrides.items()}
        config = read_config(config, [f"--config.{n}={value}" for n, value in changes.items()])
    elif overrides:
        raise ValueError(f"set these fields in the config itself: {', '.join(overrides)}")
    keep_freed_memory()
    prepare_compilation()
    setup_console(is_main_process=True)
    if train_and_evaluate(config, workdir) is None:
        raise KeyboardInterrupt(f"{workdir}: stopped by a signal and saved; train again to go on")
    return load(workdir)
