"""Fills pages with what the code says: every setting and its comment, every config that is shipped.

A page asks for it by a line such as `<!-- generated: settings -->`.
"""

import ast
import importlib
import inspect
import io
import tokenize
from collections.abc import Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from segmenter_jax.configs import common
from segmenter_jax.runtime.config_flag import config_names

_MARK = "<!-- generated: {} -->"

# Links from a page to files that the site has as pages of its own.
_PAGES = {
    "](../launch/README.md)": "](launch.md)",
    "](../CONTRIBUTING.md)": "](contributing.md)",
    "](../CHANGELOG.md)": "](changelog.md)",
}


class Setting(NamedTuple):
    """A field of `configs/common.py`, or a group of them, whose default is then a `ConfigDict`."""

    name: str
    default: Any
    meaning: str


def _comments(source: str) -> dict[int, tuple[str, bool]]:
    """Comments by line, and whether they have the line to themselves."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: (
            token.string.removeprefix("#").strip(),
            not token.line[: token.start[1]].strip(),
        )
        for token in tokens
        if token.type == tokenize.COMMENT
    }


def settings() -> Iterator[Setting]:
    """Every group and setting of `configs/common.py`, with the comment beside or above it."""
    source = inspect.getsource(common)
    comments = _comments(source)
    (function,) = [n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)]
    values = common.get_config()
    for statement in function.body:
        if not (
            isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Attribute)
        ):
            continue
        name = ast.unparse(statement.targets[0]).removeprefix("config.")
        first = statement.lineno
        while comments.get(first - 1, ("", False))[1]:
            first -= 1
        lines = range(first, statement.end_lineno + 1)
        said = " ".join(comments[line][0] for line in lines if line in comments)
        default = values
        for part in name.split("."):
            default = default[part]
        yield Setting(name, default, said)


def _settings_page() -> str:
    lines = ["## The run", "", "| setting | default | |", "| --- | --- | --- |"]
    for name, default, meaning in settings():
        meaning = meaning.replace("|", "\\|")
        if isinstance(default, ConfigDict):
            lines += ["", f"## {name}", "", meaning, ""]
            lines += ["| setting | default | |", "| --- | --- | --- |"]
        else:
            lines.append(f"| `{name}` | `{default!r}` | {meaning} |")
    return "\n".join(lines)


def _configs_page() -> str:
    lines = ["| `--config=` | |", "| --- | --- |"]
    for name in config_names():
        if name != "common":
            said = inspect.getdoc(importlib.import_module(f"segmenter_jax.configs.{name}"))
            lines.append(f"| `{name}` | {said.splitlines()[0]} |")
    return "\n".join(lines)


def _fill(app: Any, page: str, source: list[str]) -> None:
    text = source[0]
    for name, make in (("settings", _settings_page), ("configs", _configs_page)):
        if (mark := _MARK.format(name)) in text:
            text = text.replace(mark, make())
    for link, page_of_ours in _PAGES.items():
        text = text.replace(link, page_of_ours)
    source[0] = text


def setup(app: Any) -> dict[str, bool]:
    """Entry point of a Sphinx extension."""
    app.connect("source-read", _fill)
    return {"parallel_read_safe": True}
