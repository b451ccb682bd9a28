"""The results of pictures, videos and tar files as files in a folder."""

import contextlib
import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.inference.facts import Facts
from segmenter_jax.inference.geometry import InferenceSettings
from segmenter_jax.inference.merging import Maps
from segmenter_jax.inference.presence import Present
from segmenter_jax.inference.records import SAVED, Record, Records, source_record
from segmenter_jax.inference.tar_files import (
    TAR_SUFFIX,
    TarPicture,
    TarResults,
    encoded,
    is_tar,
    write_tar,
)
from segmenter_jax.pictures import legend, overlay, palette_image
from segmenter_jax.pictures.overlays import grey_image
from segmenter_jax.pictures.video import VIDEO_SUFFIXES, Frame
from segmenter_jax.pictures.video_writing import write_video
from segmenter_jax.runtime.errors import DataError
from segmenter_jax.runtime.files import (
    exists,
    full_name,
    is_same,
    naming,
    write_whole,
    write_whole_folder,
)

# Holds tar files of all kinds.
_TAR = "tar"
_LEGEND = "legend.png"

# What may lie in a folder of results beside records.
NAMES = (*SAVED, _TAR, _LEGEND)

_OVERLAY_QUALITY = 92

# Of results that are not there, and so need no other reason to be made.
MISSING = "missing"


