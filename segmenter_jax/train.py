"""The training loop. Every side effect of training is here."""

import collections
import contextlib
import dataclasses
import json
import math
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import jax
import ml_collections
import numpy as np
from clu import parameter_overview
from etils import epath
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from segmenter_jax import experiment as experiments
from segmenter_jax import sharding
from segmenter_jax.checkpoints.manager import Checkpoints
from segmenter_jax.data.pipeline import Stream, train_batches
from segmenter_jax.experiment import Experiment
from segmenter_jax.logging import RunLog, logger
from segmenter_jax.train_step import (
    TrainState,
    abstract_train_state,
    init_params,
    make_train_step,
    place_train_state,
)
from segmenter_jax.validation import Validation

# Steps the host may run ahead of the device: enough to hide latency, few enough to bound memory.
MAX_STEPS_IN_FLIGHT = 2

CONFIG_FILE = "config.json"


class NonFiniteLossError(RuntimeError):
    """The loss became NaN or infinite; the last good checkpoint is kept."""


class StopRequest:
    """Turns the first SIGTERM or SIGINT into a flag, so that a run can save and leave."""

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.received: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        # Python delivers signals to the main thread only; elsewhere there is nothing to catch.
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._handle) for s in self.SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _handle(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number).name
        # A second signal acts at once.
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


