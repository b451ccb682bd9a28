"""A result as rows of a Markdown table.

python -m segmenter_jax.benchmark step ... | python -m segmenter_jax.benchmark.markdown S/16 step_ms
"""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from segmenter_jax.runtime.tables import cell


def rows(label: str, result: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    """Rows of a Markdown table.

    Args:
      label: the first cell of each.
      result: values by name.
      columns: names of values; what is not there stays empty. Where they begin with "*" there is a
        row for each beginning that makes one of them a name of a value, in a cell after the label.
        Of "parts.name" and "parts.ms" there is one for each element of the list `parts`.
    """
    parts, dot, _ = columns[0].partition(".")
    if dot:
        columns = [column.removeprefix(parts + dot) for column in columns]
        return [row for part in result[parts] for row in rows(label, part, columns)]
    if not any(column.startswith("*") for column in columns):
        return [_row(label, *(cell(result.get(column)) for column in columns))]
    endings = [column.removeprefix("*") for column in columns]
    beginnings = [
        name.removesuffix(ending) for name in result for ending in endings if name.endswith(ending)
    ]
    return [
        _row(label, beginning, *(cell(result.get(beginning + ending)) for ending in endings))
        for beginning in dict.fromkeys(beginnings)
    ]


def _row(*cells: str) -> str:
    return f"| {' | '.join(text.replace('|', '/') for text in cells)} |"


if __name__ == "__main__":
    *_, last = sys.stdin
    print("\n".join(rows(sys.argv[1], json.loads(last), sys.argv[2:])))
