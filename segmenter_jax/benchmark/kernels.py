"""Attention and loss on their own: every implementation on the same arrays."""

import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np

from segmenter_jax.benchmark.flops import TRAIN_FACTOR, num_tokens
from segmenter_jax.benchmark.measure import Result, Timing, compile_timed, summarise, time_calls
from segmenter_jax.models import SegmenterConfig
from segmenter_jax.models.attention import attention, probe
from segmenter_jax.models.choices import IMPLEMENTATIONS
from segmenter_jax.models.config import patch_grid
from segmenter_jax.training.losses import Implementation, segmentation_loss


def benchmark_attention(
    config: SegmenterConfig, batch_size: int, tokens: int | None, timing: Timing
) -> Result:
    """Forward, and forward with backward, of the encoder's attention, or of that of `tokens`."""
    tokens, heads = tokens or num_tokens(config), config.num_heads
    head_dim = config.width // heads
    dtype = jnp.dtype(config.compute_dtype())
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (batch_size, tokens, heads, head_dim)
    query, key, value, cotangent = (jax.random.normal(k, shape, dtype) for k in keys)
    flops = 4 * batch_size * heads * tokens**2 * head_dim
    result: Result = {"shape": shape}
    for name in IMPLEMENTATIONS[1:]:
        if problem := probe(name, shape[1:], dtype):
            result[f"{name}_unavailable"] = problem
            continue
        forward = functools.partial(attention, implementation=name)

        def both(query, key, value, cotangent, forward=forward):
            out, backward = jax.vjp(forward, query, key, value)
            return out, backward(cotangent)

        for label, function, args, factor in (
            ("forward", forward, (query, key, value), 1),
            ("train", both, (query, key, value, cotangent), TRAIN_FACTOR),
        ):
            compiled, memory = compile_timed(jax.jit(function), *args)
            call = functools.partial(compiled, *args)
            times = summarise(time_calls(call, timing.steps, timing.warmup))
            prefix = f"{name}_{label}_"
            result[prefix + "ms"] = times["step_ms"]
            result[prefix + "min_ms"] = times["min_ms"]
            result[prefix + "tflops"] = factor * flops / times["step_ms"] / 1e9
            result[prefix + "temp_memory_mb"] = memory["temp_memory_mb"]
    return result


def benchmark_loss(config: SegmenterConfig, batch_size: int, timing: Timing) -> Result:
    """Value and gradient of the loss on random logits."""
    rng = np.random.default_rng(0)
    batch, classes = batch_size, config.num_classes
    logits = jnp.asarray(
        rng.normal(size=(batch, *patch_grid(config.image_size, config.patch_size), classes)),
        jnp.float32,
    )
    label = jnp.asarray(rng.integers(0, classes, (batch, *config.image_size)), jnp.uint8)
    result: Result = {}
    outputs = {}
    for name in typing.get_args(Implementation):
        loss = functools.partial(
            segmentation_loss,
            patch_size=config.patch_size,
            ignore_label=255,
            implementation=name,
        )
        function = jax.jit(jax.value_and_grad(loss, has_aux=True))
        compiled, memory = compile_timed(function, logits, label)
        call = functools.partial(compiled, logits, label)
        times = summarise(time_calls(call, timing.steps, timing.warmup), f"{name}_")
        result |= times | {f"{name}_{key}": value for key, value in memory.items()}
        outputs[name] = jax.device_get(call())
    (fused, fused_grad), (plain, plain_grad) = outputs["fused"], outputs["plain"]
    return result | {
        "fused_over_plain_time": result["fused_step_ms"] / result["plain_step_ms"],
        "fused_over_plain_memory": result["fused_temp_memory_mb"] / result["plain_temp_memory_mb"],
        "relative_loss_difference": float(abs(fused[0] - plain[0]) / plain[0]),
        "relative_gradient_difference": float(
            np.abs(fused_grad - plain_grad).max() / np.abs(plain_grad).max()
        ),
    }
