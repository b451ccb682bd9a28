"""Which objects of a bucket count: the rule of `data.listing`, by names alone."""

import glob
from collections.abc import Collection, Iterator

from etils import epath

from segmenter_jax.data.listing import HIDDEN, is_left_out, matches
from segmenter_jax.runtime.buckets import Stored, level


def iter_objects(
    root: epath.Path,
    left_out: dict[str, list[str]],
    *,
    depth: int | None = None,
    asked: Collection[str] = (),
) -> Iterator[tuple[str, Stored]]:
    """As `listing.iter_folder`; the names directly below one address are in memory at a time."""
    levels = [("", depth)]
    while levels:
        below, left = levels.pop()
        found = level(root / below if below else root)
        for name in (*found.folders, *found.objects):
            path = f"{below}/{name}" if below else name
            if is_left_out(name) and name not in asked:
                left_out.setdefault(HIDDEN, []).append(path)
            elif name in found.objects:
                yield path, found.objects[name]
            elif left is None or left > 1:
                levels.append((path, left and left - 1))


def iter_object_pattern(pattern: epath.Path) -> Iterator[tuple[str, Stored]]:
    """As `listing.iter_pattern`."""
    magic = next(i for i, part in enumerate(pattern.parts) if glob.has_magic(part))
    root, wanted = epath.Path(*pattern.parts[:magic]), pattern.parts[magic:]
    asked = [part for part in wanted if not glob.has_magic(part) or part.startswith(".")]
    depth = None if "**" in wanted else len(wanted)
    for path, stored in iter_objects(root, {}, depth=depth, asked=asked):
        if matches(path.split("/"), wanted):
            yield path, stored
