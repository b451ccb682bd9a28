"""Segments files, folders and videos from the command line.

python -m segmenter_jax.predict MODEL photo.jpg folder/ clip.mp4 -o overlays/
"""

import argparse
import collections
import glob
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image
from tqdm import tqdm

from segmenter_jax.checkpoints.checksums import weights_digest
from segmenter_jax.data.encoded import IMAGE_SUFFIXES
from segmenter_jax.data.listing import describe_left_out, list_folder, list_pattern, printable
from segmenter_jax.inference.merging import Maps
from segmenter_jax.inference.predictor import Predictor, read_model
from segmenter_jax.inference.results import (
    MISSING,
    SAVED,
    Results,
    Wanted,
    is_result,
    is_video,
)
from segmenter_jax.inference.sliding_window import SlidingWindow
from segmenter_jax.pictures.video import (
    VIDEO_SUFFIXES,
    CutShortError,
    declared_frames,
    read_frames,
)
from segmenter_jax.runtime.command import (
    FAILED,
    add_protocol_flags,
    protocol_overrides,
    run_command,
)
from segmenter_jax.runtime.compilation import prepare_compilation
from segmenter_jax.runtime.errors import first_few, one_line
from segmenter_jax.runtime.host import keep_freed_memory
from segmenter_jax.runtime.ownership import sole_owner


def planned_outputs(inputs: Sequence[str]) -> dict[pathlib.Path, pathlib.PurePath]:
    """What to read, and the name of its results without suffix, relative to the output folder.

    Args:
      inputs: files; folders, whose pictures and videos are taken by the rule of `data.listing` and
        mirrored; and patterns such as "photos/**/*.jpg", mirrored below their fixed part.

    Returns:
      A mapping in the order of the inputs, folders and matches sorted.

    Raises:
      ValueError: an input does not exist or matches nothing, a folder has no pictures but results
        of earlier runs, which are left out, or two files would have the same results.
    """
    found: dict[pathlib.Path, pathlib.PurePath] = {}
    for name in inputs:
        found |= _without_results(name, _expand(name))
    stems = collections.Counter(relative.with_suffix("") for relative in found.values())
    planned = {}
    for path, relative in found.items():
        stem = relative.with_suffix("")
        if stems[stem] > 1:
            stem = stem.with_name(f"{stem.name}_{relative.suffix[1:]}")
        planned[path] = stem
    taken: dict[pathlib.PurePath, pathlib.Path] = {}
    for path, stem in planned.items():
        if stem in taken:
            raise ValueError(f"{taken[stem]} and {path} would both write {stem}")
        taken[stem] = path
    return planned


def _expand(name: str) -> dict[pathlib.Path, pathlib.PurePath]:
    """Files of one input, and their paths below it; says what was left out."""
    path = pathlib.Path(name).expanduser()
    if path.is_dir():
        found, problem = list_folder(path), "no pictures in this folder"
    elif path.exists():
        return {path: pathlib.PurePath(path.name)}
    elif glob.has_magic(name):
        found, problem = list_pattern(path), "no pictures match"
    else:
        raise ValueError(f"{name}: no such file or folder")
    found.keep(IMAGE_SUFFIXES + VIDEO_SUFFIXES)
    left_out = describe_left_out(found.left_out)
    if not found.files:
        raise ValueError(f"{name}: {problem}" + (f"; left out: {left_out}" if left_out else ""))
    if left_out:
        print(f"{printable(name)}: left out: {left_out}", file=sys.stderr)
    return {place: pathlib.PurePath(below) for below, place in found.files.items()}


def _without_results(
    name: str, found: dict[pathlib.Path, pathlib.PurePath]
) -> dict[pathlib.Path, pathlib.PurePath]:
    kept = {path: below for path, below in found.items() if not is_result(path, below)}
    if results := len(found) - len(kept):
        if not kept:
            raise ValueError(f"{name}: no pictures but {results} results of earlier runs")
        print(f"{name}: left out: {results} results of earlier runs", file=sys.stderr)
    return kept


