"""Metrics between two log lines: means, rates, and what happens when they are not finite."""

import jax.numpy as jnp
import pytest

from segmenter_jax.training import step_metrics
from segmenter_jax.training.step_metrics import NonFiniteLossError, Progress


def row(loss=1.0, grad_norm=1.0, skipped=0.0, learning_rate=0.5):
    values = {
        "loss": loss,
        "grad_norm": grad_norm,
        "update_norm": 1.0,
        "learning_rate": learning_rate,
        "skipped": skipped,
    }
    return {name: jnp.float32(value) for name, value in values.items()}


def filled(rows, **fields):
    progress = Progress(10, **fields)
    for values in rows:
        progress.add(values)
    return progress


def test_means_are_those_of_the_steps_since_the_last_line(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(step_metrics.time, "monotonic", lambda: clock[0])
    progress = filled([row(loss=1.0), row(loss=3.0, learning_rate=0.25)], started=100.0)
    clock[0] += 5.0
    progress.paused = 1.0
    values = progress.fetch()
    assert (values["loss"], values["learning_rate"], values["skipped"]) == (2.0, 0.25, 0.0)
    assert values["steps_per_second"] == 2 / 4
    assert (progress.step, progress.paused, len(progress.pending)) == (12, 0.0, 0)
    progress.add(row(loss=7.0))
    clock[0] += 1.0
    assert progress.fetch()["loss"] == 7.0


def test_skipped_steps_count_in_their_share_only():
    progress = filled([row(loss=2.0), row(loss=float("nan"), skipped=1.0)], max_skipped=1)
    values = progress.fetch()
    assert values["loss"] == 2.0 and values["skipped"] == 0.5


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_first_step_that_is_not_finite_is_named(name):
    progress = filled([row(), row(**{name: float("inf")}), row(loss=float("nan"))])
    with pytest.raises(NonFiniteLossError, match=f"the {name} of step 12 is inf, with learning"):
        progress.check_finite()


def test_skipped_steps_in_a_row_are_counted_over_lines():
    bad = row(loss=float("nan"), skipped=1.0)
    progress = filled([row(), bad, bad], max_skipped=3)
    progress.fetch()
    assert progress.skipped_in_a_row == 2
    progress.add(bad)
    progress.check_finite()
    progress.add(bad)
    with pytest.raises(NonFiniteLossError, match=r"loss of step 15 is nan.* after 3 skipped"):
        progress.fetch()


def test_a_finite_step_ends_the_row():
    bad = row(loss=float("nan"), skipped=1.0)
    progress = filled([bad, bad, row(), bad, bad], max_skipped=2)
    progress.fetch()
    assert progress.skipped_in_a_row == 2
