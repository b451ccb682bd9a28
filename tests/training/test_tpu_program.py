"""The training step as it is compiled for eight TPU chips, which need not be there."""

import importlib.util
import math

import jax
import optax
import pytest

from segmenter_jax.benchmark.collectives import collectives_of, minimum_bytes
from segmenter_jax.benchmark.hlo import instructions
from segmenter_jax.benchmark.topologies import describe
from segmenter_jax.models import Segmenter
from segmenter_jax.training import sharding
from segmenter_jax.training.optimizers import make_optimizer
from segmenter_jax.training.program import TrainProgram
from segmenter_jax.training.state import StepOptions
from tests.tiny import tiny_network

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: jax[tpu]"
    ),
    # Programs for absent devices cannot be read back from a cache.
    pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache"),
]

# 257 tokens in the encoder and 261 in the decoder: neither is a multiple of anything.
NETWORK = tiny_network(
    image_size=(128, 128), width=128, depth=4, dtype="auto", scan_layers=True, drop_path_rate=0.1
)


def compiled_step(fsdp):
    """(abstract state, text, memory) of a step of two images a chip."""
    mesh = sharding.make_mesh(fsdp, devices=describe("v5e:2x4").devices)
    program = TrainProgram(
        Segmenter(NETWORK),
        make_optimizer("sgd", momentum=0.9, nesterov=True, weight_decay=0.0, clip_norm=None),
        optax.constant_schedule(0.1),
        StepOptions((0.5,) * 3, (0.5,) * 3, photometric=False),
        mesh,
    )
    state = program.abstract_state()
    compiled = program.step.lower(state, program.abstract_batch(16)).compile()
    return state, compiled.as_text(), compiled.memory_analysis()


@pytest.fixture(scope="module")
def replicated():
    return compiled_step(fsdp=1)


@pytest.fixture(scope="module")
def in_pieces():
    return compiled_step(fsdp=8)


@pytest.mark.parametrize("step", ["replicated", "in_pieces"])
def test_attention_is_the_kernel_and_no_weights_of_it_are_written(step, request):
    _, text, _ = request.getfixturevalue(step)
    found = list(instructions(text))
    for kernel in ("forward_attention", "backward_attention"):
        assert any(kernel in line.text for line in found)
    tokens = math.prod(NETWORK.grid)
    for rows in (tokens + 1, tokens + NETWORK.num_classes):
        assert f",{rows},{rows}]" not in text and f",{rows},{rows}," not in text


@pytest.mark.parametrize("step", ["replicated", "in_pieces"])
def test_tokens_are_neither_copied_nor_transposed_for_attention(step, request):
    _, text, _ = request.getfixturevalue(step)
    tokens = 2 * math.prod(NETWORK.grid) * NETWORK.width
    moves = ("copy", "reshape", "transpose")
    assert not [
        line.text
        for line in instructions(text)
        if line.opcode in moves and "attention" in line.source
        if any(math.prod(array.shape) >= tokens for array in line.arrays)
    ]


def test_gradients_are_summed_once(replicated):
    state, text, memory = replicated
    found = collectives_of(list(instructions(text)), 8)
    assert {collective.kind for collective in found} == {"all-reduce"}
    # In bfloat16 where that is the type of the product.
    assert sum(c.moved for c in found) <= 1.01 * minimum_bytes(state.params, 8)
    assert memory.temp_size_in_bytes < 25e6


def test_pieces_are_gathered_layer_by_layer(replicated, in_pieces):
    state, text, memory = in_pieces
    found = collectives_of(list(instructions(text)), 8)
    assert sum(c.moved for c in found) <= 1.1 * minimum_bytes(state.params, 8)
    # The loop gathers each layer for the forward and for the backward pass, in bfloat16.
    layers = sum(x.size for x in jax.tree.leaves(state.params["encoder"])) * 7 / 8
    gathered = [c for c in found if c.kind == "all-gather" and c.times == NETWORK.depth]
    assert 0.9 * 4 * layers <= sum(c.moved for c in gathered) <= 4 * layers
    assert any(c.kind == "reduce-scatter" and c.times == NETWORK.depth for c in found)
    held = [m.argument_size_in_bytes for m in (replicated[2], memory)]
    assert held[1] < 0.25 * held[0]
    assert memory.temp_size_in_bytes < 1.1 * replicated[2].temp_size_in_bytes
