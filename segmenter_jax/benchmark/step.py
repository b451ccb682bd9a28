"""The training step as training runs it, on a batch that stays on the device."""

import dataclasses
from typing import Any

import numpy as np
import optax

from segmenter_jax.benchmark import flops
from segmenter_jax.benchmark.measure import (
    Result,
    Timing,
    compile_timed,
    device_memory,
    summarise,
    time_calls,
)
from segmenter_jax.models import Segmenter, SegmenterConfig
from segmenter_jax.models.choices import NORMALIZATION
from segmenter_jax.models.params import init_params
from segmenter_jax.training import sharding
from segmenter_jax.training.optimizers import make_optimizer
from segmenter_jax.training.program import Batch, TrainProgram
from segmenter_jax.training.state import StepOptions
from segmenter_jax.training.step_metrics import steps_in_flight


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """What of a training step the command line sets, besides the network.

    Attributes:
      batch_size: global.
      devices: number of devices; None means all.
      fsdp: pieces that parameters are cut into.
      grad_accum_steps: parts that a batch is processed in.
      photometric: with the colour augmentation of training.
    """

    batch_size: int
    devices: int | None
    fsdp: int
    grad_accum_steps: int
    photometric: bool

    def program(self, config: SegmenterConfig) -> TrainProgram:
        """The training program of a network, with SGD."""
        mesh = sharding.make_mesh(self.fsdp, self.devices)
        sharding.check_batch_size(self.batch_size, mesh, self.grad_accum_steps)
        options = StepOptions(
            *NORMALIZATION["vit"],
            photometric=self.photometric,
            grad_accum_steps=self.grad_accum_steps,
        )
        optimizer = make_optimizer(
            "sgd", momentum=0.9, nesterov=True, weight_decay=0.0, clip_norm=None
        )
        return TrainProgram(
            Segmenter(config), optimizer, optax.constant_schedule(1e-3), options, mesh
        )


class TrainingStep:
    """A compiled training step, its state, and a batch that stays on the device."""

    def __init__(self, config: SegmenterConfig, settings: StepSettings):
        program = settings.program(config)
        self.put, self.num_devices = program.put, program.mesh.size
        self.in_flight = steps_in_flight(program.mesh)
        self.state = program.place(init_params(config, program.seed))
        self.batch = program.put(random_batch(config, settings.batch_size))
        self.compiled, self.memory = compile_timed(program.step, self.state, self.batch)

    def __call__(self, batch: Batch | None = None) -> Any:
        """One step on `batch`, or on the resident one; returns its metrics."""
        batch = self.batch if batch is None else batch
        self.state, metrics = self.compiled(self.state, batch)
        return metrics


def random_batch(config: SegmenterConfig, batch_size: int) -> dict[str, np.ndarray]:
    """A uint8 training batch of noise; every pixel is labelled."""
    rng = np.random.default_rng(0)
    shape = (batch_size, *config.image_size)
    return {
        "image": rng.integers(0, 256, (*shape, config.in_channels), np.uint8),
        "label": rng.integers(0, min(config.num_classes, 255), shape, np.uint8),
        "valid_size": np.full((batch_size, 2), config.image_size, np.int32),
    }


def benchmark_step(config: SegmenterConfig, settings: StepSettings, timing: Timing) -> Result:
    """The training step on a resident batch, each waited for."""
    step = TrainingStep(config, settings)
    times = summarise(time_calls(step, timing.steps, timing.warmup))
    timing.trace(step)
    images_per_s = 1e3 * settings.batch_size / times["step_ms"]
    work = flops.train_flops(config)
    return {
        "images_per_s": images_per_s,
        **times,
        **flops.utilisation(work, images_per_s, step.num_devices, timing.peak_tflops),
        **step.memory,
        **device_memory(),
        "loss": float(step()["loss"]),
    }
