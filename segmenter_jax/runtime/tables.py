"""Tables and lists as lines of text."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

_NUMBER = re.compile(r"[-+]?(\d|\.\d|nan|inf)")


def align(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lays out cells in columns that are two spaces apart.

    A column is flush right if all its cells below the first row are numbers, with a unit or not;
    empty cells and dashes do not count. Other columns are flush left.

    Args:
      rows: cells of each row, equally many; the first row may be a header.

    Returns:
      One line per row, without trailing spaces.
    """
    columns = []
    for column in zip(*rows, strict=True):
        width = max(map(len, column))
        values = [cell for cell in column[1:] if cell.strip("- ")]
        is_number = bool(values) and all(map(_NUMBER.match, values))
        columns.append([c.rjust(width) if is_number else c.ljust(width) for c in column])
    return ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]


def cell(value: Any) -> str:
    """A value of a result as text: numbers to four digits, nothing for None."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    return "" if value is None else str(value)


def merge_blocks(items: Iterable[str]) -> list[str]:
    """Makes one line of those that differ only in the number of a network's block.

    Args:
      items: lines, with "block_3/" in them where they are of a block; names of other projects
        beside it, such as "blocks.3.", count on with it.

    Returns:
      The lines, with the range of numbers where there are several.
    """
    groups: dict[str, list[tuple[int, str]]] = {}
    for item in items:
        number, key = 0, item
        if match := re.search(r"block_(\d+)/", item):
            number = int(match[1])
            key = item.replace(f"block_{number}/", "block_*/")
            # Their block number is the first; another one may count the layers of an MLP.
            key = re.sub(rf"(blocks|layers?)\.{number}\.", r"\1.*.", key, count=1)
        groups.setdefault(key, []).append((number, item))
    return [
        f"{key}, blocks {min(found)[0]} to {max(found)[0]}" if len(found) > 1 else found[0][1]
        for key, found in groups.items()
    ]
