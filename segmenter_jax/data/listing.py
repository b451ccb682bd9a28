"""Which files of a folder count: one rule for datasets, folders to segment, and patterns.

Hidden files and folders and those that systems keep for themselves are left out, links are
followed unless they lead back, and what is left out is counted.
"""

import dataclasses
import fnmatch
import glob
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeVar

from segmenter_jax.runtime.errors import DataError, first_few

# Thumbnails, copies and deleted files, in the spelling of macOS, Synology and Windows.
_SYSTEM_NAMES = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")

# Of no interest to anybody.
_DROPPINGS = (".DS_Store", "Thumbs.db", "desktop.ini")

# A file, or what else says where it is.
Place = TypeVar("Place")

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
        self.files = dict(only(self.files.items(), suffixes, self.left_out))


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
    walk = _Walk(found.left_out, frozenset(asked), found.folders)
    for path, place in walk.files(Path(root), "", (os.path.realpath(root),), depth):
        found.files[path] = place
        if max_files is not None and len(found.files) > max_files:
            raise DataError(
                f"{place.parent}: over {max_files} files; give the folder that is meant"
            )
    found.files = dict(sorted(found.files.items()))
    for paths in found.left_out.values():
        paths.sort()
    return found


def iter_folder(
    root: Path, left_out: dict[str, list[str]], *, depth: int | None = None, asked: Collection = ()
) -> Iterator[tuple[str, Path]]:
    """Files of `list_folder` one after the other, unsorted: however many, they take no memory.

    Args:
      root, depth, asked: see `list_folder`.
      left_out: gets paths by the reason for which they do not count.

    Yields:
      Paths below the folder, with "/", and places.
    """
    yield from _Walk(left_out, frozenset(asked)).files(
        Path(root), "", (os.path.realpath(root),), depth
    )


def iter_pattern(pattern: Path) -> Iterator[tuple[str, Path]]:
    """Files that match a pattern of `glob`, by the rule of `list_folder`, unsorted.

    Hidden names count only where the pattern spells them out. Paths are those below the folder in
    which the pattern's first wildcard stands.
    """
    root = next(parent for parent in pattern.parents if parent.is_dir())
    return matching(pattern, root, iter_folder)


def matching(
    pattern: Path, root: Path, walk: Callable[..., Iterator[tuple[str, Place]]]
) -> Iterator[tuple[str, Place]]:
    """What matches a pattern of all that `walk`, called as `iter_folder`, finds below a root."""
    wanted = pattern.relative_to(root).parts
    asked = [part for part in wanted if not glob.has_magic(part) or part.startswith(".")]
    depth = None if "**" in wanted else len(wanted)
    for path, place in walk(root, {}, depth=depth, asked=asked):
        if _matches(path.split("/"), wanted):
            yield path, place


def only(
    files: Iterable[tuple[str, Place]], suffixes: Sequence[str], left_out: dict[str, list[str]]
) -> Iterator[tuple[str, Place]]:
    """Leaves out files with other suffixes than these, which are in lower case."""
    for path, place in files:
        if reason := unread_suffix(path, suffixes):
            left_out.setdefault(reason, []).append(path)
        else:
            yield path, place


def unread_suffix(path: str, suffixes: Sequence[str]) -> str | None:
    """Why a file does not count that has none of these suffixes, which are in lower case."""
    if path.lower().endswith(tuple(suffixes)):
        return None
    return f"not read ({PurePosixPath(path).suffix.lower() or 'no suffix'})"


@dataclasses.dataclass(frozen=True)
class _Walk:
    """Walks through folders; see `list_folder`."""

    left_out: dict[str, list[str]]
    asked: frozenset[str]
    folders: set[str] | None = None

    def files(
        self, folder: Path, below: str, chain: tuple[str, ...], depth: int | None
    ) -> Iterator[tuple[str, Path]]:
        """Files of a folder: its path below the root, real places from there, levels left."""
        try:
            entries = os.scandir(folder)
        except OSError as error:
            reason = f"unreadable ({error.strerror})"
            self.left_out.setdefault(reason, []).append(below or ".")
            return
        if self.folders is not None:
            self.folders.add(below or ".")
        with entries:
            for entry in entries:
                path, place = f"{below}/{entry.name}" if below else entry.name, Path(entry.path)
                if reason := self._reason(entry, chain):
                    self.left_out.setdefault(reason, []).append(path)
                elif os.path.isfile(place):
                    yield path, place
                elif depth is None or depth > 1:
                    inner = (*chain, os.path.realpath(place))
                    yield from self.files(place, path, inner, depth and depth - 1)

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
