"""Matmul work of a Segmenter, and what a device can do."""

import functools
import time

import jax
import jax.numpy as jnp

from segmenter_jax.benchmark.devices import device_spec
from segmenter_jax.models import SegmenterConfig
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
    width, classes = config.width, config.num_classes
    patches = num_tokens(config) - config.num_extra_tokens
    work = {
        "embedding": 2 * patches * config.patch_size**2 * config.in_channels * width,
        "encoder": config.depth * _block(num_tokens(config), width, config.encoder_block()),
    }
    if config.decoder == "eomt":
        return work | _queries(config, patches)
    if config.decoder == "linear":
        return work | {"decoder": 2 * patches * width * classes}
    decoder = config.decoder_depth * _block(patches + classes, width, config.decoder_block())
    projections = 2 * width * width * (2 * patches + classes)
    return work | {"decoder": decoder + projections + 2 * patches * classes * width}


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


def _queries(config: SegmenterConfig, patches: int) -> dict[str, int]:
    """Parts of `forward_flops` that are others with the decoder "eomt"."""
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
