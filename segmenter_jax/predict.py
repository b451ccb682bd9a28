"""Segments files, folders and videos from the command line.

python -m segmenter_jax.predict MODEL photo.jpg folder/ clip.mp4 -o overlays/
"""

import argparse
import collections
import contextlib
import glob
import pathlib
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from segmenter_jax.data.encoded import IMAGE_SUFFIXES
from segmenter_jax.data.listing import describe_left_out, list_folder, list_pattern, printable
from segmenter_jax.inference.merging import Maps
from segmenter_jax.inference.predictor import Predictor, load
from segmenter_jax.inference.sliding_window import SlidingWindow
from segmenter_jax.pictures import legend, overlay, palette_image
from segmenter_jax.pictures.overlays import grey_image
from segmenter_jax.pictures.video import VIDEO_SUFFIXES, read_frames, video_info, write_video
from segmenter_jax.runtime.command import (
    FAILED,
    add_protocol_flags,
    protocol_overrides,
    run_command,
)
from segmenter_jax.runtime.compilation import prepare_compilation
from segmenter_jax.runtime.errors import one_line
from segmenter_jax.runtime.files import write_whole
from segmenter_jax.runtime.host import keep_freed_memory

SAVED = ("overlay", "ids", "palette", "confidence")


def planned_outputs(inputs: Sequence[str]) -> dict[pathlib.Path, pathlib.PurePath]:
    """What to read, and the name of its results without suffix, relative to the output folder.

    Args:
      inputs: files; folders, whose pictures and videos are taken by the rule of `data.listing` and
        mirrored; and patterns such as "photos/**/*.jpg", mirrored below their fixed part.

    Returns:
      A mapping in the order of the inputs, folders and matches sorted.

    Raises:
      ValueError: an input does not exist or matches nothing, a folder has no pictures, or two files
        would have the same results.
    """
    found: dict[pathlib.Path, pathlib.PurePath] = {}
    for name in inputs:
        found |= _expand(name)
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


