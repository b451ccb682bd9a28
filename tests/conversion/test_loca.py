"""LOCA's training states: tokens against a computation by hand, and files that are damaged."""

import math

import jax
import msgpack
import numpy as np
import pytest
from flax import serialization

from segmenter_jax.conversion.arrays import SourceError
from segmenter_jax.conversion.opening import Hints
from segmenter_jax.conversion.sources import open_source
from segmenter_jax.models import Segmenter
from tests.conversion.test_backbones import opened_model

WIDTH, HEADS, HIDDEN, PATCH, GRID = 16, 2, 24, 4, (3, 3)


def tree(seed=0):
    """Parameters under LOCA's names, all of them random."""
    rng = np.random.default_rng(seed)

    def array(*shape):
        return (0.3 * rng.normal(size=shape)).astype(np.float32)

    def norm():
        return {"scale": 1 + array(WIDTH), "bias": array(WIDTH)}

    def block():
        head = WIDTH // HEADS
        attention = {
            name: {"kernel": array(WIDTH, HEADS, head), "bias": array(HEADS, head)}
            for name in ("query", "key", "value")
        }
        attention["out"] = {"kernel": array(HEADS, head, WIDTH), "bias": array(WIDTH)}
        mlp = {
            "Dense_0": {"kernel": array(WIDTH, HIDDEN), "bias": array(HIDDEN)},
            "Dense_1": {"kernel": array(HIDDEN, WIDTH), "bias": array(WIDTH)},
        }
        names = ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
        return dict(zip(names, (norm(), attention, norm(), mlp), strict=True))

    return {
        "ToTokenSequence_0": {
            "embedding": {"kernel": array(PATCH, PATCH, 3, WIDTH), "bias": array(WIDTH)},
            "posembed_input": array(1, *GRID, WIDTH),
        },
        "encoderblock_0": block(),
        "encoderblock_1": block(),
        "encoder_norm": norm(),
        "cross_attention_block": block(),
        "final_norm": norm(),
        "position_predictor": {"kernel": array(WIDTH, 9), "bias": array(9)},
        "projection_head_for_clustering_prediction": {"prototypes": {"kernel": array(8, 8)}},
    }


def write(path, **state):
    path.write_bytes(serialization.msgpack_serialize(serialization.to_state_dict(state)))
    return path


@pytest.fixture
def state(tmp_path):
    extra = {"opt_state": {"0": {"mu": tree(2)}, "1": {}}, "global_step": 7, "rng": np.arange(2)}
    return write(tmp_path / "checkpoint_7", params=tree(), **extra)


def layer_norm(x, p):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def attend(x, p):
    q, k, v = (
        np.einsum("bnd,dhe->bhne", x, p[n]["kernel"]) + p[n]["bias"][:, None]
        for n in ("query", "key", "value")
    )
    scores = q @ k.swapaxes(-1, -2) / np.sqrt(WIDTH / HEADS)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = weights / weights.sum(-1, keepdims=True) @ v
    return np.einsum("bhne,hed->bnd", mixed, p["out"]["kernel"]) + p["out"]["bias"]


def mlp(x, p):
    x = x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
    x = x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2
    return x @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]


def tokens_by_hand(image, p):
    """LOCA's tokens in 64 bits, as scenic's ViT4LOCA computes them."""
    p = jax.tree.map(np.float64, p)
    first = p["ToTokenSequence_0"]
    batch, rows, columns = len(image), image.shape[1] // PATCH, image.shape[2] // PATCH
    patches = image.reshape(batch, rows, PATCH, columns, PATCH, 3)
    x = np.einsum("brhcwi,hwid->brcd", patches, first["embedding"]["kernel"])
    position = jax.image.resize(first["posembed_input"], (1, rows, columns, WIDTH), "bilinear")
    x = (x + first["embedding"]["bias"] + position).reshape(batch, rows * columns, WIDTH)
    for name in ("encoderblock_0", "encoderblock_1"):
        block = p[name]
        x = x + attend(layer_norm(x, block["LayerNorm_0"]), block["MultiHeadDotProductAttention_0"])
        x = x + mlp(layer_norm(x, block["LayerNorm_1"]), block["MlpBlock_0"])
    return layer_norm(x, p["encoder_norm"])


def test_tokens_are_those_of_a_computation_by_hand(state):
    description, params, report = opened_model(state)
    model = Segmenter(description.model)
    for grid in (GRID, (2, 5)):
        shape = (1, grid[0] * PATCH, grid[1] * PATCH, 3)
        image = np.random.default_rng(1).normal(size=shape)
        tokens = model.apply({"params": params}, image.astype(np.float32), method=model.encode)
        np.testing.assert_allclose(tokens, tokens_by_hand(image, tree()), atol=2e-5)
    dropped = {name.split("/")[0] for name, _, _ in report.dropped}
    assert dropped == {n for n in tree() if "head" in n or n[:5] in ("cross", "final", "posit")}


def test_which_parameters_of_a_training_state_is_asked(tmp_path):
    path = write(tmp_path / "state", params=tree(), ema_params=tree(1))
    with pytest.raises(SourceError, match=r"holds 2 sets of weights; choose one .*ema_params"):
        open_source(path, Hints())
    opened = open_source(path, Hints(), "ema_params")
    expected = tree(1)["encoder_norm"]["bias"]
    np.testing.assert_array_equal(opened.entries["encoder/encoder_norm/bias"].read(), expected)
    assert opened.notes == ("not read: entry 'params'",)


def missing_norm(content):
    params = tree()
    del params["encoder_norm"]
    return serialization.msgpack_serialize({"params": params})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[: len(content) // 2], "damaged Flax file"),
        (lambda content: content + b"\x01", "damaged Flax file"),
        (missing_norm, "array encoder_norm/scale is missing"),
        # Lists in lists, each said to have as many values as the file has bytes.
        (lambda content: b"\x81\xa1a" + b"\xdd\x00\x00\x40\x00" * 900 + content, "exceeds max"),
        (lambda content: b"\x81\xa1a" * 40 + b"\xc0", "more than 32 levels"),
        (lambda content: msgpack.packb({"a": 1}), "holds no arrays"),
        (
            lambda content: content.replace(b"\xa7float32", b"\xa7float64"),
            "damaged Flax file: .* bytes for shape",
        ),
    ],
)
def test_damaged_states_are_told_in_one_line(state, change, message):
    state.write_bytes(change(state.read_bytes()))
    with pytest.raises(SourceError, match=message) as error:
        open_source(state, Hints())
    assert "\n" not in str(error.value)
