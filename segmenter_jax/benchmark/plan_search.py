"""What makes a recipe fit, and how large its batch may be, in a bounded number of compilations."""

import dataclasses
import itertools
from typing import Any

import ml_collections

from segmenter_jax.benchmark.measure import Result
from segmenter_jax.benchmark.plan import plan_step
from segmenter_jax.benchmark.plan_programs import Programs, programs

_REMAT = {"model.remat": True}

# Trials kept for the largest batch.
_FOR_BATCH = 4


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
        text = _text(changes)
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
      trials: programs compiled at most; `_FOR_BATCH` of them are kept for the second question.

    Returns:
      `cheapest`, changes of fields of the config, None if nothing fits; `batch_size`, the largest
      that was found to fit; and every trial.
    """
    tries = _Trials(parts, num_classes, max(trials - _FOR_BATCH, 0), [])
    tries.note({}, step)
    cheapest = {} if step["fits"] else _cheapest(tries)
    result: Result = {"cheapest": cheapest, "batch_size": None, "trials": tries.done}
    if cheapest is not None:
        tries.left += min(trials, _FOR_BATCH)
        fitting = step if step["fits"] else None
        result["batch_size"] = _largest_batch(tries, cheapest, fitting)
    print(_answer(result), flush=True)
    return result


def _answer(result: Result) -> str:
    if result["cheapest"] is None:
        return "nothing that was tried makes the recipe fit"
    return (
        f"the recipe fits with: {_text(result['cheapest'])}; the largest batch found to fit with "
        f"that: {result['batch_size']}"
    )


def _text(changes: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in changes.items()) or "no change"


def _cheapest(tries: _Trials) -> dict[str, Any] | None:
    """The quickest by estimate of the fewest changes that fit."""
    parts = tries.parts
    accumulate = {"grad_accum_steps": 2 * parts.config.grad_accum_steps}
    cut = {"mesh.fsdp": parts.train.mesh.size}
    measures = [m for m in (_REMAT, accumulate, cut) if _changed(parts.config, m) != parts.config]
    for count in range(1, len(measures) + 1):
        fitting = []
        for chosen in itertools.combinations(measures, count):
            changes = dict(itertools.chain.from_iterable(c.items() for c in chosen))
            if (step := tries(changes)) and step["fits"]:
                fitting.append(((step.get("estimate") or {}).get("ms", 0), len(fitting), changes))
        if fitting:
            return min(fitting)[2]
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
    """Next number of rows: halfway, or where the memory of two that fit leads to, or twice."""
    if high is not None:
        return (low + high) // 2
    if len(known) > 1:
        (a, first), (b, last) = known[-2:]
        slope = (last["total"] - first["total"]) / (b - a)
        if slope > 0:
            guess = b + int((last["capacity"] - last["total"]) / slope)
            return min(max(guess, low + 1), 4 * low)
    return 2 * low


def _changed(
    config: ml_collections.ConfigDict, changes: dict[str, Any]
) -> ml_collections.ConfigDict:
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    return config
