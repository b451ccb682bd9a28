"""Reads, segments and writes one input after the other."""

import collections
import pathlib
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from PIL import Image
from tqdm import tqdm

from segmenter_jax.data.listing import printable
from segmenter_jax.inference.merging import Maps
from segmenter_jax.inference.predictor import Predictor
from segmenter_jax.inference.results import Results, is_video
from segmenter_jax.inference.sliding_window import SlidingWindow
from segmenter_jax.inference.tar_files import TarResults, is_tar, read_pictures
from segmenter_jax.inference.transfers import fetched, written
from segmenter_jax.pictures.video import CutShortError, declared_frames, read_frames
from segmenter_jax.runtime.errors import DataError, one_line
from segmenter_jax.runtime.files import size_of
from segmenter_jax.runtime.progress import Progress

_MEGABYTE = 10**6


class Run:
    """Segments inputs and writes their results; a bad input is reported and skipped."""

    def __init__(
        self,
        predictor: Predictor,
        engine: SlidingWindow,
        outputs: tuple[str, ...],
        results: Results,
        quiet: bool = False,
    ):
        """Sets a run up.

        Args:
          predictor, engine: segment.
          outputs: maps to compute, see `SlidingWindow.predict`.
          results: written to.
          quiet: show no progress.
        """
        self._predictor, self._engine, self._outputs = predictor, engine, outputs
        self._results, self._quiet = results, quiet
        self._last = time.monotonic()
        self._failed = 0

    def segment(self, paths: Collection[pathlib.Path]) -> int:
        """Segments pictures, then videos, then tar files, taking them as they are needed.

        Returns:
          How many were skipped, or have parts that were.
        """
        others = sum(is_video(path) or is_tar(path) for path in paths)
        if len(paths) > others:
            pictures = (path for path in paths if not (is_video(path) or is_tar(path)))
            self._segment_pictures(pictures, len(paths) - others)
        for path in filter(is_video, paths):
            self._segment_video(path)
        if any(map(is_tar, paths)):
            self._segment_tars(paths)
        return self._failed

    def _segment_pictures(self, paths: Iterable[pathlib.Path], total: int) -> None:
        """Segments pictures, several in a batch."""
        progress = Progress(total, "image", quiet=self._quiet)

        def examples() -> Iterator[dict[str, Any]]:
            for path, read in fetched(paths, self._results.bytes_of):
                try:
                    self._results.begin(path)
                    image = self._predictor.decode(read(), str(path))
                    self._engine.check(image)
                except (ValueError, OSError) as error:
                    self._report(path, error)
                    progress.update()
                else:
                    yield {"image": image, "path": path}

        def write(predicted: tuple[dict[str, Any], Maps]) -> None:
            example, maps = predicted
            self._results.write_picture(example["path"], example["image"], maps)

        def pixels(predicted: tuple[dict[str, Any], Maps]) -> int:
            return predicted[1]["ids"].size

        with progress:
            predicted = self._predict(examples())
            for example, _ in written(predicted, write, pixels, self._results.folder):
                self._finish(example["path"])
                progress.update()

    def _segment_video(self, path: pathlib.Path) -> None:
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
            self._results.begin(path)
            total = declared_frames(path) or None
            with Progress(total, "frame", path.name, self._quiet) as progress:

                def frames() -> Iterator[tuple[Any, Maps]]:
                    for example, maps in self._predict(examples()):
                        yield example["frame"], maps
                        progress.update()

                self._results.write_video(path, frames())
        except (ValueError, OSError) as error:
            self._report(path, error)
            return
        if missing:
            self._report(path, missing[0], "incomplete")
        else:
            self._finish(path)

    def _segment_tars(self, paths: Iterable[pathlib.Path]) -> None:
        """Segments the pictures in tar files, one file after the other."""
        left_out: collections.Counter[str] = collections.Counter()
        before = 0
        total = sum(map(size_of, filter(is_tar, paths)))
        with Progress(total // _MEGABYTE, "MB", quiet=self._quiet) as progress:

            def reached(end: int) -> None:
                progress.reach((before + end) // _MEGABYTE)

            for path in filter(is_tar, paths):
                self._segment_tar(path, left_out, reached)
                before += size_of(path)
        if left_out and not self._quiet:
            counted = "; ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
            print(f"left out of tar files: {counted}", file=sys.stderr)

    def _segment_tar(
        self,
        path: pathlib.Path,
        left_out: collections.Counter[str],
        reached: Callable[[int], None],
    ) -> None:
        """Segments the pictures in a tar file, several in a batch."""
        damage: list[DataError] = []

        def examples(tar: TarResults) -> Iterator[dict[str, Any]]:
            try:
                for picture in read_pictures(path, left_out):
                    name = f"{path}/{picture.name}"
                    try:
                        tar.begin(picture.name)
                        image = self._predictor.decode(picture.data, name)
                        self._engine.check(image)
                    except ValueError as error:
                        tar.fail(picture.name, self._say(name, error))
                    else:
                        yield {"image": image, "picture": picture}
            except DataError as error:
                # Results of what came before are results all the same.
                damage.append(error)

        try:
            self._results.begin(path)
            with self._results.open_tar(path) as tar:
                for example, maps in self._predict(examples(tar)):
                    picture = example["picture"]
                    seconds = self._seconds()
                    self._results.write_tar_picture(tar, picture, example["image"], maps, seconds)
                    reached(picture.end)
                if damage and not tar.added:
                    raise damage[0]
        except (ValueError, OSError) as error:
            self._report(path, error)
            return
        if damage:
            self._report(path, damage[0], "incomplete")
        else:
            self._finish(path)
            self._failed += tar.failed > 0

    def _predict(self, examples: Iterable[dict[str, Any]]) -> Iterator[tuple[Any, Maps]]:
        return self._engine.predict(self._predictor.params, examples, self._outputs)

    def _finish(self, path: pathlib.Path) -> None:
        self._results.finish(path, self._seconds())

    def _seconds(self) -> float:
        # Pictures share batches: what each took is the time since the one before was done.
        before, self._last = self._last, time.monotonic()
        return round(self._last - before, 4)

    def _report(self, path: pathlib.Path, error: Exception, what: str = "skipped") -> None:
        self._failed += 1
        self._results.fail(path, self._say(str(path), error, what))

    def _say(self, source: str, error: Exception, what: str = "skipped") -> str:
        """Says why a source has no results, and returns it."""
        message, source = one_line(error), " ".join(source.split())
        text = message if source in message else f"{source}: {message}"
        tqdm.write(f"{what}: {printable(text)}", file=sys.stderr)
        return message
