"""One JSON line and one table for a result, and another result beside it."""

import json
import pathlib

from segmenter_jax.benchmark.measure import Result
from segmenter_jax.runtime.files import naming
from segmenter_jax.runtime.tables import align, cell


def read_result(path: str) -> Result:
    """The last JSON line of a file.

    Raises:
      ValueError: the file holds none.
    """
    text = pathlib.Path(path).expanduser().read_text(encoding="utf-8")
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}: the last line with a result is no JSON: {error}"
                ) from None
    raise ValueError(f"{path}: no line holds a JSON object")


def table(result: Result, other: Result | None = None) -> str:
    """Readable form of a result.

    Args:
      result: values by name.
      other: another result; its values and the ratio to them are added.

    Returns:
      Lines of aligned columns.
    """
    rows = [("", "this", *(("other", "this / other") if other else ()))]
    for name, value in result.items():
        cells = [name, cell(value)]
        if other is not None:
            against = other.get(name)
            numbers = all(
                isinstance(v, int | float) and not isinstance(v, bool) for v in (value, against)
            )
            shown = "same" if against == value else cell(against)
            cells += [shown, f"{value / against:.3f}" if numbers and against else ""]
        rows.append(tuple(cells))
    return "\n".join(align(rows))


def report(result: Result, json_path: str | None, compare_path: str | None) -> None:
    """Appends a result to a file, compares and prints it."""
    other = read_result(compare_path) if compare_path else None
    line = json.dumps(result)
    if json_path:
        with (
            naming(json_path),
            pathlib.Path(json_path).expanduser().open("a", encoding="utf-8") as file,
        ):
            file.write(line + "\n")
    print(table(result, other))
    print(line)
