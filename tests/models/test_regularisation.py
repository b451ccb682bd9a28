"""Stochastic depth and dropout: where they are, at which rates, and with keys of their own.

Networks of zeros whose every part adds a number that can be told apart in the logits.
"""

import functools

import jax
import numpy as np
import pytest

from segmenter_jax.models import Segmenter
from segmenter_jax.models.params import abstract_params
from tests.tiny import tiny_network

DEPTH, WIDTH = 4, 64


def silent_params(config):
    """Parameters of a network that adds nothing anywhere, and norms without scale and shift."""

    def value(path, leaf):
        return np.full(leaf.shape, float(path[-1].key == "scale"), np.float32)

    return jax.tree_util.tree_map_with_path(value, abstract_params(config))


@functools.cache
def training_network(config):
    model, rngs = Segmenter(config), {"dropout": jax.random.key(0)}
    return jax.jit(lambda p, image: model.apply({"params": p}, image, train=True, rngs=rngs))


def training_logits(config, params, batch):
    """Logits (batch, K) of black images of one patch."""
    image = np.zeros((batch, *config.image_size, 3), np.float32)
    return np.asarray(training_network(config)(params, image)).reshape(batch, -1)


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        ("encoder", {"depth": DEPTH, "decoder": "linear", "drop_path_rate": 0.6}),
        (
            "encoder",
            {"depth": DEPTH, "decoder": "linear", "drop_path_rate": 0.6, "scan_layers": True},
        ),
        ("decoder", {"decoder_depth": DEPTH, "decoder_drop_path_rate": 0.6}),
    ],
    ids=["encoder", "scanned", "decoder"],
)
def test_branches_are_dropped_by_themselves_and_more_often_layer_by_layer(part, fields):
    # Branch j adds 1 to component j, and logit j shows it; the last logit shows none.
    branches = 2 * DEPTH
    config = tiny_network(image_size=(8, 8), num_classes=branches + 1, **fields)
    params = silent_params(config)
    block = {"encoder": "encoderblock", "decoder": "block"}[part]
    for layer in range(DEPTH):
        weights = params[part][f"{block}_{layer}"]
        weights["attention"]["out"]["bias"][2 * layer] = 1
        weights["mlp"]["Dense_1"]["bias"][2 * layer + 1] = 1
    decoder = params["decoder"]
    if part == "encoder":
        decoder["head"]["kernel"][:] = np.eye(WIDTH, branches + 1)
    else:
        for k in range(branches + 1):
            decoder["class_embedding"][0, k, WIDTH // 2 + k] = 50
            decoder["proj_classes"][WIDTH // 2 + k, k] = 1
        decoder["proj_patch"][:] = np.eye(WIDTH)

    logits = training_logits(config, params, batch=512)
    added = logits[:, :-1] - logits[:, -1:]
    # Norms scale all of a sample alike, and the first layer is never dropped.
    added /= added[:, :1]
    kept = added > 0.5
    keep = 1 - np.repeat([0.0, 0.2, 0.4, 0.6], 2)
    np.testing.assert_allclose(added, np.where(kept, 1 / keep, 0), atol=1e-3)
    # Five standard deviations: of a share, and of the correlation of what is independent.
    np.testing.assert_allclose(kept.mean(axis=0), keep, atol=5 * 0.5 / 512**0.5)
    correlation = np.corrcoef(kept[:, 2:], rowvar=False) - np.eye(branches - 2)
    assert np.abs(correlation).max() < 5 / 512**0.5


def test_dropout_follows_positions_attention_and_both_layers_of_the_mlp():
    rate = 0.25
    config = tiny_network(image_size=(8, 8), num_classes=WIDTH, decoder="linear", dropout_rate=rate)
    shares = {}
    for place in ("positions", "attention", "hidden", "mlp"):
        params = silent_params(config)
        params["decoder"]["head"]["kernel"][:] = np.eye(WIDTH)
        encoder = params["encoder"]
        block = encoder["encoderblock_0"]
        if place == "positions":
            encoder["pos_embedding"][:] = 1
        elif place == "attention":
            block["attention"]["out"]["bias"][:] = 1
        elif place == "mlp":
            block["mlp"]["Dense_1"]["bias"][:] = 1
        else:
            block["mlp"]["Dense_0"]["bias"][:] = 1
            block["mlp"]["Dense_1"]["kernel"][:WIDTH] = np.eye(WIDTH)
        # The last norm leaves what was dropped below 0.
        shares[place] = (training_logits(config, params, batch=128) > 0).mean()
    keep = 1 - rate
    expected = {"positions": keep, "attention": keep, "hidden": keep**2, "mlp": keep}
    assert shares == pytest.approx(expected, abs=5 * 0.5 / (128 * WIDTH) ** 0.5)
