"""What a step on a frozen encoder costs beside the encoder's forward pass, in turns.

python -m tests.soak.frozen_cost [ROUNDS]

Prints the median quotient of times with its quartiles, and that of temporary memory.
"""

import sys
import time

import jax
import numpy as np

from segmenter_jax.benchmark.step import random_batch
from segmenter_jax.models import Segmenter, SegmenterConfig
from segmenter_jax.models.choices import NORMALIZATION
from segmenter_jax.models.params import init_params
from segmenter_jax.training import optimizers, sharding
from segmenter_jax.training.program import TrainProgram
from segmenter_jax.training.state import StepOptions


def main(rounds: int) -> None:
    """Times both programs in turns; DINOv2-S, linear decoder, 8 crops of 252 pixels."""
    config = SegmenterConfig.from_variant(
        "dinov2_S/14",
        num_classes=11,
        image_size=(252, 252),
        decoder="linear",
        head_norm="batch",
        drop_path_rate=0.0,
    )
    optimizer = optimizers.make_optimizer(
        "adamw", momentum=0.9, nesterov=False, weight_decay=1e-4, clip_norm=None
    )
    options = StepOptions(*NORMALIZATION["imagenet"], freeze_encoder=True)
    mesh = sharding.make_mesh(num_devices=1)
    program = TrainProgram(Segmenter(config), optimizer, lambda _: 1e-3, options, mesh)
    state = program.place(init_params(config, 0))
    batch = program.put(random_batch(config, 8))
    step = program.step.lower(state, batch).compile()
    image = np.zeros((8, 252, 252, 3), np.float32)
    encoder = jax.tree.map(np.array, state.params["encoder"])
    forward = jax.jit(
        lambda p, x: program.model.apply({"params": {"encoder": p}}, x, method="encode")
    )
    forward = forward.lower(encoder, image).compile()
    encoder, image = jax.device_put((encoder, image))

    ratios = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        forward(encoder, image).block_until_ready()
        middle = time.perf_counter()
        state, metrics = step(state, batch)
        metrics["loss"].block_until_ready()
        ratios.append((time.perf_counter() - middle) / (middle - start))
    low, median, high = np.percentile(ratios[1:], [25, 50, 75])
    memory = [p.memory_analysis().temp_size_in_bytes for p in (step, forward)]
    print(f"time {median:.3f} ({low:.3f} to {high:.3f}) of the forward pass, {rounds} rounds")
    print(f"temporary memory {memory[0] / memory[1]:.3f}: {memory[0]:,} and {memory[1]:,} bytes")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
