"""Which classes of a source a model takes over: those of the same names."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from segmenter_jax.runtime.errors import first_few

# Axis of the classes in the parameters that have one; the others are shared by all classes.
CLASS_AXES = {
    "decoder/class_embedding": 1,
    "decoder/mask_norm/scale": 0,
    "decoder/mask_norm/bias": 0,
    "decoder/head/kernel": 1,
    "decoder/head/bias": 0,
}

_MAX_LISTED = 20


def placeholder_names(count: int) -> tuple[str, ...]:
    """Names of classes that have none."""
    return tuple(f"class {i}" for i in range(count))


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Classes of a source and of a model that have the same name.

    Attributes:
      ours, theirs: the names, by class.
      sources: for each class of ours that theirs has, its number there.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    sources: Mapping[int, int]

    @property
    def whole(self) -> bool:
        """Whether all are the same, in the same order."""
        same = [i for i, source in self.sources.items() if i == source]
        return len(same) == len(self.ours) == len(self.theirs)

    def take(self, name: str, fresh: np.ndarray, source: np.ndarray) -> np.ndarray:
        """A parameter with the source's values for the classes that it has.

        Args:
          name: one of `CLASS_AXES`.
          fresh: initial values.
          source: the source's, which has its own number of classes.
        """
        axis, result = CLASS_AXES[name], np.array(fresh)
        rows = np.moveaxis(result, axis, 0)
        rows[list(self.sources)] = np.moveaxis(source, axis, 0)[list(self.sources.values())]
        return result

    def __str__(self) -> str:
        known = set(self.sources)
        left = set(range(len(self.theirs))) - set(self.sources.values())
        groups = {
            "taken over by name": [self.ours[i] for i in sorted(known)],
            "newly initialised": [n for i, n in enumerate(self.ours) if i not in known],
            "left in the source": [self.theirs[i] for i in sorted(left)],
        }
        return "; ".join(
            f"{len(names)} {title}: {first_few(names, _MAX_LISTED)}"
            for title, names in groups.items()
            if names
        )


def agree(theirs: Sequence[str] | None, ours: Sequence[str]) -> Agreement | None:
    """Finds the classes of the same names, whatever their case; None where the source has no names.

    Of a name that occurs twice, the first with the first.
    """
    if theirs is None or tuple(theirs) == placeholder_names(len(theirs)):
        return None
    left = list(enumerate(map(_plain, theirs)))
    sources = {}
    for i, name in enumerate(map(_plain, ours)):
        if (found := next((pair for pair in left if pair[1] == name), None)) is not None:
            sources[i] = found[0]
            left.remove(found)
    return Agreement(tuple(ours), tuple(theirs), sources)


def _plain(name: str) -> str:
    return " ".join(name.casefold().split())