def is_video(path: pathlib.PurePath) -> bool:
    """Whether the name is that of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


@dataclasses.dataclass(frozen=True)
class Wanted:
    """What is to be made of each input.

    Attributes:
      kinds: of `SAVED`.
      alpha: weight of the colours in overlays, 0..1.
      video_suffix: of the videos written; None keeps GIFs GIFs and makes MP4 of others.
    """

    kinds: tuple[str, ...]
    alpha: float
    video_suffix: str | None


class Recorder(Protocol):
    """What takes records of finished results; see `Records`."""

    def add(self, records: Iterable[Record]) -> None:
        """Adds records."""


class Results:
    """Writes the results of one input after the other, and remembers the classes seen.

    A result stands under its name only once it is complete, and is finished once it is recorded
    what made it: so that an interrupted run can go on, and one with another model, other settings
    or another source makes it again.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        planned: Mapping[pathlib.Path, pathlib.PurePath],
        wanted: Wanted,
        description: ModelDescription,
        settings: InferenceSettings,
        weights: str,
        records: Recorder | None = None,
        source: Callable[[pathlib.Path], Record] = source_record,
    ):
        """Reads what is finished.

        Args:
          folder: of the results; has one owner as long as this is used.
          planned: inputs, and the names of their results without suffix, relative to the folder.
          wanted: what to write.
          description, settings: of the model that makes the results.
          weights: tells the parameters from others; see `checkpoints.checksums.weights_digest`.
          records: of the folder; None reads them. What only takes records serves who only writes.
          source: tells an input from others; see `records.source_record`.
        """
        self._source, self._present = source, Present(folder)
        self.folder, self._planned, self._wanted = folder, planned, wanted
        self._description = d = description
        self.facts = Facts(d.classes)
        self._records = Records(folder) if records is None else records
        protocol = dataclasses.asdict(settings) | {"scales": list(settings.scales)}
        # Of no influence.
        del protocol["batch_size"]
        model = repr((weights, d.model, d.classes, d.colors, d.mean, d.std))
        digest = hashlib.sha256(model.encode()).hexdigest()
        self._made_by = {"model": digest, "protocol": protocol}
        # Of what is being made only.
        self._begun: dict[pathlib.Path, tuple[list[Record], Facts]] = {}

    def unfinished(self, path: pathlib.Path) -> str | None:
        """Why the results of an input have to be made; None if all are there and hold.

        Raises:
          OSError: the results in a bucket cannot be listed.
        """
        try:
            records = self._expected_records(path)
        except OSError:
            # The input is gone, as reading it will say.
            return MISSING
        reasons = set()
        for record in records:
            found = self._records.find(record["result"])
            if record["result"] not in self._present:
                reasons.add(MISSING)
            elif found is None or record != {name: found.get(name) for name in record}:
                reasons.add(_difference(found, record))
        return "; ".join(sorted(reasons - {MISSING}) or reasons) or None

    def bytes_of(self, path: pathlib.Path) -> int:
        """Size of an input that is there."""
        return self._source(path)["bytes"]

    def start(self, paths: Iterable[pathlib.Path]) -> None:
        """Forgets what is recorded of inputs whose results are to be made."""
        targets = (self._result(kind, path) for path in paths for kind in self._kinds(path))
        self._records.forget(targets, failed=paths)

    def begin(self, path: pathlib.Path) -> None:
        """Notes what an input is before it is read: what changes meanwhile is made again next time.

        Raises:
          OSError: it is gone.
          DataError: it lies where a result is to be.
        """
        records = self._expected_records(path)
        targets = (self.folder / record["result"] for record in records)
        if any(is_same(target, path) for target in targets):
            raise DataError(f"{path}: a result would replace it; choose another output folder")
        self._begun[path] = (records, Facts(self._description.classes))

    def finish(self, path: pathlib.Path, seconds: float | None = None) -> None:
        """Records that the results of an input were written, and what they show."""
        records, facts = self._begun.pop(path)
        self.facts.include(facts.counts())
        found = facts.record() | {"seconds": seconds}
        self._records.add(record | found for record in records)

    def take(self, records: Iterable[Record], seen: Sequence[Sequence[int]]) -> None:
        """Records what another process has made, and what it saw; see `Facts.counts`."""
        self.facts.include(seen)
        self._records.add(records)

    def fail(self, path: pathlib.Path, message: str) -> None:
        """Records why an input has no results."""
        self._begun.pop(path, None)
        try:
            source = self._source(path)
        except OSError:
            source = {"source": full_name(path)}
        self._records.add([source | {"error": message}])

    def write_picture(self, path: pathlib.Path, image: np.ndarray, maps: Maps) -> None:
        """Writes all results of a picture; of several in threads of their own."""
        records, facts = self._begun[path]
        facts.add(maps)
        for kind, record in zip(self._wanted.kinds, records, strict=True):
            with write_whole(self.folder / record["result"]) as part:
                self._render(kind, image, maps).save(part, quality=_OVERLAY_QUALITY)

    def open_tar(self, path: pathlib.Path) -> contextlib.AbstractContextManager[TarResults]:
        """Writes the results of a tar file in the block; they and records appear at its end."""
        (record,) = self._begun[path][0]
        return write_tar(self.folder, record["result"], self._source(path), self._records.add)

    def write_tar_picture(
        self,
        tar: TarResults,
        picture: TarPicture,
        image: np.ndarray,
        maps: Maps,
        seconds: float | None = None,
    ) -> None:
        """Writes all results of a picture of a tar file."""
        facts = Facts(self._description.classes)
        facts.add(maps)
        self.facts.include(facts.counts())
        found = self._made_by | facts.record() | {"seconds": seconds}
        results = []
        for kind in self._wanted.kinds:
            suffix = _suffix(kind)
            data = encoded(self._render(kind, image, maps), suffix, quality=_OVERLAY_QUALITY)
            results.append((f".{kind}{suffix}", data, found | self._options(kind)))
        tar.add(picture, results)

    def write_video(self, path: pathlib.Path, frames: Iterable[tuple[Frame, Maps]]) -> None:
        """Writes all results of a video: a video of overlays, folders of anything else."""
        targets = {kind: self._target(kind, path) for kind in self._wanted.kinds}
        clip = targets.pop("overlay", None)
        with contextlib.ExitStack() as whole:
            folders = {
                kind: whole.enter_context(write_whole_folder(target))
                for kind, target in targets.items()
            }
            append = whole.enter_context(write_video(clip)) if clip else None
            for number, (frame, maps) in enumerate(frames):
                self._begun[path][1].add(maps, is_frame=True)
                if append:
                    picture = self._render("overlay", frame.image, maps)
                    append(frame._replace(image=np.asarray(picture)))
                for kind, folder in folders.items():
                    with naming(targets[kind]):
                        picture = self._render(kind, frame.image, maps)
                        picture.save(folder / f"{number:06d}.png")

    def write_legend(self, everything: bool) -> None:
        """Writes the legend of the classes seen, or of all classes."""
        present = np.flatnonzero((self.facts.pixels > 0) | everything).tolist()
        d, columns = self._description, 1 + len(present) // 30
        with write_whole(self.folder / _LEGEND) as part:
            legend(present, d.classes, d.colors, columns).save(part)

    def has_legend(self) -> bool:
        """Whether there is a legend."""
        return exists(self.folder / _LEGEND)

    def _render(self, kind: str, image: np.ndarray, maps: Maps) -> Image.Image:
        ids, colors = maps["ids"], self._description.colors
        if kind == "overlay":
            return Image.fromarray(overlay(image, ids, colors, self._wanted.alpha))
        if kind == "ids":
            return Image.fromarray(ids.astype(np.uint8 if ids.max() < 256 else np.uint16))
        if kind == "palette":
            return palette_image(ids, colors)
        return grey_image(maps["confidence"])

    def _target(self, kind: str, path: pathlib.Path) -> pathlib.Path:
        return self.folder / self._result(kind, path)

    def _result(self, kind: str, path: pathlib.Path) -> str:
        """A result's path below the folder."""
        stem = self._planned[path]
        if not is_video(path):
            suffix = _suffix(kind)
        elif kind == "overlay":
            own = ".gif" if path.suffix.lower() == ".gif" else ".mp4"
            suffix = self._wanted.video_suffix or own
        else:
            suffix = ""
        return f"{kind}/{stem.with_name(stem.name + suffix).as_posix()}"

    def _expected_records(self, path: pathlib.Path) -> list[Record]:
        source = self._source(path) | self._made_by
        return [
            {"result": self._result(kind, path)} | source | self._options(kind)
            for kind in self._kinds(path)
        ]

    def _kinds(self, path: pathlib.Path) -> tuple[str, ...]:
        return (_TAR,) if is_tar(path) else self._wanted.kinds

    def _options(self, kind: str) -> Record:
        """What else the user chose that shows in a result."""
        saved = sorted(self._wanted.kinds) if kind == _TAR else [kind]
        options: Record = {"alpha": self._wanted.alpha} if "overlay" in saved else {}
        return options | ({"save": saved} if kind == _TAR else {})


def _suffix(kind: str) -> str:
    """Of the results of pictures and tar files."""
    return {"overlay": ".jpg", _TAR: TAR_SUFFIX}.get(kind, ".png")


def _difference(found: Record | None, expected: Record) -> str:
    """What made a result, against what would make it now."""
    if found is None:
        return "not recorded what made them"
    if found.get("model") != expected["model"]:
        return "made by another model"
    before, now = (
        record.get("protocol", {}) | {name: record.get(name) for name in ("alpha", "save")}
        for record in (found, expected)
    )
    settings = [name for name, value in now.items() if before.get(name) != value]
    if settings:
        return f"made with another {' and '.join(settings)}"
    return "made of another file, or one that changed since"
