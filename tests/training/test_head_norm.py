"""A batch norm before the linear head: in training, over devices, and folded in afterwards."""

import dataclasses

import jax
import numpy as np
import pytest

from segmenter_jax.models import Segmenter
from segmenter_jax.training import sharding
from tests.tiny import tiny_network
from tests.training.test_program import (
    OPTIONS,
    assert_trees_close,
    first_state,
    make_batch,
    one_device,
    program_of,
    run_from,
)

NORMED = tiny_network(decoder="linear", head_norm="batch")


def after_two_steps(mesh, config=NORMED, **options):
    program = program_of(mesh, dataclasses.replace(OPTIONS, **options), config)
    state, metrics = run_from(program, first_state(program), [make_batch(seed=i) for i in range(2)])
    return state, [float(row["loss"]) for row in metrics]


def test_folded_head_computes_what_the_norm_and_the_head_do():
    state, _ = after_two_steps(one_device(), ema_decay=0.5)
    stats = state.stats["decoder"]["head_norm"]
    assert np.abs(stats["mean"]).max() > 0.01 and np.abs(stats["var"] - 1).max() > 0.01
    variables = {"params": state.ema, "batch_stats": state.stats}
    image = np.random.default_rng(0).standard_normal((2, 32, 40, 3)).astype(np.float32)
    expected = Segmenter(NORMED).apply(variables, image)
    plain = Segmenter(dataclasses.replace(NORMED, head_norm="none"))
    found = plain.apply({"params": state.eval_params}, image)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_statistics_are_those_of_the_global_batch():
    one, eight = (after_two_steps(mesh) for mesh in (one_device(), sharding.make_mesh()))
    np.testing.assert_allclose(eight[1], one[1], rtol=1e-5)
    assert_trees_close(eight[0].stats, one[0].stats, atol=1e-6)
    assert_trees_close(eight[0].params, one[0].params, atol=1e-5)


def test_parts_of_a_batch_follow_each_other_in_the_statistics():
    frozen = {"freeze_encoder": True}
    cut, _ = after_two_steps(one_device(), grad_accum_steps=2, **frozen)
    program = program_of(one_device(), dataclasses.replace(OPTIONS, **frozen), NORMED)
    batches = [make_batch(seed=i) for i in range(2)]
    # Every second row is one part.
    parts = [{k: v[i::2] for k, v in batch.items()} for batch in batches for i in range(2)]
    whole, _ = run_from(program, first_state(program), parts)
    # Of a frozen encoder's tokens, which no update changes.
    assert_trees_close(cut.stats, whole.stats, atol=1e-6)


def test_channels_are_left_out_of_whole_images():
    config = tiny_network(decoder="linear", head_dropout_rate=0.5)
    key = jax.random.key(0)
    params = Segmenter(config).init(key, np.zeros((1, 32, 32, 3)))["params"]
    tokens = np.ones((2, 16, 64), np.float32)
    head = params["decoder"]["head"]
    logits = Segmenter(config).apply(
        {"params": params}, tokens, (32, 32), True, method="decode", rngs={"dropout": key}
    )
    # Equal tokens stay equal within an image, and differ between images.
    assert np.ptp(logits, axis=(1, 2)).max() < 1e-6
    assert np.abs(logits[0] - logits[1]).max() > 1e-3
    full = Segmenter(config).apply({"params": params}, tokens, (32, 32), method="decode")
    np.testing.assert_allclose(full[0, 0, 0], head["kernel"].sum(0) + head["bias"], atol=1e-5)


def test_the_mask_decoder_has_no_head_to_normalise():
    with pytest.raises(ValueError, match=r"head_norm='batch' .* of the linear decoder"):
        tiny_network(head_norm="batch")
