"""Scaled dot-product attention behind one function.

Implementations, all without mask and for any number of tokens:
  xla: matmul, softmax, matmul; keeps the (B, heads, T, T) weights for the backward pass.
  heads: one head at a time, weights recomputed in the backward pass; the least memory of what runs
    everywhere.
  cudnn: fused kernel of NVIDIA's library, 16-bit types only.
  splash: fused kernel for TPUs, which comes with JAX.
  auto: on a CPU "heads" for `_LONG` tokens or more; elsewhere the platform's fused kernel for a
    16-bit type, if it passes `probe`; else "xla".
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from segmenter_jax.runtime.console import logger
from segmenter_jax.runtime.errors import first_line

IMPLEMENTATIONS = ("auto", "xla", "heads", "cudnn", "splash")

# What "auto" tries for 16-bit types.
_FUSED = {"gpu": "cudnn", "tpu": "splash"}

# On a CPU "xla" is a little faster at every length, and from here on takes twice the memory of a
# training step and more.
_LONG = 512

_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def attention_weights(query: jax.Array, key: jax.Array) -> jax.Array:
    """Softmax attention weights, computed in float32.

    Args:
      query: (B, T, heads, head_dim).
      key: (B, S, heads, head_dim).

    Returns:
      float32 (B, heads, T, S); rows sum to 1.
    """
    scores = _einsum("bthd,bshd->bhts", query, key)
    return jax.nn.softmax(scores * (1 / math.sqrt(query.shape[-1])), axis=-1)


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, implementation: str = "auto"
) -> jax.Array:
    """Full (unmasked) multi-head attention.

    Args:
      query, key, value: (B, T, heads, head_dim), float32 or bfloat16.
      implementation: one of `IMPLEMENTATIONS`, explained at the top of this module.

    Returns:
      (B, T, heads, head_dim) in the dtype of `value`.

    Raises:
      ValueError: the implementation is unknown, or was asked for by name and does not work here.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"{implementation=} is unknown; choose from {IMPLEMENTATIONS}")
    shape = (query.shape[1], *query.shape[2:])
    dtype = jnp.dtype(query.dtype)
    if implementation == "auto":
        implementation = _choose(shape, dtype, jax.default_backend(), jax.device_count())
    elif implementation not in ("xla", "heads") and (
        problem := probe(implementation, shape, dtype)
    ):
        raise ValueError(
            f"attention {implementation=} does not work on {jax.default_backend()} for "
            f"{dtype} {shape}: {problem}"
        )
    return _KERNELS[implementation](query, key, value)


@functools.lru_cache
def _choose(shape: tuple[int, int, int], dtype: jnp.dtype, platform: str, num_devices: int) -> str:
    """What "auto" means for (T, heads, head_dim); the reason is logged once."""
    if platform == "cpu":
        return "heads" if shape[0] >= _LONG else "xla"
    fused = _FUSED.get(platform)
    if fused is None:
        problem = f"there is no fused kernel for {platform}"
    elif dtype.itemsize != 2:
        problem = f"{fused} is not tried for {dtype}"
    elif fused == "splash" and num_devices > 1:
        problem = f"the compiler does not split splash over {num_devices} devices"
    else:
        problem = probe(fused, shape, dtype)
    if problem is None:
        logger.info("attention: %s for %s %s", fused, dtype, shape)
        return fused
    logger.warning("attention: xla for %s %s, because %s", dtype, shape, problem)
    return "xla"


@functools.lru_cache
def probe(name: str, shape: tuple[int, int, int], dtype: jnp.dtype) -> str | None:
    """Compiles and runs an implementation once, forward and backward, and compares it with "xla".

    Args:
      name: one of `IMPLEMENTATIONS` but "auto".
      shape: (T, heads, head_dim).
      dtype: compute type.

    Returns:
      None if it works, else why it does not.

    Raises:
      jax.errors.JaxRuntimeError: the device's memory is full, which says nothing about the kernel.
    """
    rng = np.random.default_rng(0)
    # Two samples, and no more heads than needed: kernels are chosen by length and head size.
    inputs = [
        rng.normal(size=(2, shape[0], min(shape[1], 2), shape[2])).astype(dtype) for _ in range(4)
    ]
    try:
        actual = jax.device_get(_compile(_KERNELS[name], inputs)(*inputs))
    except Exception as error:  # Compilers raise anything; the reason is handed on.
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        return f"{type(error).__name__}: {first_line(error)}"
    inputs = [x.astype(np.float32) for x in inputs]
    expected = jax.device_get(_compile(_xla, inputs)(*inputs))
    tolerance = 2e-2 if dtype.itemsize == 2 else 1e-4
    for label, a, b in zip(("output", "dq", "dk", "dv"), actual, expected, strict=True):
        error = np.abs(a.astype(np.float32) - b).max() / np.abs(b).max()
        if not error <= tolerance:
            return f"{label} differs from xla by {error:.1e} of its largest value"
    return None


