"""The sets of weights in one file: a model, an average of it, a teacher, each in some wrapper.

PyTorch's files are dictionaries in dictionaries. Wrappers of a model, for several devices or for
compilation, trainers, averages and teachers put a word and a dot before all of its names; mmcv puts
an average among the model's own arrays, as `ema_` and the name with "_" for each dot.
"""

import collections
import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from segmenter_jax.conversion.arrays import ArrayFile, LazyArray, SourceError, Values
from segmenter_jax.conversion.files import read_groups
from segmenter_jax.conversion.huggingface import SHARDS, read_shards

# Whether names are those of a model's arrays.
Known = Callable[[Collection[str]], bool]

# Of words before names.
_MAX_DEPTH = 4

_MMCV = "ema_"


@dataclasses.dataclass(frozen=True)
class WeightSet:
    """Weights by name, without what stands before all of the names.

    Attributes:
      values: arrays, and whatever is between them.
      outside: values of the same group that belong to no set.
    """

    values: Values
    outside: Values


def weight_sets(groups: Mapping[str, Values], known: Known) -> dict[str, WeightSet]:
    """The sets of weights in groups of arrays.

    Args:
      groups: by path.
      known: tells the names of a model.

    Returns:
      Sets by the path of their group and the words before their names; "." is the file itself.
    """
    found: dict[str, WeightSet] = {}
    for path, group in groups.items():
        sets = _sets(group, known, 0)
        used = {id(value) for values in sets.values() for value in values.values()}
        outside = {name: value for name, value in group.items() if id(value) not in used}
        for inner, values in sets.items():
            found[f"{path}.{inner}".strip(".") or "."] = WeightSet(values, outside)
    return found


def _sets(values: Values, known: Known, depth: int) -> dict[str, Values]:
    by_word: dict[str, dict[str, Any]] = collections.defaultdict(dict)
    for name, value in values.items():
        word, dot, rest = name.partition(".")
        if dot:
            by_word[word][rest] = value
    if known(values):
        # Only what repeats the model's own names is another set.
        again = {w: v for w, v in by_word.items() if len(v.keys() & values.keys()) > len(v) / 2}
        own = {n: v for n, v in values.items() if n.partition(".")[0] not in again}
        mmcv = {n: own[k] for n in own if (k := _MMCV + n.replace(".", "_")) in own}
        own = {n: v for n, v in own.items() if not (mmcv and n.startswith(_MMCV))}
        return {"": own, **again, **({f"{_MMCV}*": mmcv} if mmcv else {})}
    if depth == _MAX_DEPTH:
        return {}
    return {
        f"{word}.{inner}".strip("."): found
        for word, inside in by_word.items()
        for inner, found in _sets(inside, known, depth + 1).items()
    }


def read_arrays(path: os.PathLike | str, known: Known, entry: str | None = None) -> ArrayFile:
    """Opens a file of weights, and finds in it the weights of one model.

    Args:
      path: the file.
      known: tells the names of a model, such as `opening.Format.detect` does.
      entry: name of the set of weights wanted; None takes the only one.

    Raises:
      SourceError: not such a file, or one that is damaged or refused, or whose set of weights is
        not clear.
    """
    path = pathlib.Path(path)
    read = read_shards if path.name.endswith(SHARDS) else read_groups
    groups, extra = read(path)
    sets = weight_sets(groups, known)
    if not sets and len(groups) == 1:
        # Whose names nobody knows, which the caller says.
        sets = {name: WeightSet(values, {}) for name, values in groups.items()}
    name = _choose(path, sets, entry)
    # Top-level values such as the number of an epoch may stand among the arrays.
    arrays = {k: v for k, v in sets[name].values.items() if isinstance(v, LazyArray) or "." in k}
    for key, value in arrays.items():
        if not isinstance(value, LazyArray):
            raise SourceError(f"{path}: entry {key!r} is no tensor but {_kind(value)}")
    outside = {k: v.shape for k, v in sets[name].outside.items() if isinstance(v, LazyArray)}
    return ArrayFile(path, arrays, extra, tuple(sets.keys() - {name}), outside)


def _choose(path: pathlib.Path, sets: dict[str, WeightSet], entry: str | None) -> str:
    listed = ", ".join(f"{name} ({len(s.values)})" for name, s in sets.items())
    if not sets:
        raise SourceError(f"{path}: holds no arrays of a model")
    if entry is not None and entry not in sets:
        raise SourceError(f"{path}: has no entry {entry!r}, but these (arrays): {listed}")
    if entry is None and len(sets) > 1:
        raise SourceError(
            f"{path}: holds {len(sets)} sets of weights; choose one with --entry, or with "
            f"config.init_entry in training (arrays): {listed}"
        )
    return next(iter(sets)) if entry is None else entry


def _kind(value: Any) -> str:
    return json.dumps(value)[:60] if isinstance(value, str | int | float) else type(value).__name__
