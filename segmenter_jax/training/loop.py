"""The training loop; every side effect of training is called from here."""

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Iterator

import jax
import ml_collections
import numpy as np
from clu import parameter_overview
from etils import epath
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from segmenter_jax.checkpoints.manager import CheckpointError, Checkpoints
from segmenter_jax.data.pipeline import Stream, train_batches
from segmenter_jax.runtime import processes
from segmenter_jax.runtime.compilation import logged_compilation
from segmenter_jax.runtime.console import Warnings, logger, warnings_last
from segmenter_jax.runtime.files import absolute, check_no_pattern
from segmenter_jax.runtime.ownership import sole_owner
from segmenter_jax.training import experiment as experiments
from segmenter_jax.training.diagnostics import (
    StepProfile,
    Watchdog,
    memory_rows,
    memory_table,
    parameter_lines,
    temporary_bytes,
)
from segmenter_jax.training.experiment import Experiment
from segmenter_jax.training.features import FeatureSource, as_they_are, kept_features
from segmenter_jax.training.resume import data_record, restore_or_init
from segmenter_jax.training.run_log import RunLog
from segmenter_jax.training.state import TrainState
from segmenter_jax.training.step_metrics import Progress, steps_in_flight
from segmenter_jax.training.stop_request import StopRequest
from segmenter_jax.training.validation import SCORE, Validation
from segmenter_jax.training.workdir import (
    check_same_run,
    keep_config,
    remembered_source,
    try_saving,
    with_origin,
)

# Seconds that a failed run waits for its background writes.
ABANDON_SECONDS = 20