def _is_video(path: pathlib.Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


class _Results:
    """Writes the results of one input after the other, and remembers the classes seen.

    A result stands under its name only once it is complete, so that an interrupted run can go on.

    Args:
      predictor: makes the results.
      planned: see `planned_outputs`.
      arguments: of the command: `output`, `save`, `alpha` and `video`.
    """

    def __init__(
        self,
        predictor: Predictor,
        planned: Mapping[pathlib.Path, pathlib.PurePath],
        arguments: argparse.Namespace,
    ):
        self.folder = pathlib.Path(arguments.output).expanduser()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._predictor, self._planned, self._kinds = predictor, planned, arguments.save
        self._alpha, self._video_suffix = arguments.alpha, arguments.video
        self._seen = np.zeros(len(predictor.classes), bool)

    def finished(self, path: pathlib.Path) -> bool:
        """Whether all results of an input are there."""
        return all(self._target(kind, path).exists() for kind in self._kinds)

    def write_picture(self, path: pathlib.Path, image: np.ndarray, maps: Maps) -> None:
        """Writes all results of a picture."""
        for kind in self._kinds:
            with write_whole(self._target(kind, path)) as part:
                self._render(kind, image, maps).save(part, quality=92)

    def write_video(
        self, path: pathlib.Path, frame_rate: float, frames: Iterable[tuple[np.ndarray, Maps]]
    ) -> None:
        """Writes all results of a video: a video of overlays, folders of anything else."""
        targets = {kind: self._target(kind, path) for kind in self._kinds}
        clip = targets.pop("overlay", None)
        parts = {kind: t.with_name(f".incomplete.{t.name}") for kind, t in targets.items()}
        for folder in parts.values():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        with write_video(clip, frame_rate) if clip else contextlib.nullcontext() as append:
            for number, (image, maps) in enumerate(frames):
                if append:
                    append(np.asarray(self._render("overlay", image, maps)))
                for kind, folder in parts.items():
                    self._render(kind, image, maps).save(folder / f"{number:06d}.png")
        for kind, folder in parts.items():
            shutil.rmtree(targets[kind], ignore_errors=True)
            folder.rename(targets[kind])

    def write_legend(self, everything: bool) -> None:
        """Writes the legend of the classes seen, or of all classes."""
        present = np.flatnonzero(self._seen | everything).tolist()
        predictor, columns = self._predictor, 1 + len(present) // 30
        with write_whole(self.folder / "legend.png") as part:
            legend(present, predictor.classes, predictor.colors, columns).save(part)

    def _render(self, kind: str, image: np.ndarray, maps: Maps) -> Image.Image:
        ids, colors = maps["ids"], self._predictor.colors
        self._seen[np.unique(ids)] = True
        if kind == "overlay":
            return Image.fromarray(overlay(image, ids, colors, self._alpha))
        if kind == "ids":
            return Image.fromarray(ids.astype(np.uint8 if ids.max() < 256 else np.uint16))
        if kind == "palette":
            return palette_image(ids, colors)
        return grey_image(maps["confidence"])

    def _target(self, kind: str, path: pathlib.Path) -> pathlib.Path:
        stem = self._planned[path]
        if not _is_video(path):
            suffix = ".jpg" if kind == "overlay" else ".png"
        elif kind == "overlay":
            suffix = self._video_suffix or (".gif" if path.suffix.lower() == ".gif" else ".mp4")
        else:
            suffix = ""
        return self.folder / kind / stem.with_name(stem.name + suffix)


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
        results: _Results,
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
                bar.update()

    def segment_video(self, path: pathlib.Path) -> None:
        """Segments a video, several frames in a batch."""
        try:
            info = video_info(path)
            pictures = map(Image.fromarray, read_frames(path))
            results = self._predict({"image": self._predictor.read(p)} for p in pictures)
            total = info.num_frames or None
            with tqdm(results, total=total, unit="frame", desc=path.name, disable=None) as bar:
                frames = ((example["image"], maps) for example, maps in bar)
                self._results.write_video(path, info.frame_rate, frames)
        except (ValueError, OSError, cv2.error) as error:
            self._report(path, error)

    def _predict(self, examples: Iterable[dict[str, Any]]) -> Iterator[tuple[Any, Maps]]:
        return self._engine.predict(self._predictor.params, examples, self._outputs)

    def _report(self, path: pathlib.Path, error: Exception) -> None:
        self.failed.append(path)
        message = one_line(error)
        text = message if str(path) in message else f"{path}: {message}"
        tqdm.write(f"skipped: {text}", file=sys.stderr)


def _command(arguments: argparse.Namespace) -> int:
    keep_freed_memory()
    prepare_compilation()
    planned = planned_outputs(arguments.inputs)
    predictor = load(arguments.model)
    engine = predictor.engine(**protocol_overrides(arguments))
    results = _Results(predictor, planned, arguments)
    todo = [path for path in planned if arguments.overwrite or not results.finished(path)]
    outputs = ("ids", "confidence") if "confidence" in arguments.save else ("ids",)
    run = _Run(predictor, engine, outputs, results)
    if pictures := [path for path in todo if not _is_video(path)]:
        run.segment_pictures(pictures)
    for path in filter(_is_video, todo):
        run.segment_video(path)

    done, skipped = len(todo) - len(run.failed), len(planned) - len(todo)
    if done:
        # The classes of results that were there already are not known.
        results.write_legend(everything=skipped > 0)
    before = f", {skipped} were there already" if skipped else ""
    print(
        f"{done} of {len(todo)} files segmented into {results.folder}{before} "
        f"({engine.settings.protocol()})"
    )
    return FAILED if run.failed else 0


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
        "overlay/ and folders of frames elsewhere. What is finished is not made again. A file that "
        "cannot be read is reported and skipped; the exit code is then 1.",
    )
    parser.add_argument("model", help="model directory, workdir of a run, or checkpoint")
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
