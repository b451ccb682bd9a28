"""The training loop. Every side effect of training is here."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
from clu import parameter_overview
from etils import epath
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from segmenter_jax.checkpoints.manager import CheckpointError, Checkpoints
from segmenter_jax.data.pipeline import Stream, train_batches
from segmenter_jax.runtime import processes
from segmenter_jax.runtime.console import logger
from segmenter_jax.runtime.files import absolute
from segmenter_jax.training import experiment as experiments
from segmenter_jax.training import sharding
from segmenter_jax.training.experiment import Experiment
from segmenter_jax.training.memory import memory_rows, memory_table, temporary_bytes
from segmenter_jax.training.profiling import StepProfile
from segmenter_jax.training.run_log import RunLog
from segmenter_jax.training.start import initial_params, with_origin
from segmenter_jax.training.state import (
    TrainState,
    abstract_batch,
    abstract_train_state,
    place_train_state,
)
from segmenter_jax.training.step import make_train_step
from segmenter_jax.training.step_metrics import Progress
from segmenter_jax.training.stop_request import StopRequest
from segmenter_jax.training.validation import SCORE, Validation
from segmenter_jax.training.watchdog import Watchdog
from segmenter_jax.training.workdir import check_same_run

# Seconds that a failed run waits for its background writes.
ABANDON_SECONDS = 20


def _count(noun: str, number: int) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _restore_or_init(
    experiment: Experiment, checkpoints: Checkpoints, workdir: epath.Path
) -> TrainState:
    parts = experiment.model, experiment.optimizer, experiment.options, experiment.mesh
    restored = checkpoints.restore(abstract_train_state(*parts))
    if restored is None:
        return place_train_state(initial_params(experiment, workdir), *parts)
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

    def __init__(
        self,
        experiment: Experiment,
        workdir: epath.Path,
        stop: StopRequest,
        watchdog: Watchdog,
    ):
        self.workdir, self.stop, self.watchdog = workdir, stop, watchdog
        self.config = experiment.config
        self.checkpoints = Checkpoints(workdir, self.config.checkpoint.keep)
        self.state = _restore_or_init(experiment, self.checkpoints, workdir)
        experiment = self.experiment = with_origin(experiment, workdir)
        self.step = int(self.state.step)
        self.log = RunLog(workdir, self.step, enabled=jax.process_index() == 0)
        self.validation = Validation(experiment, workdir, self.log)
        self.progress = Progress(self.step, self.config.optimizer.max_skipped_updates)
        self.profile = StepProfile(workdir, self.step, self.config.log.profile_steps)
        self.stopped = False
        self.results: dict[str, float] = {}

    def run(self) -> dict[str, float] | None:
        """Trains from the current step to the last; returns as `train_and_evaluate` does."""
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
        with logging_redirect_tqdm([logger]), bar, batches:
            self._evaluate_if_interrupted()
            if self.step < total:
                self._log_memory(step_fn)
            self.progress.started = time.monotonic()
            while self.step < total and not self.stopped:
                if self.profile.due(self.step):
                    with self._between_steps():
                        self.profile.switch()
                batch = sharding.put_batch(next(batches), experiment.mesh)
                with jax.profiler.StepTraceAnnotation("train", step_num=self.step):
                    self.state, metrics = step_fn(self.state, batch)
                self.step += 1
                self.progress.add(metrics)
                self.watchdog.beat()
                bar.update()
                if _due(self.step, config.log.every_steps, total):
                    self._write_metrics(bar)
                evaluate = _due(self.step, config.eval.every_steps, total)
                # First, since an evaluation may take longer than a scheduler's notice.
                if evaluate or _due(self.step, config.checkpoint.every_steps, total):
                    self._save()
                if evaluate:
                    self._evaluate()
                self.stopped = self.stopped or self.stop.agreed()
            if self.stopped:
                logger.info("%s: saving step %d and leaving", self.stop.reason, self.step)
                self._save()
                return None
        return self.results

    def _log_memory(self, step_fn: Any) -> None:
        e = self.experiment
        target = abstract_train_state(e.model, e.optimizer, e.options, e.mesh)
        batch = abstract_batch(e.model.config, self.config.batch_size, e.mesh)
        temporary = temporary_bytes(step_fn, target, batch)
        logger.info("%s", memory_table(memory_rows(target, e.options, temporary)))

    def _write_metrics(self, bar: tqdm) -> None:
        values = self.progress.fetch()
        values["images_per_second"] = values["steps_per_second"] * self.config.batch_size
        self.log.scalars(self.step, {f"train/{k}": v for k, v in values.items()})
        if values["skipped"]:
            logger.warning("%.0f %% of the last updates were skipped", 100 * values["skipped"])
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
        with self.watchdog.paused():
            yield
        self.progress.paused += time.monotonic() - started

    def _evaluate(self) -> None:
        with self._between_steps():
            results = self.validation.run(self.state.eval_params, self.step, self.stop)
        if results is None:
            logger.info("the evaluation of step %d is left for the next start", self.step)
            self.stopped = True
        else:
            self.results = results

    def _evaluate_if_interrupted(self) -> None:
        """Makes up for an evaluation that the end of an earlier start cut short."""
        owed = self.step > 0 and _due(
            self.step, self.config.eval.every_steps, self.config.total_steps
        )
        if owed and not processes.broadcast(self.log.has(self.step, SCORE)):
            self._evaluate()

    def _save(self) -> None:
        with self._between_steps():
            position = _data_position(self.experiment, self.step)
            self.checkpoints.save(self.state, position, self.step)

    def close(self) -> None:
        """Waits for background writes."""
        # A failure of one leaves no other open. Last the profile, which may take long.
        with contextlib.ExitStack() as stack:
            stack.callback(self.profile.close)
            stack.callback(self.log.close)
            stack.callback(self.checkpoints.close)

    def abandon(self) -> None:
        """As `close` after a failure: not for long, and without a failure of its own."""

        def close() -> None:
            try:
                self.close()
            except CheckpointError as error:
                logger.warning("%s", error)

        closing = threading.Thread(target=close, daemon=True)
        closing.start()
        closing.join(ABANDON_SECONDS)


def train_and_evaluate(config: ml_collections.ConfigDict, workdir: str) -> dict[str, float] | None:
    """Trains a model, or goes on with a run that was interrupted.

    Args:
      config: see configs/common.py.
      workdir: folder of the run: config, checkpoints, models, metrics, pictures.

    Returns:
      The last evaluation's `mean_iou`, `pixel_accuracy` and `mean_accuracy`, empty if it was made
      by an earlier start; None if a signal stopped the run before its end.

    Raises:
      ValueError: something in the config, the dataset or the workdir is wrong.
      NonFiniteLossError: training diverged.
      ProcessError: another process of the run failed.
    """
    workdir = absolute(workdir)
    # A dataset that is not there yet is built once.
    with processes.first_process_first():
        experiment = experiments.build(config)
        workdir.mkdir(parents=True, exist_ok=True)
        check_same_run(config, workdir)
    processes.connect(experiment.mesh)
    with Watchdog(config.log.stall_seconds) as watchdog, StopRequest() as stop:
        loop = _Loop(experiment, workdir, stop, watchdog)
        try:
            logger.info(
                "%s\n%s, %s, %s",
                parameter_overview.get_parameter_overview(loop.state.params, include_stats=False),
                _count("device", experiment.mesh.size),
                _count("host", jax.process_count()),
                f"batch {config.batch_size}, compute {experiment.model.config.compute_dtype}",
            )
            results = loop.run()
        except jax.errors.JaxRuntimeError:
            # Another process may be gone; then a running write waits for it in vain.
            if not processes.several():
                loop.abandon()
            raise
        except BaseException:
            loop.abandon()
            raise
        loop.close()
        return results
