"""Evaluation while training: numbers, pictures, and the models worth keeping."""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

import cv2
import jax
import numpy as np
from etils import epath

from segmenter_jax.checkpoints.model_dir import WORKDIR_MODELS, load_description, save_model
from segmenter_jax.data.pipeline import eval_examples
from segmenter_jax.data.transforms import EvalTransform
from segmenter_jax.evaluation.metrics import SegmentationReport
from segmenter_jax.evaluation.report_file import REPORT_FILE
from segmenter_jax.evaluation.scoring import OnResult, score
from segmenter_jax.evaluation.worst import WorstImages
from segmenter_jax.inference.sliding_window import SlidingWindow
from segmenter_jax.pictures import overlay
from segmenter_jax.runtime.console import logger
from segmenter_jax.runtime.files import write_whole
from segmenter_jax.runtime.progress import counted
from segmenter_jax.training import sharding
from segmenter_jax.training.experiment import Experiment
from segmenter_jax.training.run_log import RunLog
from segmenter_jax.training.stop_request import StopRequest

BEST, LATEST = WORKDIR_MODELS

PREDICTIONS_FOLDER = "predictions"
WORST_FILE = "worst.png"

# Logged by every evaluation that was finished.
SCORE = "eval/mean_iou"


class Validation:
    """Evaluates parameters on the evaluation split and keeps the latest and the best model."""

    def __init__(self, experiment: Experiment, workdir: epath.Path, log: RunLog):
        """Prepares the engine; it compiles once, at the first evaluation.

        Args:
          experiment: the run.
          workdir: receives `model/`, `predictions/`, `report.json` and `worst.png`.
          log: receives scalars and pictures.
        """
        self._experiment, self._workdir, self._log = experiment, workdir, log
        d, program = experiment.description, experiment.program
        # Hosts see different numbers of windows, so each works on its own devices.
        devices = [x for x in program.mesh.devices.flat if x.process_index == jax.process_index()]
        self._engine = SlidingWindow(
            program.eval_model, experiment.settings, mean=d.mean, std=d.std, devices=devices
        )
        self._best = self._saved_score()

    def run(self, params: Any, step: int, stop: StopRequest) -> dict[str, float] | None:
        """Evaluates, saves the model, and logs.

        Args:
          params: parameters on the training mesh.
          step: number of updates done.
          stop: ends the evaluation early, and then nothing is saved or logged.

        Returns:
          The totals; None after a stop.
        """
        local = sharding.local_copy(params, self._experiment.program.mesh)
        report, worst = self._evaluate(local, step, stop)
        if stop.agreed_now():
            return None
        totals = report.totals()
        logger.info("step %d  %s", step, report.summary())
        self._save(params, report, step)
        if jax.process_index() == 0 and (sheet := worst.sheet()):
            with write_whole(self._workdir / WORST_FILE) as part:
                sheet.save(part)
        # Last: a logged evaluation is one that need not be done again.
        self._log.scalars(step, {f"eval/{name}": value for name, value in totals.items()})
        return totals

    def _evaluate(
        self, params: Any, step: int, stop: StopRequest
    ) -> tuple[SegmentationReport, WorstImages]:
        experiment = self._experiment
        spec = experiment.dataset.spec
        source = experiment.dataset.source(experiment.config.dataset.eval_split)
        examples = eval_examples(
            source,
            EvalTransform(spec),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            num_threads=experiment.config.loader.num_threads,
        )
        with contextlib.closing(examples):
            worst = WorstImages(spec)
            quiet, share = jax.process_index() > 0, -(-len(source) // jax.process_count())
            on_results = self._picture_writer(step, share), worst.add
            shown = counted(examples, share, "image", "evaluation", quiet)
            wanted = itertools.takewhile(lambda _: stop.received is None, shown)
            results = self._engine.predict(params, wanted)
            return score(results, spec, self._engine.settings.protocol(), on_results), worst

    def _picture_writer(self, step: int, share: int) -> OnResult:
        """Writes examples as image, label and prediction side by side.

        They are spread over the `share` examples of this process: neighbours may be alike.
        """
        spec = self._experiment.dataset.spec
        count = self._experiment.config.eval.num_pictures if jax.process_index() == 0 else 0
        chosen = set(np.linspace(0, share, min(count, share), endpoint=False, dtype=int).tolist())
        folder, numbers = self._workdir / PREDICTIONS_FOLDER, itertools.count()

        def write(example: Mapping[str, Any], ids: np.ndarray, matrix: np.ndarray) -> None:
            del matrix
            if next(numbers) not in chosen:
                return
            image = example["image"]
            views = [np.full_like(ids, 255), example["label"], ids]
            picture = np.concatenate([overlay(image, view, spec.colors) for view in views], axis=1)
            name = example["name"].replace("/", "_")
            self._log.picture(step, f"predictions/{name}", picture)
            _, data = cv2.imencode(".png", picture[..., ::-1])
            with write_whole(folder / f"{name}.png") as part:
                part.write_bytes(data.tobytes())

        return write

    def _scored_on(self) -> dict[str, Any]:
        """What scores must have in common to be compared, as JSON values."""
        config, dataset = self._experiment.config, self._experiment.dataset
        split = config.dataset.eval_split
        return {
            "dataset": dataset.name,
            "split": split,
            "num_images": dataset.splits[split],
            "protocol": self._engine.settings.protocol(),
        }

    def _saved_score(self) -> float:
        """Score of the best model so far; below every score if there is none to compare with."""
        try:
            provenance = load_description(self._workdir / BEST).provenance
            score, theirs = float(provenance["mean_iou"]), provenance["scored_on"]
        except ValueError:
            return -1.0
        if theirs == (ours := self._scored_on()):
            return score
        changes = [f"{k} was {theirs[k]!r}, is {ours[k]!r}" for k in ours if theirs[k] != ours[k]]
        logger.warning(
            "the next evaluation replaces %s, whose score is not comparable: %s",
            BEST,
            "; ".join(changes),
        )
        return -1.0

    def _save(self, params: Any, report: SegmentationReport, step: int) -> None:
        # A split without a labelled pixel has no score.
        score = None if math.isnan(report.mean_iou) else report.mean_iou
        d = self._experiment.description
        provenance = d.provenance | {
            "step": step,
            "mean_iou": score,
            "scored_on": self._scored_on(),
        }
        # How this machine computed is no property of the weights.
        model = dataclasses.replace(
            d.model, attention="auto", remat=False, scan_layers=False, head_norm="none"
        )
        description = dataclasses.replace(d, model=model, provenance=provenance)
        save_model(self._workdir / LATEST, description, params)
        if score is not None and score > self._best:
            self._best = score
            save_model(self._workdir / BEST, description, params)
        if jax.process_index() == 0:
            with write_whole(self._workdir / REPORT_FILE) as part:
                part.write_text(report.to_json())
