"""Which objects of a bucket count: the rule of `data.listing`, by names alone."""

import glob
from collections.abc import Collection, Iterator

from etils import epath

from segmenter_jax.data.listing import HIDDEN, is_left_out, matching
from segmenter_jax.runtime.buckets import Stored, is_folder, level


def iter_objects(
    root: epath.Path,
    left_out: dict[str, list[str]] | None,
    *,
    depth: int | None = None,
    asked: Collection[str] = (),
) -> Iterator[tuple[str, Stored]]:
    """As `listing.iter_folder`; what lies directly below one address is in memory at a time.

    Args:
      root, depth, asked: see there.
      left_out: see there; None leaves nothing out.
    """
    levels = [("", depth)]
    while levels:
        below, left = levels.pop()
        found = level(root / below if below else root)
        # A name may be that of an object and of a folder.
        for name, stored in (*dict.fromkeys(found.folders).items(), *found.objects.items()):
            path = f"{below}/{name}" if below else name
            if left_out is not None and is_left_out(name) and name not in asked:
                left_out.setdefault(HIDDEN, []).append(path)
            elif stored:
                yield path, stored
            elif left is None or left > 1:
                levels.append((path, left and left - 1))


def iter_object_pattern(pattern: epath.Path) -> Iterator[tuple[str, Stored]]:
    """As `listing.iter_pattern`."""
    root = next(p for p in pattern.parents if not glob.has_magic(str(p)) or is_folder(p))
    return matching(pattern, root, iter_objects)
