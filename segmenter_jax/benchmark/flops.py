"""Matmul work of a Segmenter, and what a device can do."""

import functools
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from segmenter_jax.benchmark.devices import device_spec
from segmenter_jax.models import SegmenterConfig
from segmenter_jax.models.choices import Decoder
from segmenter_jax.models.config import patch_grid
from segmenter_jax.models.transformer import BlockConfig

# Forward and backward pass: each matmul has two in its gradient.
TRAIN_FACTOR = 3


def _block(tokens: int, width: int, block: BlockConfig) -> int:
    products = 3 if block.mlp == "swiglu" else 2
    projections = 4 * width * width + products * width * block.mlp_dim
    return 2 * tokens * projections + 4 * tokens * tokens * width


def num_tokens(config: SegmenterConfig) -> int:
    """Tokens of the encoder at `config.image_size`."""
    rows, columns = patch_grid(config.image_size, config.patch_size)
    return rows * columns + config.num_extra_tokens


def forward_flops(config: SegmenterConfig) -> dict[str, int]:
    """Matmul FLOPs (2 x multiply-add) of the forward pass of one image, by part.

    Upsampling, what follows it with the decoder "eomt", and loss are left out: how much they cost
    depends on how they are written.
    """
    tokens, width = num_tokens(config), config.width
    patches = tokens - config.num_extra_tokens
    work = {
        "embedding": 2 * patches * config.patch_size**2 * config.in_channels * width,
        "encoder": config.depth * _block(tokens, width, config.encoder_block()),
    }
    return work | _DECODER_WORK[config.decoder](config, patches)


def train_flops(config: SegmenterConfig, freeze_encoder: bool = False) -> int:
    """Matmul FLOPs of one image's part of a training step, as `forward_flops` counts them.

    Args:
      config: the network.
      freeze_encoder: the encoder has no backward pass.
    """
    return sum(
        work * (TRAIN_FACTOR if part == "decoder" or not freeze_encoder else 1)
        for part, work in forward_flops(config).items()
    )


def _linear(config: SegmenterConfig, patches: int) -> dict[str, int]:
    return {"decoder": 2 * patches * config.width * config.num_classes}


def _mask(config: SegmenterConfig, patches: int) -> dict[str, int]:
    width, classes = config.width, config.num_classes
    blocks = config.decoder_depth * _block(patches + classes, width, config.decoder_block())
    projections = 2 * width * width * (2 * patches + classes)
    return {"decoder": blocks + projections + 2 * patches * classes * width}


def _eomt(config: SegmenterConfig, patches: int) -> dict[str, int]:
    """Counts the encoder, too: queries go through its last blocks."""
    width, queries, block = config.width, config.num_queries, config.encoder_block()
    tokens, last = patches + config.num_extra_tokens, config.decoder_depth
    encoder = (config.depth - last) * _block(tokens, width, block)
    # Each doubling has a product for each of four places; nine more are no matmul.
    doublings = sum(patches * 4**i * 4 * width * width for i in range(config.num_upscales))
    heads = queries * width * (3 * width + config.num_classes + 1)
    masks = patches * 4**config.num_upscales * queries * width
    return {
        "encoder": encoder + last * _block(tokens + queries, width, block),
        "decoder": 2 * (doublings + heads + masks),
    }


_DECODER_WORK: dict[Decoder, Callable[[SegmenterConfig, int], dict[str, int]]] = {
    "linear": _linear,
    "mask": _mask,
    "eomt": _eomt,
}


@functools.cache
def peak_tflops() -> tuple[float, str]:
    """Peak TF/s of one device, and where the number is from.

    Unknown devices, CPUs among them, are measured: the best of ten float32 products of 2048 x 2048
    matrices.
    """
    kind = jax.devices()[0].device_kind
    if spec := device_spec(kind):
        return spec.peak_tflops, f"datasheet of {kind}, bfloat16"
    size = 2048
    x = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / 1e12, f"float32 matmul of {size} measured on {kind}"


def utilisation(
    flops_per_image: int, images_per_s: float, num_devices: int, peak: tuple[float, str]
) -> dict[str, float | str]:
    """Achieved TF/s of all devices and its share of their peak, with the inputs of the formula."""
    achieved = flops_per_image * images_per_s / 1e12
    return {
        "gflops_per_image": flops_per_image / 1e9,
        "achieved_tflops": achieved,
        "peak_tflops": peak[0] * num_devices,
        "peak_source": peak[1],
        "mfu_percent": 100 * achieved / (peak[0] * num_devices),
    }
