"""What makes a recipe fit, and how large its batch may be, in a bounded number of compilations."""

import dataclasses
import itertools
from typing import Any

import ml_collections

from segmenter_jax.benchmark.measure import Result
from segmenter_jax.benchmark.plan import Programs, plan_step, programs

# Measures against too little memory, each with the group of the config that it sets.
_REMAT = {"model.remat": True}


@dataclasses.dataclass
class _Trials:
    """Compiles changed recipes, says so, and remembers them."""

    parts: Programs
    num_classes: int | None
    left: int
    done: list[Result]

    def __call__(self, changes: dict[str, Any]) -> Result | None:
        """The step of a changed recipe; None where it cannot be or no trial is left."""
        if not self.left:
            return None
        config = _changed(self.parts.config, changes)
        try:
            parts = programs(config, self.parts.topology, self.num_classes)
        except ValueError:
            # A batch that the parts do not divide.
            return None
        self.left -= 1
        step = plan_step(parts)
        self.note(changes, step)
        return step

    def note(self, changes: dict[str, Any], step: Result) -> None:
        """Says how a trial ended."""
        ms = (step.get("estimate") or {}).get("ms")
        trial = {
            "changes": changes,
            "fits": step["fits"],
            "gb": step.get("total", 0) / 1e9,
            "ms": ms,
        }
        self.done.append(trial)
        text = ", ".join(f"{name}={value}" for name, value in changes.items()) or "as it is"
        time = f"{ms:.1f} ms by estimate" if ms else step.get("problem", "no estimate")
        size = f"{trial['gb']:.2f} GB" if trial["gb"] else "-"
        print(
            f"trial: {text}: {'fits' if step['fits'] else 'does not fit'}, {size}, {time}",
            flush=True,
        )


def search(parts: Programs, step: Result, num_classes: int | None, trials: int) -> Result:
    """Cheapest change that makes the recipe fit, then the largest batch that fits with it.

    Args:
      parts: the programs of the recipe.
      step: what `plan_step` said of it.
      num_classes: see `programs`.
      trials: programs compiled at most, half of them for each question.

    Returns:
      `cheapest`, changes of fields of the config, None if nothing fits; `batch_size`, the largest
      that was found to fit; and every trial.
    """
    tries = _Trials(parts, num_classes, trials - trials // 2, [])
    tries.note({}, step)
    cheapest = {} if step["fits"] else _cheapest(tries)
    result: Result = {"cheapest": cheapest, "batch_size": None, "trials": tries.done}
    if cheapest is not None:
        tries.left += trials // 2
        fitting = step if step["fits"] else None
        result["batch_size"] = _largest_batch(tries, cheapest, fitting)
    return result


def _cheapest(tries: _Trials) -> dict[str, Any] | None:
    """The quickest by estimate of the fewest changes that fit."""
    parts = tries.parts
    accumulate = [{"grad_accum_steps": parts.config.grad_accum_steps * n} for n in (2, 4)]
    cut = {"mesh.fsdp": parts.train.mesh.size}
    single = [_REMAT, *accumulate, cut]
    pairs = [a | b for a, b in itertools.combinations((_REMAT, accumulate[0], cut), 2)]
    for changes in (single, [*pairs, _REMAT | accumulate[1] | cut]):
        fitting = [(c, step) for c in changes if (step := tries(c)) and step["fits"]]
        if fitting:
            best = min(fitting, key=lambda pair: (pair[1].get("estimate") or {}).get("ms", 0))
            return best[0]
    return None


def _largest_batch(tries: _Trials, changes: dict[str, Any], fitting: Result | None) -> int:
    """Largest batch that fits, as far as the trials go; steps are the rows of all devices."""
    config = _changed(tries.parts.config, changes)
    rows = tries.parts.train.mesh.size * config.grad_accum_steps
    low, high = config.batch_size // rows, None
    known = [(low, fitting)] if fitting else []
    while high is None or high - low > 1:
        guess = _guess(known, low, high)
        step = tries(changes | {"batch_size": guess * rows})
        if step is None:
            break
        if step["fits"]:
            low = guess
            known.append((guess, step))
        else:
            high = guess
    return low * rows


def _guess(known: list[tuple[int, Result]], low: int, high: int | None) -> int:
    """Next number of rows: where the memory of two that fit leads to, else doubled or halved."""
    if len(known) > 1:
        (a, first), (b, last) = known[-2:]
        slope = (last["total"] - first["total"]) / (b - a)
        if slope > 0:
            guess = b + int((last["capacity"] - last["total"]) / slope)
            return min(max(guess, low + 1), high - 1 if high else 4 * low)
    return (low + high) // 2 if high else 2 * low


def _changed(
    config: ml_collections.ConfigDict, changes: dict[str, Any]
) -> ml_collections.ConfigDict:
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    return config
