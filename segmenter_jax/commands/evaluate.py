"""A model, or the predictions of any tool, scored on a split."""

import argparse
import collections
import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from PIL import Image

from segmenter_jax.data.datasets import DATA_DIR, build_dataset
from segmenter_jax.data.pipeline import eval_examples
from segmenter_jax.data.specs import DatasetSpec
from segmenter_jax.data.transforms import EvalTransform, ImageTransform
from segmenter_jax.evaluation.binary_metrics import BinaryScores
from segmenter_jax.evaluation.scoring import check_dataset, read_predictions, score
from segmenter_jax.evaluation.submission import encode_submission, submission_name
from segmenter_jax.evaluation.worst import WorstImages
from segmenter_jax.inference.predictor import load
from segmenter_jax.inference.sliding_window import Example, Maps
from segmenter_jax.pictures.figures import calibration_figure, confusion_figure
from segmenter_jax.runtime.command import protocol_overrides
from segmenter_jax.runtime.compilation import prepare_compilation
from segmenter_jax.runtime.files import write_whole
from segmenter_jax.runtime.host import keep_freed_memory
from segmenter_jax.runtime.ownership import sole_owner
from segmenter_jax.runtime.progress import counted
from segmenter_jax.training.workdir import evaluated_on


@dataclasses.dataclass(frozen=True)
class _Wanted:
    """The flags that ask for more than the table; a file is None where it is not wanted."""

    boundary_iou: bool
    binary: bool
    calibration: str | None
    confusion: str | None
    worst: str | None
    json: str | None
    csv: str | None
    save_predictions: str | None

    def check_unlabelled(self, split: str, by_model: bool) -> None:
        """Refuses what needs labels."""
        given = [f.name for f in dataclasses.fields(self) if getattr(self, f.name)]
        needing = [f"--{name}" for name in given if name != "save_predictions"]
        if needing or not (by_model and self.save_predictions):
            without = f", without {', '.join(needing)}" if needing else ""
            raise ValueError(
                f"{split} has no labels: it can only be predicted, by a model and with "
                f"--save_predictions{without}"
            )

    def check_files(self, overrides: dict[str, Any]) -> None:
        """Refuses what files of class ids cannot give, or would ignore."""
        for flag, missing in (("calibration", "confidence"), ("binary", "probabilities")):
            if getattr(self, flag):
                raise ValueError(f"files of class ids have no {missing}: no --{flag} for them")
        if overrides:
            raise ValueError(
                "files of class ids are scored as they are: --window, --stride, --scales, --flip, "
                "--native and --batch_size are for models"
            )

    def maps(self) -> tuple[str, ...]:
        """Outputs of the engine that are needed."""
        wanted = {"ids": True, "confidence": self.calibration, "probs": self.binary}
        return tuple(name for name, needed in wanted.items() if needed)


def _complete(arguments: argparse.Namespace) -> None:
    """Fills in what is not given: the dataset that the model's run was evaluated on."""
    run = evaluated_on(arguments.model, arguments.dataset) if arguments.model else None
    if arguments.dataset is None and run is None:
        raise argparse.ArgumentError(
            None, "--dataset is missing: the model is of no run that would tell it"
        )
    wanted = run or {"data_dir": DATA_DIR, "split": "validation"}
    missing = {k: v for k, v in wanted.items() if getattr(arguments, k) is None}
    vars(arguments).update(missing)
    if run and missing:
        taken = " ".join(f"--{name}={value}" for name, value in missing.items())
        print(f"as in the run: {taken}", file=sys.stderr)


def run(arguments: argparse.Namespace) -> None:
    """Scores what the arguments name, writes the files that are wanted, and prints."""
    _complete(arguments)
    wanted = _Wanted(**{f.name: getattr(arguments, f.name) for f in dataclasses.fields(_Wanted)})
    overrides = protocol_overrides(arguments)
    keep_freed_memory()
    prepare_compilation()
    # First what fails fast: building a dataset may take long.
    if by_model := arguments.model is not None:
        predictor = load(arguments.model)
        engine = predictor.engine(**overrides)
    else:
        wanted.check_files(overrides)
    dataset = build_dataset(arguments.dataset, arguments.data_dir, arguments.source)
    spec = dataset.spec
    source = dataset.source(arguments.split, needs_labels=False)
    labelled = arguments.split not in dataset.unlabelled
    if not labelled:
        wanted.check_unlabelled(f"split {arguments.split!r} of dataset {dataset.name!r}", by_model)
    transform = EvalTransform(spec) if labelled else ImageTransform(spec)
    folder = wanted.save_predictions
    owned = sole_owner(folder) if folder else contextlib.nullcontext()
    with owned, contextlib.closing(eval_examples(source, transform)) as read:
        examples = counted(read, len(source), "image", quiet=arguments.quiet)
        if by_model:
            check_dataset(dataset, predictor.description)
            protocol = engine.settings.protocol()
            results = engine.predict(predictor.params, examples, wanted.maps())
        else:
            protocol = f"predictions of {arguments.predictions}"
            folder = pathlib.Path(arguments.predictions).expanduser()
            trained = arguments.prediction_ids == "trained"
            results = read_predictions(folder, examples, spec, trained)
        if wanted.save_predictions:
            results = _saving(results, spec, pathlib.Path(wanted.save_predictions).expanduser())
        if labelled:
            _score(wanted, spec, protocol, results)
        else:
            collections.deque(results, maxlen=0)
            print(
                f"split {arguments.split!r} has no labels, so no scores; "
                f"predictions: {wanted.save_predictions}"
            )


def _saving(
    results: Iterable[tuple[Example, Maps]], spec: DatasetSpec, folder: pathlib.Path
) -> Iterator[tuple[Example, Maps]]:
    """Passes results on, once saved as PNG files as the dataset's own scorer expects them."""
    for example, maps in results:
        with write_whole(folder / submission_name(spec, example["name"])) as part:
            part.write_bytes(encode_submission(maps["ids"], spec))
        yield example, maps


def _score(
    wanted: _Wanted,
    spec: DatasetSpec,
    protocol: str,
    results: Iterable[tuple[Example, Maps]],
) -> None:
    """Counts, writes the files that are wanted, and prints."""
    worst = WorstImages(spec) if wanted.worst else None
    binary = BinaryScores(spec) if wanted.binary else None
    if binary:
        results = binary.collect(results)
    calibration = wanted.calibration is not None
    on_results = (worst.add,) if worst else ()
    report = score(results, spec, protocol, on_results, wanted.boundary_iou, calibration)
    more = {"binary": binary.means()} if binary else {}
    for path, text in ((wanted.json, lambda: report.to_json(**more)), (wanted.csv, report.to_csv)):
        if path:
            with write_whole(path) as part:
                part.write_bytes(text().encode())
    if wanted.confusion:
        title = f"mean IoU {100 * report.mean_iou:.2f} %, {report.num_images} images"
        _save(confusion_figure(report.matrix, report.classes, title), wanted.confusion)
    if wanted.calibration:
        title = f"calibration error {100 * report.calibration_error:.2f} %"
        _save(calibration_figure(*report.reliability(), title), wanted.calibration)
    if worst:
        if (sheet := worst.sheet()) is None:
            raise ValueError("no image has a labelled pixel, so none is the worst")
        _save(sheet, wanted.worst)
    # Last: what was computed is safe then, whatever becomes of the terminal.
    print(report.table())
    if binary:
        print(binary.table())


def _save(picture: Image.Image, path: str) -> None:
    with write_whole(path) as part:
        picture.save(part)
