"""The search of a plan, with programs whose memory and time are made up: nothing is compiled."""

import jax
import pytest

from segmenter_jax.benchmark import plan_search
from segmenter_jax.benchmark.devices import DeviceSpec
from segmenter_jax.benchmark.plan_programs import programs
from segmenter_jax.benchmark.topologies import Topology
from segmenter_jax.runtime.config_flag import read_config


def made_up(parts):
    """A step that needs 1 for its state and 1 for each row of a device; 10 are there."""
    config, devices = parts.config, parts.train.mesh.size
    rows = config.batch_size / devices / config.grad_accum_steps
    total = 1 / config.mesh.fsdp + rows * (0.25 if config.model.remat else 1)
    ms = config.batch_size * (1.3 if config.model.remat else 1) + 8 * config.grad_accum_steps
    return {"fits": total <= 10, "total": total, "capacity": 10, "estimate": {"ms": ms}}


@pytest.fixture
def answer(monkeypatch):
    monkeypatch.setattr(plan_search, "plan_step", made_up)

    def search(batch_size, trials=20):
        config = read_config("quickstart", [f"--config.batch_size={batch_size}"])
        parts = programs(config, Topology("eight", jax.devices()[:8], DeviceSpec(1.0, 1.0)))
        return plan_search.search(parts, made_up(parts), None, trials)

    return search


def test_a_recipe_that_fits_is_left_alone_and_its_batch_grows_to_the_edge(answer, capsys):
    found = answer(16)
    assert found["cheapest"] == {} and found["batch_size"] == 72
    assert "largest batch found to fit with that: 72" in capsys.readouterr().out


def test_the_quickest_of_the_changes_that_fit_is_taken(answer):
    # 16 rows a device: halves of 8 fit and cost 8 ms; recomputation fits and costs 38 ms.
    found = answer(128)
    assert found["cheapest"] == {"grad_accum_steps": 2}
    assert [t["fits"] for t in found["trials"][:4]] == [False, True, True, False]


def test_two_changes_are_tried_where_one_is_too_little(answer):
    # 48 rows a device: only a quarter of a half of them fits.
    assert answer(8 * 48)["cheapest"] == {"model.remat": True, "grad_accum_steps": 2}


def test_trials_are_bounded(answer):
    found = answer(8 * 1000, trials=6)
    assert found["cheapest"] is None and found["batch_size"] is None
    # The recipe itself was compiled before.
    assert len(found["trials"]) == 1 + 6 - plan_search._FOR_BATCH
