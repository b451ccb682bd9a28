"""Reads, segments and writes one input after the other."""

import pathlib
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from PIL import Image
from tqdm import tqdm

from segmenter_jax.inference.merging import Maps
from segmenter_jax.inference.predictor import Predictor
from segmenter_jax.inference.results import Results, is_video
from segmenter_jax.inference.sliding_window import SlidingWindow
from segmenter_jax.pictures.video import CutShortError, declared_frames, read_frames
from segmenter_jax.runtime.errors import one_line
from segmenter_jax.runtime.progress import Progress


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
        """Segments pictures, then videos, taking them as they are needed.

        Returns:
          How many were skipped.
        """
        videos = sum(map(is_video, paths))
        if len(paths) > videos:
            pictures = (path for path in paths if not is_video(path))
            self._segment_pictures(pictures, len(paths) - videos)
        for path in filter(is_video, paths):
            self._segment_video(path)
        return self._failed

    def _segment_pictures(self, paths: Iterable[pathlib.Path], total: int) -> None:
        """Segments pictures, several in a batch."""
        progress = Progress(total, "image", quiet=self._quiet)

        def examples() -> Iterator[dict[str, Any]]:
            for path in paths:
                try:
                    self._results.begin(path)
                    image = self._predictor.read(path)
                    self._engine.check(image)
                except (ValueError, OSError) as error:
                    self._report(path, error)
                    progress.update()
                else:
                    yield {"image": image, "path": path}

        with progress:
            for example, maps in self._predict(examples()):
                self._results.write_picture(example["path"], example["image"], maps)
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

    def _predict(self, examples: Iterable[dict[str, Any]]) -> Iterator[tuple[Any, Maps]]:
        return self._engine.predict(self._predictor.params, examples, self._outputs)

    def _finish(self, path: pathlib.Path) -> None:
        # Pictures share batches: what each took is the time since the one before was done.
        now = time.monotonic()
        self._results.finish(path, round(now - self._last, 4))
        self._last = now

    def _report(self, path: pathlib.Path, error: Exception, what: str = "skipped") -> None:
        self._failed += 1
        message = one_line(error)
        self._results.fail(path, message)
        text = message if str(path) in message else f"{path}: {message}"
        tqdm.write(f"{what}: {text}", file=sys.stderr)
