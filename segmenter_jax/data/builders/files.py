"""The files of a dataset's source: a folder, a zip archive, or a folder that holds archives.

Archives are read in place and are not trusted: an entry that points elsewhere, is too large, a
link or encrypted refuses the whole archive.
"""

import stat
import unicodedata
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from segmenter_jax.data.listing import HIDDEN, is_left_out, list_folder, printable
from segmenter_jax.runtime.errors import DataError, first_few

# Of one file; the largest of the supported datasets is below 10 MB.
MAX_FILE_BYTES = 256 * 2**20
MAX_FILES = 1_000_000


class SourceFiles:
    """Reads the files of a source by their relative paths, from any thread.

    Names are in the form NFC whatever they are stored in, and files left out as in `listing`.

    Args:
      source: a folder or a .zip file.
      archives: names of archives whose content counts as content of the folder they lie in, but
        for files that are unpacked there.

    Attributes:
      root: the source.
      left_out: paths of what does not count, by reason.

    Raises:
      DataError: there is no such source, or an archive is damaged or not to be trusted.
    """

    def __init__(self, source: Path, archives: Sequence[str] = ()):
        self.root = Path(source).expanduser().resolve()
        self._places: dict[str, Path | tuple[zipfile.ZipFile, zipfile.ZipInfo]] = {}
        self._folders: set[str] = set()
        self.left_out: dict[str, list[str]] = {}
        if self.root.is_dir():
            self._add_folder()
            for name in archives:
                if (self.root / name).is_file():
                    self._add_archive(self.root / name)
        elif self.root.is_file():
            self._add_archive(self.root)
        else:
            raise DataError(f"{self.root}: no such folder or zip archive")
        self._paths = sorted(self._places)

    def enter_folder_of(self, name: str) -> None:
        """Makes the only top folder the root if it holds a file of this name and the root does not.

        Raises:
          DataError: the file is below the root, but in one of several folders.
        """
        holders = [path for path in self._paths if path.endswith(f"/{name}")]
        if name in self or not holders:
            return
        top = holders[0].removesuffix(name)
        if any("/" in path and not path.startswith(top) for path in self._paths):
            raise DataError(
                f"{self.root}: no {name}, but {first_few(holders, 3)} beside other folders; give "
                "the folder that is meant"
            )
        self.root /= top
        self._places = {
            path.removeprefix(top): place
            for path, place in self._places.items()
            if path.startswith(top)
        }
        self._paths = sorted(self._places)
        self._folders = set(_below(self._folders, top))
        self.left_out = {reason: _below(paths, top) for reason, paths in self.left_out.items()}

    @property
    def paths(self) -> list[str]:
        """Relative paths of all files, with "/", sorted."""
        return self._paths

    @property
    def folders(self) -> set[str]:
        """Relative paths of all folders, empty ones included."""
        return self._folders

    def __contains__(self, path: str) -> bool:
        return path in self._places

    def size(self, path: str) -> int:
        """Size of a file in bytes."""
        place = self._places[path]
        return place.stat().st_size if isinstance(place, Path) else place[1].file_size

    def modified(self, path: str) -> int:
        """Modification time in nanoseconds; of a file in an archive, that of the archive."""
        place = self._places[path]
        return (place if isinstance(place, Path) else Path(place[0].filename)).stat().st_mtime_ns

    def read(self, path: str) -> bytes:
        """Content of a file.

        Raises:
          DataError: it cannot be read, or is larger than `MAX_FILE_BYTES`.
        """
        place = self._places[path]
        if self.size(path) > MAX_FILE_BYTES:
            raise DataError(f"{path}: {self.size(path)} bytes, over the limit of {MAX_FILE_BYTES}")
        try:
            if isinstance(place, Path):
                return place.read_bytes()
            archive, entry = place
            return archive.read(entry)
        # Damaged archives raise what their decompressors meet.
        except Exception as error:
            raise DataError(f"{path}: cannot be read ({error})") from error

    def _add_folder(self) -> None:
        found = list_folder(self.root, max_files=MAX_FILES)
        self._folders, self.left_out = found.folders, found.left_out
        for path, place in found.files.items():
            self._add(path, place)

    def _add(self, path: str, place: Path | tuple[zipfile.ZipFile, zipfile.ZipInfo]) -> None:
        # macOS stores "é" as two characters, others as one, and both spell one name.
        name = unicodedata.normalize("NFC", path)
        if name in self._places:
            raise DataError(f"{self.root}: {printable(name)} is there twice")
        self._places[name] = place

    def _add_archive(self, source: Path) -> None:
        try:
            archive = zipfile.ZipFile(source)
        # Names that are not in the code they are said to be in are ValueErrors.
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise DataError(f"{source}: not a readable zip archive ({error})") from error
        entries, unpacked = archive.infolist(), set(self._places)
        if len(entries) > MAX_FILES:
            raise DataError(f"{source}: {len(entries)} entries, over the limit of {MAX_FILES}")
        for entry in entries:
            # Windows writes "\\", which the format does not know.
            path = entry.filename.replace("\\", "/")
            if problem := _distrust(entry, path):
                raise DataError(f"{source}: entry {entry.filename!r} {problem}; refused")
            name = PurePosixPath(unicodedata.normalize("NFC", path))
            if any(is_left_out(part) for part in name.parts):
                self.left_out.setdefault(HIDDEN, []).append(str(name))
                continue
            if path.endswith("/"):
                self._folders.add(str(name))
                continue
            self._folders.update(str(parent) for parent in name.parents)
            if str(name) not in unpacked:
                self._add(str(name), (archive, entry))


def _below(paths: Iterable[str], top: str) -> list[str]:
    return [path.removeprefix(top) for path in paths if path.startswith(top)]


def _distrust(entry: zipfile.ZipInfo, path: str) -> str | None:
    """What is wrong with an entry of an archive, if anything."""
    parts = path.split("/")
    if path.startswith("/") or ".." in parts or ":" in parts[0]:
        return "points outside of the archive"
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "is a link"
    if entry.flag_bits & 1:
        return "is encrypted"
    if entry.file_size > MAX_FILE_BYTES:
        return f"has {entry.file_size} bytes, over the limit of {MAX_FILE_BYTES}"
    return None
