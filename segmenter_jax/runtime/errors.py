"""Errors of several rooms, and errors as one line of text."""

from collections.abc import Sequence


class DataError(ValueError):
    """A dataset, or one of its files, is not what it has to be. The message names the file."""


def one_line(error: BaseException) -> str:
    """The whole message of an error without line breaks; its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for errors of other libraries; else its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def first_few(items: Sequence[object], count: int, separator: str = ", ") -> str:
    """Joins the first `count` items of a list, and says how many more there are."""
    shown = [str(item) for item in items[:count]]
    if len(items) > count:
        shown.append(f"and {len(items) - count} more")
    return separator.join(shown)


def root(error: BaseException) -> BaseException:
    """What an error was raised for, where one library wraps what another says."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
