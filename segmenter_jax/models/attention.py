"""Scaled dot-product attention behind one function.

Implementations, all without mask and for any number of tokens:
  xla: matmul, softmax, matmul; keeps the (B, heads, T, T) weights for the backward pass.
  heads: one head at a time, weights recomputed in the backward pass; the least memory of what runs
    everywhere.
  cudnn: fused kernel of NVIDIA's library, 16-bit types only.
  pallas: fused Triton kernel that comes with JAX, NVIDIA.
  tokamax: fused kernels of the optional package of that name, NVIDIA and TPU.
  splash: fused kernel that comes with JAX, TPU.
  auto: on a CPU "heads" for `_LONG` tokens or more, elsewhere the first fused kernel that passes
    `probe`, else "xla".
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from segmenter_jax.runtime.console import logger
from segmenter_jax.runtime.errors import first_line

IMPLEMENTATIONS = ("auto", "xla", "heads", "cudnn", "pallas", "tokamax", "splash")

# What "auto" tries for 16-bit types, best first. Only cudnn is split over devices by the compiler.
_FUSED = {"gpu": ("cudnn", "tokamax", "pallas"), "tpu": ("splash",)}
_PARTITIONED = ("cudnn",)

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
    reasons = [] if dtype.itemsize == 2 else [f"no fused kernel is tried for {dtype}"]
    for name in _FUSED.get(platform, ()) if dtype.itemsize == 2 else ():
        if num_devices > 1 and name not in _PARTITIONED:
            problem = f"not split over {num_devices} devices"
        else:
            problem = probe(name, shape, dtype)
        if problem is None:
            logger.info("attention: %s for %s %s (%s)", name, dtype, shape, reasons or "first")
            return name
        reasons.append(f"{name}: {problem}")
    logger.warning("attention: xla for %s %s (%s)", dtype, shape, "; ".join(reasons))
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
    """
    rng = np.random.default_rng(0)
    # Two samples, and no more heads than needed: kernels are chosen by length and head size.
    inputs = [
        rng.normal(size=(2, shape[0], min(shape[1], 2), shape[2])).astype(dtype) for _ in range(4)
    ]

    def run(kernel: Callable[..., jax.Array], inputs: list[np.ndarray]) -> list[np.ndarray]:
        def outputs(query, key, value, cotangent):
            out, backward = jax.vjp(kernel, query, key, value)
            return out, *backward(cotangent)

        # Compiled ahead of time, so that it also runs while another function is being traced.
        result = jax.jit(outputs).lower(*inputs).compile()(*inputs)
        return [np.asarray(x, np.float32) for x in result]

    try:
        actual = run(_KERNELS[name], inputs)
    except Exception as error:  # Compilers raise anything; the reason is handed on.
        return f"{type(error).__name__}: {first_line(error)}"
    expected = run(_xla, [x.astype(np.float32) for x in inputs])
    tolerance = 2e-2 if dtype.itemsize == 2 else 1e-4
    for label, a, b in zip(("output", "dq", "dk", "dv"), actual, expected, strict=True):
        error = np.abs(a - b).max() / np.abs(b).max()
        if not error <= tolerance:
            return f"{label} differs from xla by {error:.1e} of its largest value"
    return None


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


def _tokamax(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    import tokamax  # Optional: needs Python 3.12.

    return tokamax.dot_product_attention(query, key, value)


def _pad_tokens(x: jax.Array, multiple: int, axis: int) -> jax.Array:
    pad = [(0, 0)] * x.ndim
    pad[axis] = (0, -x.shape[axis] % multiple)
    return jnp.pad(x, pad)


def _pallas(
    query: jax.Array, key: jax.Array, value: jax.Array, interpret: bool = False
) -> jax.Array:
    from jax.experimental.pallas.ops.gpu.attention import BlockSizes, mha

    batch, length = query.shape[:2]
    block = 64
    padded = [_pad_tokens(x, block, axis=1) for x in (_scaled(query), key, value)]
    # Padding forms a segment of its own: no real token sees it.
    segments = (jnp.arange(padded[0].shape[1]) >= length).astype(jnp.int32)
    segments = jnp.broadcast_to(segments, (batch, segments.size))
    names = ("q", "k", "q_dkv", "kv_dkv", "q_dq", "kv_dq")
    sizes = BlockSizes(**{f"block_{name}": block for name in names})
    out = mha(*padded, segments, sm_scale=1.0, block_sizes=sizes, interpret=interpret)
    return out[:, :length]


def _splash(
    query: jax.Array, key: jax.Array, value: jax.Array, interpret: bool = False
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    length, heads = query.shape[1:3]
    block = 128
    padded = [_pad_tokens(x.swapaxes(1, 2), block, axis=2) for x in (_scaled(query), key, value)]
    padded_length = padded[0].shape[2]
    full = splash_attention_mask.FullMask((padded_length, padded_length))
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    kernel = splash_attention_kernel.make_splash_mha_single_device(
        splash_attention_mask.MultiHeadMask([full] * heads),
        block_sizes=splash_attention_kernel.BlockSizes(**{f"block_{n}": block for n in names}),
        interpret=interpret,
    )
    segments = (jnp.arange(padded_length) >= length).astype(jnp.int32)
    segments = splash_attention_kernel.SegmentIds(q=segments, kv=segments)
    out = jax.vmap(kernel, in_axes=(0, 0, 0, None))(*padded, segments)
    return out[:, :, :length].swapaxes(1, 2)


_KERNELS = {
    "xla": _xla,
    "heads": _heads,
    "cudnn": _cudnn,
    "pallas": _pallas,
    "tokamax": _tokamax,
    "splash": _splash,
}