def _compile(kernel: Callable[..., jax.Array], inputs: list[np.ndarray]) -> jax.stages.Compiled:
    """A kernel's output and gradients, compiled ahead of time.

    So it also runs while another function is being traced.
    """

    def outputs(query, key, value, cotangent):
        out, backward = jax.vjp(kernel, query, key, value)
        return out, *backward(cotangent)

    return jax.jit(outputs).lower(*inputs).compile()


def _xla(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    # Heads move out of the way first: XLA's CPU compiler is slow at the products otherwise.
    query, key, value = (x.swapaxes(1, 2) for x in (_scaled(query), key, value))
    scores = _einsum("bhtd,bhsd->bhts", query, key)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    out = _einsum("bhts,bhsd->bhtd", weights.astype(value.dtype), value)
    return (out / weights.sum(axis=-1, keepdims=True)).astype(value.dtype).swapaxes(1, 2)


def _scaled(query: jax.Array) -> jax.Array:
    return query * jnp.asarray(1 / math.sqrt(query.shape[-1]), query.dtype)


@jax.custom_vjp
def _one_head(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Attention of a scaled query; all (B, T, head_dim)."""
    return _one_head_forward(query, key, value)[0]


def _one_head_forward(query, key, value):
    scores = _einsum("btd,bsd->bts", query, key)
    peak = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - peak)
    normaliser = weights.sum(axis=-1, keepdims=True)
    out = _einsum("bts,bsd->btd", weights.astype(value.dtype), value) / normaliser
    out = out.astype(value.dtype)
    return out, (query, key, value, out, peak + jnp.log(normaliser))


def _one_head_backward(residuals, cotangent):
    query, key, value, out, log_normaliser = residuals
    dtype = value.dtype
    weights = jnp.exp(_einsum("btd,bsd->bts", query, key) - log_normaliser)
    # Softmax's gradient needs sum(weights * d_weights), which is the output times its cotangent.
    inner = (out * cotangent).astype(jnp.float32).sum(axis=-1, keepdims=True)
    d_scores = weights * (_einsum("btd,bsd->bts", cotangent, value) - inner)
    weights, d_scores = weights.astype(dtype), d_scores.astype(dtype)
    return (
        _einsum("bts,bsd->btd", d_scores, key).astype(dtype),
        _einsum("bts,btd->bsd", d_scores, query).astype(dtype),
        _einsum("bts,btd->bsd", weights, cotangent).astype(dtype),
    )


_one_head.defvjp(_one_head_forward, _one_head_backward)


def _heads(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    # The loop runs over heads, not samples: the batch may be split over devices.
    heads_first = (x.transpose(2, 0, 1, 3) for x in (_scaled(query), key, value))
    out = jax.lax.map(lambda head: _one_head(*head), tuple(heads_first))
    return out.transpose(1, 2, 0, 3)


def _cudnn(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


def _splash(
    query: jax.Array, key: jax.Array, value: jax.Array, interpret: bool = False
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    length, heads = query.shape[1:3]
    block = 128
    padding = ((0, 0), (0, 0), (0, -length % block), (0, 0))
    padded = [jnp.pad(x.swapaxes(1, 2), padding) for x in (_scaled(query), key, value)]
    padded_length = padded[0].shape[2]
    full = splash_attention_mask.FullMask((padded_length, padded_length))
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    kernel = splash_attention_kernel.make_splash_mha_single_device(
        splash_attention_mask.MultiHeadMask([full] * heads),
        block_sizes=splash_attention_kernel.BlockSizes(**{f"block_{n}": block for n in names}),
        interpret=interpret,
    )
    # Padding forms a segment of its own: no real token sees it.
    segments = (jnp.arange(padded_length) >= length).astype(jnp.int32)
    segments = splash_attention_kernel.SegmentIds(q=segments, kv=segments)
    out = jax.vmap(kernel, in_axes=(0, 0, 0, None))(*padded, segments)
    return out[:, :, :length].swapaxes(1, 2)


_KERNELS = {"xla": _xla, "heads": _heads, "cudnn": _cudnn, "splash": _splash}
