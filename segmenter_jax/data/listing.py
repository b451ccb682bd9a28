"""Which files of a folder count: one rule for datasets, folders to segment, and patterns.

Hidden files and folders and those that systems keep for themselves are left out, links are
followed unless they lead back, and what is left out is counted.
"""

import dataclasses
import fnmatch
import glob
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath

from segmenter_jax.runtime.errors import DataError, first_few

# Thumbnails, copies and deleted files, in the spelling of macOS, Synology and Windows.
_SYSTEM_NAMES = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")

# Of no interest to anybody.
_DROPPINGS = (".DS_Store", "Thumbs.db", "desktop.ini")

HIDDEN = "hidden or kept by a system"
_MAX_NAMED = 3


@dataclasses.dataclass
class Found:
    """What lies in a folder.

    Attributes:
      files: places of files by their paths below the folder, with "/", sorted.
      folders: paths of all folders below it, "." for itself.
      left_out: paths by the reason for which they do not count.
    """

    files: dict[str, Path] = dataclasses.field(default_factory=dict)
    folders: set[str] = dataclasses.field(default_factory=set)
    left_out: dict[str, list[str]] = dataclasses.field(default_factory=dict)

    def keep(self, suffixes: Sequence[str]) -> None:
        """Leaves out files with other suffixes than these, which are in lower case."""
        for path in [path for path in self.files if not path.lower().endswith(tuple(suffixes))]:
            del self.files[path]
            suffix = PurePosixPath(path).suffix.lower()
            reason = f"not read ({suffix or 'no suffix'})"
            self.left_out.setdefault(reason, []).append(path)


def describe_left_out(left_out: Mapping[str, Sequence[str]]) -> str:
    """Paths by reason as text: "1 not read (.heic): c.heic; 2 hidden or ...: .a, .b"."""
    return "; ".join(
        f"{len(paths)} {reason}: {first_few(sorted(map(printable, paths)), _MAX_NAMED)}"
        for reason, listed in sorted(left_out.items())
        if (paths := [p for p in listed if not p.endswith(_DROPPINGS)])
    )


def printable(path: str) -> str:
    r"""A path as it can be printed and stored: bytes that are not UTF-8 become "\xe9"."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def is_left_out(name: str) -> bool:
    """Whether a file or folder of this name, and all below it, does not count."""
    return name.startswith(".") or name in (*_SYSTEM_NAMES, *_DROPPINGS)


def list_folder(
    root: Path, *, depth: int | None = None, max_files: int | None = None, asked: Collection = ()
) -> Found:
    """Lists a folder and those below it.

    Args:
      root: the folder; its own name does not matter.
      depth: names in the longest path; None goes to the end.
      max_files: refuse more files than these.
      asked: names that count though they are hidden.

    Raises:
      DataError: there are more files than `max_files`.
    """
    found = Found()
    walk = _Walk(found, frozenset(asked), max_files)
    walk.add(Path(root), "", (os.path.realpath(root),), depth)
    found.files = dict(sorted(found.files.items()))
    return found


def list_pattern(pattern: Path) -> Found:
    """Lists the files that match a pattern of `glob`, by the rule of `list_folder`.

    Hidden names count only where the pattern spells them out. Paths are those below the folder in
    which the pattern's first wildcard stands.
    """
    root = next(parent for parent in pattern.parents if parent.is_dir())
    wanted = pattern.relative_to(root).parts
    asked = [part for part in wanted if not glob.has_magic(part) or part.startswith(".")]
    found = list_folder(root, depth=None if "**" in wanted else len(wanted), asked=asked)
    for path in [path for path in found.files if not _matches(path.split("/"), wanted)]:
        del found.files[path]
    return Found(found.files)


@dataclasses.dataclass(frozen=True)
class _Walk:
    """Fills `found`; see `list_folder`."""

    found: Found
    asked: frozenset[str]
    max_files: int | None

    def add(self, folder: Path, below: str, chain: tuple[str, ...], depth: int | None) -> None:
        """Adds a folder: its path below the root, real places from the root to it, levels left."""
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            reason = f"unreadable ({error.strerror})"
            self.found.left_out.setdefault(reason, []).append(below or ".")
            return
        self.found.folders.add(below or ".")
        for entry in entries:
            path, place = f"{below}/{entry.name}" if below else entry.name, Path(entry.path)
            if reason := self._reason(entry, chain):
                self.found.left_out.setdefault(reason, []).append(path)
            elif os.path.isfile(place):
                self.found.files[path] = place
            elif depth is None or depth > 1:
                self.add(place, path, (*chain, os.path.realpath(place)), depth and depth - 1)
        if self.max_files is not None and len(self.found.files) > self.max_files:
            raise DataError(f"{folder}: over {self.max_files} files; give the folder that is meant")

    def _reason(self, entry: os.DirEntry, chain: tuple[str, ...]) -> str | None:
        """Why something does not count, if it does not."""
        if is_left_out(entry.name) and entry.name not in self.asked:
            return HIDDEN
        if os.path.isdir(entry.path):
            leads_back = entry.is_symlink() and _leads_back(entry.path, chain)
            return "a link that leads back" if leads_back else None
        if not os.path.isfile(entry.path):
            # Reading from a pipe would never end.
            return "a link to nothing" if entry.is_symlink() else "no regular file"
        return None


def _leads_back(link: str, chain: Sequence[str]) -> bool:
    """Whether a linked folder is one of those that led to it, or holds one."""
    target = Path(os.path.realpath(link))
    return any(Path(place).is_relative_to(target) for place in chain)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or (bool(parts) and _matches(parts[1:], pattern))
    return (
        bool(parts)
        and fnmatch.fnmatchcase(parts[0], pattern[0])
        and _matches(parts[1:], pattern[1:])
    )
