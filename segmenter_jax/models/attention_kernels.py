"""Implementations of full attention: functions of (B, T, heads, head_dim) arrays, without mask.

Those of `DROPPING` also take `seeds`, uint32 (B, heads), and `rate`: dropout of the weights, see
`random_masks.drop_weights`.

Source of the scores' scale and of the softmax: Vaswani et al., "Attention Is All You Need", 2017.
"""

import functools
import math

import jax
import jax.numpy as jnp

from segmenter_jax.models.random_masks import drop_weights

# The primitive whose results cuDNN's backward pass needs; `jax.checkpoint` knows no name of them.
CUDNN_FORWARD = "dot_product_attention_fwd_wrapper"

einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _xla(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    seeds: jax.Array | None = None,
    rate: float = 0.0,
) -> jax.Array:
    # Heads move out of the way first: XLA's CPU compiler is slow at the products otherwise.
    query, key, value = (x.swapaxes(1, 2) for x in (_scaled(query), key, value))
    scores = einsum("bhtd,bhsd->bhts", query, key)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    kept = _dropped(weights, seeds, rate).astype(value.dtype)
    out = einsum("bhts,bhsd->bhtd", kept, value)
    return (out / weights.sum(axis=-1, keepdims=True)).astype(value.dtype).swapaxes(1, 2)


def _dropped(weights: jax.Array, seeds: jax.Array | None, rate: float) -> jax.Array:
    return weights if seeds is None else drop_weights(weights, seeds, rate)


def _scaled(query: jax.Array) -> jax.Array:
    return query * jnp.asarray(1 / math.sqrt(query.shape[-1]), query.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _one_head(
    query: jax.Array, key: jax.Array, value: jax.Array, seeds: jax.Array | None, rate: float
) -> jax.Array:
    """Attention of a scaled query; all (B, T, head_dim) but `seeds`, (B,)."""
    return _one_head_forward(query, key, value, seeds, rate)[0]


def _one_head_forward(query, key, value, seeds, rate):
    scores = einsum("btd,bsd->bts", query, key)
    peak = scores.max(axis=-1, keepdims=True)
    weights = jnp.exp(scores - peak)
    normaliser = weights.sum(axis=-1, keepdims=True)
    kept = _dropped(weights, seeds, rate).astype(value.dtype)
    out = einsum("bts,bsd->btd", kept, value) / normaliser
    out = out.astype(value.dtype)
    return out, (query, key, value, seeds, out, peak + jnp.log(normaliser))


def _one_head_backward(rate, residuals, cotangent):
    query, key, value, seeds, out, log_normaliser = residuals
    dtype = value.dtype
    weights = jnp.exp(einsum("btd,bsd->bts", query, key) - log_normaliser)
    # Softmax's gradient needs sum(weights * d_weights), which is the output times its cotangent.
    inner = (out * cotangent).astype(jnp.float32).sum(axis=-1, keepdims=True)
    d_weights = _dropped(einsum("btd,bsd->bts", cotangent, value), seeds, rate)
    d_scores = (weights * (d_weights - inner)).astype(dtype)
    weights = _dropped(weights, seeds, rate).astype(dtype)
    return (
        einsum("bts,bsd->btd", d_scores, key).astype(dtype),
        einsum("bts,btd->bsd", d_scores, query).astype(dtype),
        einsum("bts,btd->bsd", weights, cotangent).astype(dtype),
        None,
    )


_one_head.defvjp(_one_head_forward, _one_head_backward)


def _heads(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    seeds: jax.Array | None = None,
    rate: float = 0.0,
) -> jax.Array:
    # The loop runs over heads, not samples: the batch may be split over devices.
    heads_first = (x.transpose(2, 0, 1, 3) for x in (_scaled(query), key, value))
    seeds = None if seeds is None else seeds.T
    out = jax.lax.map(lambda head: _one_head(*head, rate), (*heads_first, seeds))
    return out.transpose(1, 2, 0, 3)


def _cudnn(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    batch, length = query.shape[:2]
    attend = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    if length % 2 == 0:
        return attend(query, key, value)
    # The library takes even lengths only. Lengths, not a mask: that would become a bias.
    padding = ((0, 0), (0, 1), (0, 0), (0, 0))
    lengths = jnp.full((batch,), length, jnp.int32)
    out = attend(
        *(jnp.pad(x, padding) for x in (query, key, value)),
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
    )
    return out[:, :length]


def _resident(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    seeds: jax.Array | None = None,
    rate: float = 0.0,
) -> jax.Array:
    # Pallas takes a while to import.
    from segmenter_jax.models.tpu_attention import attention

    return attention(query, key, value, seeds, rate)


def _splash(
    query: jax.Array, key: jax.Array, value: jax.Array, interpret: bool = False
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    length, heads = query.shape[1:3]
    # Long sequences get here, to which the padding of a large block matters little.
    block = 512 if length > 512 else 128
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


KERNELS = {
    "xla": _xla,
    "heads": _heads,
    "cudnn": _cudnn,
    "resident": _resident,
    "splash": _splash,
}

# Kernels that the compiler does not split over devices.
UNSPLIT = ("cudnn", "resident", "splash")

# Kernels with dropout of the weights.
DROPPING = ("xla", "heads", "resident")