@dataclasses.dataclass
class Progress:
    """Metrics of the steps since the last log line; still on the device until `fetch`."""

    step: int
    pending: collections.deque = dataclasses.field(default_factory=collections.deque)
    started: float = dataclasses.field(default_factory=time.monotonic)
    paused: float = 0.0

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of one more step, and waits if the host is too far ahead."""
        self.pending.append(metrics)
        if len(self.pending) > MAX_STEPS_IN_FLIGHT:
            self.pending[-1 - MAX_STEPS_IN_FLIGHT]["loss"].block_until_ready()

    def check_finite(self) -> list[dict[str, np.ndarray]]:
        """Metrics of the pending steps, on the host.

        Raises:
          NonFiniteLossError: names the first step whose loss is not finite.
        """
        rows = jax.device_get(list(self.pending))
        for offset, row in enumerate(rows):
            # Finite loss with infinite gradients: the parameters are lost one step earlier.
            for name in ("loss", "grad_norm"):
                if math.isfinite(row[name]):
                    continue
                raise NonFiniteLossError(
                    f"the {name} of step {self.step + offset + 1} is {float(row[name])}, "
                    f"with learning rate {float(row['learning_rate']):.3g}; the checkpoint before "
                    "it is kept. A lower learning rate or optimizer.clip_norm may help"
                )
        return rows

    def fetch(self) -> dict[str, float]:
        """Means over the pending steps, the rate, and a fresh start; raises as `check_finite`."""
        rows = self.check_finite()
        seconds = max(time.monotonic() - self.started - self.paused, 1e-9)
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        means["learning_rate"] = float(rows[-1]["learning_rate"])
        means["steps_per_second"] = len(rows) / seconds
        self.step += len(rows)
        self.pending.clear()
        self.started, self.paused = time.monotonic(), 0.0
        return means


def _count(noun: str, number: int) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _check_same_run(config: ml_collections.ConfigDict, workdir: epath.Path) -> None:
    """Saves the config; on resume, reports what changed and refuses what cannot change."""
    text = json.dumps(config.to_dict(), indent=2) + "\n"
    path = workdir / CONFIG_FILE
    if path.exists():
        old, new = (_flatten(json.loads(t)) for t in (path.read_text(), text))
        changed = {
            k: (old.get(k), new.get(k)) for k in sorted(old | new) if old.get(k) != new.get(k)
        }
        fixed = [name for name in changed if _fixes_state(name)]
        if fixed:
            listed = "; ".join(f"{k} was {changed[k][0]!r}, is {changed[k][1]!r}" for k in fixed)
            raise ValueError(f"{workdir} holds a run of another config: {listed}")
        for name, (was, now) in changed.items():
            logger.warning("config.%s was %r when this run began, is now %r", name, was, now)
    if jax.process_index() == 0:
        temporary = workdir / f".{CONFIG_FILE}.incomplete"
        temporary.write_text(text)
        temporary.replace(path)


def _fixes_state(name: str) -> bool:
    """Whether a checkpoint fits only runs with the same value of this field of the config."""
    if name in ("model.attention", "model.remat", "model.dtype"):
        return False
    fixed = ("seed", "optimizer.name", "augment.crop_size")
    return name.startswith("model.") or name in fixed


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        inner = (
            _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        )
        flat |= inner
    return flat


def _initial_state(experiment: Experiment) -> TrainState:
    """Fresh parameters, or those of `config.init_from`."""
    config, model = experiment.config, experiment.model
    params = init_params(model, config.seed)
    if config.init_from:
        # Readers of foreign formats are needed here only.
        from segmenter_jax.convert import load_init

        params, report = load_init(config.init_from, model.config, params)
        logger.info("parameters from %s\n%s", config.init_from, report)
    return place_train_state(params, model, experiment.optimizer, experiment.mesh)


def _restore_or_init(experiment: Experiment, checkpoints: Checkpoints) -> TrainState:
    target = abstract_train_state(experiment.model, experiment.optimizer, experiment.mesh)
    restored = checkpoints.restore(target)
    if restored is None:
        return _initial_state(experiment)
    state, position = restored
    logger.info("resumed at step %d", int(state.step))
    expected = _data_position(experiment, int(state.step))
    if position != expected:
        logger.warning(
            "the data order changes here: saved with %s, goes on with %s", position, expected
        )
    return state


def _data_position(experiment: Experiment, step: int) -> dict[str, Any]:
    """The order of the data is a function of these values and of nothing else."""
    config = experiment.config
    return {
        "next_batch": step,
        "batch_size": config.batch_size,
        "seed": config.seed,
        "dataset": config.dataset.name,
        "num_records": experiment.dataset.splits[config.dataset.train_split],
    }


def _batches(experiment: Experiment, start_step: int) -> Stream:
    config = experiment.config
    return train_batches(
        experiment.dataset.source(config.dataset.train_split),
        experiment.transform,
        global_batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=config.loader.num_workers,
        num_threads=config.loader.num_threads,
        prefetch=config.loader.prefetch,
    )


def _due(step: int, every: int, total: int) -> bool:
    return step == total or (every > 0 and step % every == 0)


class _Loop:
    """State of one run between its steps; `run` is the loop itself."""

    def __init__(self, experiment: Experiment, workdir: epath.Path):
        self.experiment, self.workdir = experiment, workdir
        self.config = experiment.config
        self.checkpoints = Checkpoints(workdir, self.config.checkpoint.keep)
        self.state = _restore_or_init(experiment, self.checkpoints)
        self.step = int(self.state.step)
        self.log = RunLog(workdir, self.step, enabled=jax.process_index() == 0)
        self.validation = Validation(experiment, workdir, self.log)
        self.progress = Progress(self.step)
        self.results: dict[str, float] = {}

    def run(self) -> dict[str, float]:
        """Trains from the current step to the last; returns the last evaluation's numbers."""
        config, experiment = self.config, self.experiment
        step_fn = make_train_step(
            experiment.model,
            experiment.optimizer,
            experiment.schedule,
            experiment.options,
            experiment.mesh,
            config.seed,
        )
        total = config.total_steps
        # None: no bar where the output is no terminal.
        disable = None if jax.process_index() == 0 else True
        bar = tqdm(total=total, initial=self.step, unit="step", disable=disable, dynamic_ncols=True)
        batches = _batches(experiment, self.step)
        with StopRequest() as stop, logging_redirect_tqdm([logger]), bar, batches:
            while self.step < total and not stop.received:
                batch = sharding.put_batch(next(batches), experiment.mesh)
                with jax.profiler.StepTraceAnnotation("train", step_num=self.step):
                    self.state, metrics = step_fn(self.state, batch)
                self.step += 1
                self.progress.add(metrics)
                bar.update()
                if _due(self.step, config.log.every_steps, total):
                    self._write_metrics(bar)
                if _due(self.step, config.eval.every_steps, total):
                    self._evaluate()
                if _due(self.step, config.checkpoint.every_steps, total):
                    self._save()
            if stop.received:
                logger.info("%s: saving step %d and leaving", stop.received, self.step)
                self._save()
        return self.results

    def _write_metrics(self, bar: tqdm) -> None:
        values = self.progress.fetch()
        values["images_per_second"] = values["steps_per_second"] * self.config.batch_size
        self.log.scalars(self.step, {f"train/{k}": v for k, v in values.items()})
        bar.set_postfix(loss=f"{values['loss']:.3f}")
        remaining = (self.config.total_steps - self.step) / values["steps_per_second"]
        logger.info(
            "step %d/%d  loss %.4f  lr %.3g  grad norm %.3g  %.1f images/s  %s left",
            self.step,
            self.config.total_steps,
            values["loss"],
            values["learning_rate"],
            values["grad_norm"],
            values["images_per_second"],
            tqdm.format_interval(remaining),
        )

    @contextlib.contextmanager
    def _between_steps(self) -> Iterator[None]:
        """Work that the rate of training leaves out, and that a diverged model never reaches."""
        started = time.monotonic()
        self.progress.check_finite()
        yield
        self.progress.paused += time.monotonic() - started

    def _evaluate(self) -> None:
        with self._between_steps():
            self.results = self.validation.run(self.state.params, self.step)

    def _save(self) -> None:
        with self._between_steps():
            position = _data_position(self.experiment, self.step)
            self.checkpoints.save(self.state, position, self.step)

    def close(self) -> None:
        """Waits for background writes."""
        self.checkpoints.close()
        self.log.close()


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str) -> dict[str, float]:
    """Trains a model, or goes on with a run that was interrupted.

    Args:
      config: see configs/common.py.
      workdir: folder of the run: config, checkpoints, models, metrics, pictures.

    Returns:
      The last evaluation's `mean_iou`, `pixel_accuracy` and `mean_accuracy`; empty if the run was
      stopped before one.

    Raises:
      ValueError: something in the config, the dataset or the workdir is wrong.
      NonFiniteLossError: training diverged.
    """
    experiment = experiments.build(config)
    workdir = epath.Path(workdir).expanduser().resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    _check_same_run(config, workdir)
    loop = _Loop(experiment, workdir)
    try:
        logger.info(
            "%s\n%s, %s, %s",
            parameter_overview.get_parameter_overview(loop.state.params, include_stats=False),
            _count("device", experiment.mesh.size),
            _count("host", jax.process_count()),
            f"batch {config.batch_size}, compute {experiment.description.model.dtype}",
        )
        return loop.run()
    finally:
        loop.close()