def _count(noun: str, number: int) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _batches(experiment: Experiment, features: FeatureSource | None, start_step: int) -> Stream:
    config = experiment.config
    images = experiment.dataset.source(config.dataset.train_split)
    return train_batches(
        images if features is None else features,
        experiment.transform if features is None else as_they_are,
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


@dataclasses.dataclass
class _Loop:
    """State of one run between its steps; `run` is the loop itself."""

    experiment: Experiment
    state: TrainState
    checkpoints: Checkpoints
    log: RunLog
    validation: Validation
    profile: StepProfile
    stop: StopRequest
    features: FeatureSource | None

    def __post_init__(self) -> None:
        self.config = self.experiment.config
        self.step = int(self.state.step)
        self.nothing_to_do = self.step == self.config.total_steps
        in_flight = steps_in_flight(self.experiment.program.mesh)
        max_skipped = self.config.optimizer.max_skipped_updates
        self.progress = Progress(self.step, max_skipped, in_flight)
        self.watchdog = Watchdog(self.config.log.stall_seconds)
        self.stopped = False
        self.results: dict[str, float] = {}

    def run(self) -> dict[str, float] | None:
        """Trains from the current step to the last; returns as `train_and_evaluate` does."""
        total = self.config.total_steps
        # None: no bar where the output is no terminal.
        disable = None if jax.process_index() == 0 else True
        bar = tqdm(total=total, initial=self.step, unit="step", disable=disable, dynamic_ncols=True)
        batches = _batches(self.experiment, self.features, self.step)
        with logging_redirect_tqdm([logger]), bar, batches:
            self._evaluate_if_interrupted()
            if self.step < total:
                self._compile()
            self.progress.started = time.monotonic()
            # A copy to the devices that nobody asked for is an error: it costs time in each step.
            with jax.transfer_guard_host_to_device("disallow"):
                while self.step < total and not self.stopped:
                    self._train_step(next(batches), bar)
            if self.stopped:
                logger.info("%s: saving step %d and leaving", self.stop.reason, self.step)
                self._save()
                return None
        if self.nothing_to_do and not self.results:
            logger.info("already at step %d of %d: nothing to do", self.step, total)
        return self.results

    def _train_step(self, batch: dict[str, np.ndarray], bar: tqdm) -> None:
        """One step, and what is due after it."""
        config, program = self.config, self.experiment.program
        total = config.total_steps
        if self.profile.due(self.step):
            with self._between_steps():
                self.profile.switch()
        batch = program.put(batch)
        with jax.profiler.StepTraceAnnotation("train", step_num=self.step):
            self.state, metrics = program.step(self.state, batch)
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

    def _compile(self) -> None:
        """Compiles the step, and tells the memory it takes."""
        program = self.experiment.program
        with logged_compilation("the training step", program.mesh.devices.ravel()):
            temporary = temporary_bytes(program, self.config.batch_size)
        rows = memory_rows(program.abstract_state(), program.options, temporary)
        logger.info("%s", memory_table(rows))

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
        with self.watchdog.paused(), jax.transfer_guard_host_to_device("allow"):
            yield
        self.progress.paused += time.monotonic() - started

    def _evaluate(self) -> None:
        with self._between_steps():
            results = self.validation.run(self.state.eval_params, self.step, self.stop)
        if results is None:
            logger.info("the next start makes the evaluation of step %d", self.step)
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
            record = data_record(self.experiment, self.step)
            self.checkpoints.save(self.state, record, self.step)

    def close(self) -> None:
        """Waits for background writes."""
        # A failure of one leaves no other open. Last the profile, which may take long.
        self.watchdog.stop()
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


def train_and_evaluate(
    config: ml_collections.ConfigDict, workdir: os.PathLike | str
) -> dict[str, float] | None:
    """Trains a model, or resumes a run that was interrupted.

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
    check_no_pattern(workdir)
    with warnings_last() as warnings, contextlib.ExitStack() as owned:
        with processes.first_process_first():
            if jax.process_index() == 0:
                owned.enter_context(sole_owner(workdir))
            # A dataset that is not there yet is built once.
            experiment = experiments.build(config, remembered_source(workdir))
            workdir.mkdir(parents=True, exist_ok=True)
            check_same_run(config, workdir)
        return _train(experiment, workdir, warnings)


def _train(
    experiment: Experiment, workdir: epath.Path, warnings: Warnings
) -> dict[str, float] | None:
    """See `train_and_evaluate`; the workdir is this run's own."""
    config, mesh = experiment.config, experiment.program.mesh
    processes.connect(mesh)
    try_saving(mesh, workdir)
    with StopRequest() as stop:
        checkpoints = Checkpoints(workdir, config.checkpoint.keep)
        state, resumed = restore_or_init(experiment, checkpoints, workdir)
        step = int(state.step)
        if step > config.total_steps:
            logger.warning("already at step %d of %d: nothing to do", step, config.total_steps)
            checkpoints.close()
            return {}
        keep_config(config, workdir)
        description = with_origin(experiment.description, workdir)
        experiment = dataclasses.replace(experiment, description=description)
        _log_run(experiment, state, resumed)
        features = None
        if experiment.program.options.from_features:
            features = kept_features(experiment, state.params["encoder"], stop)
            if features is None:
                checkpoints.close()
                return None
        log = RunLog(workdir, step, enabled=jax.process_index() == 0)
        validation = Validation(experiment, workdir, log)
        profile = StepProfile(workdir, step, config.log.profile_steps)
        warnings.show()
        parts = checkpoints, log, validation, profile, stop, features
        loop = _Loop(experiment, state, *parts)
        try:
            results = loop.run()
        except BaseException as error:
            # Another process may be gone; then a running write waits for it in vain.
            if not (isinstance(error, jax.errors.JaxRuntimeError) and processes.distributed()):
                loop.abandon()
            raise
        loop.close()
        return results


def _log_run(experiment: Experiment, state: TrainState, resumed: bool) -> None:
    program, batch_size = experiment.program, experiment.config.batch_size
    dtype = program.model.config.compute_dtype(program.mesh)
    if not resumed:
        logger.info("\n  ".join(["parameters:", *parameter_lines(state.params)]))
    logger.info(
        "%s parameters, %s, %s, batch %d, compute %s",
        f"{parameter_overview.count_parameters(state.params):,}",
        _count("device", program.mesh.size),
        _count("host", jax.process_count()),
        batch_size,
        dtype,
    )
    if seconds := experiment.config.log.stall_seconds:
        logger.info("if no step ends for %g s, what every thread is doing is printed", seconds)
