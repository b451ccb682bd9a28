"""The files of a dataset's source: a folder, a zip archive, or a folder that holds archives.

Archives are read in place and are not trusted: an entry that points elsewhere, is too large, a
link or encrypted refuses the whole archive.
"""

import os
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from segmenter_jax.runtime.errors import DataError

# Of one file; the largest of the supported datasets is below 10 MB.
MAX_FILE_BYTES = 256 * 2**20
MAX_FILES = 1_000_000


class SourceFiles:
    """Reads the files of a source by their relative paths, from any thread.

    Hidden files and those that macOS adds to archives are left out.

    Args:
      source: a folder or a .zip file.
      archives: names of archives whose content counts as content of the folder they lie in, but
        for files that are unpacked there.

    Raises:
      DataError: there is no such source, or an archive is damaged or not to be trusted.
    """

    def __init__(self, source: Path, archives: Sequence[str] = ()):
        self.root = Path(source).expanduser().resolve()
        self._places: dict[str, Path | tuple[zipfile.ZipFile, zipfile.ZipInfo]] = {}
        self._folders: set[str] = set()
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
        # Datasets are often linked together from several disks.
        for folder, subfolders, names in os.walk(self.root, followlinks=True):
            if os.path.islink(folder) and _contains(Path(folder).resolve(), Path(folder).parent):
                subfolders.clear()
                continue
            subfolders[:] = sorted(name for name in subfolders if not _is_hidden(name))
            relative = PurePosixPath(os.path.relpath(folder, self.root))
            self._folders.add(str(relative))
            for name in names:
                if not _is_hidden(name):
                    self._places[str(relative / name)] = Path(folder, name)
            if len(self._places) > MAX_FILES:
                raise DataError(f"{self.root}: over {MAX_FILES} files; give the dataset's folder")

    def _add_archive(self, path: Path) -> None:
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise DataError(f"{path}: not a readable zip archive ({error})") from error
        entries, unpacked = archive.infolist(), set(self._places)
        if len(entries) > MAX_FILES:
            raise DataError(f"{path}: {len(entries)} entries, over the limit of {MAX_FILES}")
        for entry in entries:
            if problem := _distrust(entry):
                raise DataError(f"{path}: entry {entry.filename!r} {problem}; refused")
            name = PurePosixPath(entry.filename)
            if any(_is_hidden(part) for part in name.parts):
                continue
            if entry.is_dir():
                self._folders.add(str(name))
                continue
            self._folders.update(str(parent) for parent in name.parents)
            if str(name) in unpacked:
                continue
            if str(name) in self._places:
                raise DataError(f"{path}: {name} is there twice")
            self._places[str(name)] = (archive, entry)


def _contains(folder: Path, other: Path) -> bool:
    return other.resolve().is_relative_to(folder)


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _distrust(entry: zipfile.ZipInfo) -> str | None:
    """What is wrong with an entry of an archive, if anything."""
    name = entry.filename
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\\" in name or ":" in parts[0]:
        return "points outside of the archive"
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "is a link"
    if entry.flag_bits & 1:
        return "is encrypted"
    if entry.file_size > MAX_FILE_BYTES:
        return f"has {entry.file_size} bytes, over the limit of {MAX_FILE_BYTES}"
    return None