class _Run:
    """Segments inputs and writes their results; a bad input is reported and skipped.

    Attributes:
      failed: inputs that were skipped.
    """

    def __init__(
        self,
        predictor: Predictor,
        engine: SlidingWindow,
        outputs: tuple[str, ...],
        results: Results,
    ):
        self._predictor, self._engine, self._outputs = predictor, engine, outputs
        self._results = results
        self.failed: list[pathlib.Path] = []

    def segment_pictures(self, paths: Sequence[pathlib.Path]) -> None:
        """Segments pictures, several in a batch."""
        bar = tqdm(total=len(paths), unit="image", disable=None)

        def examples() -> Iterator[dict[str, Any]]:
            for path in paths:
                try:
                    image = self._predictor.read(path)
                    self._engine.check(image)
                except (ValueError, OSError) as error:
                    self._report(path, error)
                    bar.update()
                else:
                    yield {"image": image, "path": path}

        with bar:
            for example, maps in self._predict(examples()):
                self._results.write_picture(example["path"], example["image"], maps)
                self._results.finish(example["path"])
                bar.update()

    def segment_video(self, path: pathlib.Path) -> None:
        """Segments a video, several frames in a batch."""
        missing: list[CutShortError] = []

        def examples() -> Iterator[dict[str, Any]]:
            try:
                for frame in read_frames(path):
                    image = self._predictor.read(Image.fromarray(frame.image))
                    yield {"image": image, "frame": frame._replace(image=image)}
            except CutShortError as error:
                # Those that are there are results all the same.
                missing.append(error)

        try:
            total = declared_frames(path) or None
            results = self._predict(examples())
            with tqdm(results, total=total, unit="frame", desc=path.name, disable=None) as bar:
                frames = ((example["frame"], maps) for example, maps in bar)
                self._results.write_video(path, frames)
        except (ValueError, OSError) as error:
            self._report(path, error)
            return
        if missing:
            self._report(path, missing[0], "incomplete")
        else:
            self._results.finish(path)

    def _predict(self, examples: Iterable[dict[str, Any]]) -> Iterator[tuple[Any, Maps]]:
        return self._engine.predict(self._predictor.params, examples, self._outputs)

    def _report(self, path: pathlib.Path, error: Exception, what: str = "skipped") -> None:
        self.failed.append(path)
        message = one_line(error)
        text = message if str(path) in message else f"{path}: {message}"
        tqdm.write(f"{what}: {text}", file=sys.stderr)


def _command(arguments: argparse.Namespace) -> int:
    keep_freed_memory()
    prepare_compilation()
    planned = planned_outputs(arguments.inputs)
    folder = pathlib.Path(arguments.output).expanduser()
    with sole_owner(folder):
        return _segment(arguments, planned, folder)


def _segment(
    arguments: argparse.Namespace,
    planned: dict[pathlib.Path, pathlib.PurePath],
    folder: pathlib.Path,
) -> int:
    description, params = read_model(arguments.model)
    weights, predictor = weights_digest(params), Predictor(description, params)
    # Those on the devices are all that is needed from here on.
    del params
    engine = predictor.engine(**protocol_overrides(arguments))
    wanted = Wanted(arguments.save, arguments.alpha, arguments.video)
    results = Results(folder, planned, wanted, predictor, engine.settings, weights)
    reasons = {path: results.unfinished(path) for path in planned}
    todo = [path for path in planned if arguments.overwrite or reasons[path]]
    if not arguments.overwrite:
        _say_made_again(folder, reasons)
    results.start(todo)
    outputs = ("ids", "confidence") if "confidence" in arguments.save else ("ids",)
    run = _Run(predictor, engine, outputs, results)
    if pictures := [path for path in todo if not is_video(path)]:
        run.segment_pictures(pictures)
    for path in filter(is_video, todo):
        run.segment_video(path)

    done, skipped = len(todo) - len(run.failed), len(planned) - len(todo)
    if done or (skipped and not results.has_legend()):
        # The classes of results that were there already are not known.
        results.write_legend(everything=skipped > 0)
    before = f", {skipped} were there already" if skipped else ""
    print(
        f"{done} of {len(todo)} files segmented into {results.folder}{before} "
        f"({engine.settings.protocol()})"
    )
    return FAILED if run.failed else 0


def _say_made_again(folder: pathlib.Path, reasons: Mapping[pathlib.Path, str | None]) -> None:
    """Says of which inputs the results are made again though they are there, and why."""
    by_reason = collections.defaultdict(list)
    for path, reason in reasons.items():
        by_reason[reason].append(path)
    for reason, paths in by_reason.items():
        if reason not in (None, MISSING):
            print(
                f"made again: {first_few(paths, 3)}: results in {folder} were {reason}",
                file=sys.stderr,
            )


def _saved_list(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := sorted(set(names) - set(SAVED)):
        raise argparse.ArgumentTypeError(f"unknown results {unknown}; choose from {SAVED}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segmenter_jax.predict",
        description="Segments pictures and videos. OUTPUT gets the folders overlay/, ids/ (class "
        "ids as grey values), palette/ (class ids that show in their colours) and confidence/ "
        "(probability of the class, black to white), and legend.png. Videos become videos in "
        "overlay/ and folders of frames elsewhere. results.jsonl says how each result was made: "
        "what the same model made of the same file with the same settings is not made again. A "
        "file that cannot be read is reported and skipped; the exit code is then 1.",
    )
    parser.add_argument(
        "model", help="model directory, workdir of a run, checkpoint, or hf://OWNER/NAME"
    )
    parser.add_argument(
        "inputs",
        nargs="+",
        help='files, folders, which are mirrored, or patterns like "a/**/*.jpg"',
    )
    parser.add_argument("-o", "--output", required=True, help="folder of the results")
    parser.add_argument(
        "--save",
        type=_saved_list,
        default=("overlay", "ids"),
        help=f"results to write, of {','.join(SAVED)}; default: overlay,ids",
    )
    parser.add_argument("--alpha", type=float, default=0.5, help="weight of the colours, 0..1")
    parser.add_argument(
        "--video",
        choices=(".mp4", ".gif"),
        help="format of written videos; default: .gif for a GIF, else .mp4",
    )
    parser.add_argument("--overwrite", action="store_true", help="also make what is finished")
    add_protocol_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_command(_parser(), _command, argv)


if __name__ == "__main__":
    sys.exit(main())
