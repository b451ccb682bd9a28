"""Attention for TPUs whose keys and values of a head stay in the core's memory.

Images have a thousand tokens or two, so that all scores of some queries fit there at once. The
softmax then needs no second pass, the backward pass recomputes it from query, key and value alone,
and tokens stay as the network has them, (B, T, heads * head_dim): nothing is padded, transposed or
kept. Heads narrower than the 128 lanes of the core share a block. The matrix unit would fill up the
rest of its depth with zeros anyway, so each head takes the whole block, the others' lanes zeroed.
"""

import functools
import math
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from segmenter_jax.models.random_masks import drop_weights

_LANES = 128
_SUBLANES = 16

# Scores that exist at a time: float32, and about six arrays of them in the backward pass.
_BLOCK_SCORES = 1 << 17
_ARRAYS_OF_SCORES = 6

# Of the core's memory; the compiler needs some, and both ends of the kernel's copies another part.
_USABLE = 0.75


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    seeds: jax.Array | None = None,
    rate: float = 0.0,
    interpret: bool = False,
) -> jax.Array:
    """Full multi-head attention.

    Args:
      query, key, value: (B, T, heads, head_dim).
      seeds, rate: dropout of the weights, see `attention_kernels`.
      interpret: run in Pallas' interpreter, on any device.

    Returns:
      (B, T, heads, head_dim).

    Raises:
      ValueError: a head does not fit into the core's memory, or heads do not fill whole lanes.
    """
    shape, head_dim = query.shape, query.shape[-1]
    if head_dim > _LANES or _LANES % head_dim:
        raise ValueError(f"head size {head_dim} does not divide {_LANES}")
    needed = _memory(shape[1], _block_width(shape[2] * head_dim), query.dtype)
    if not interpret and needed > (usable := _USABLE * pltpu.get_tpu_info().vmem_capacity_bytes):
        raise ValueError(f"{shape[1]} tokens need {needed} bytes of {usable:.0f} usable ones")
    flat = (x.reshape(*x.shape[:2], -1) for x in (query, key, value))
    return _attention(*flat, seeds, head_dim, rate, interpret).reshape(shape)


def _block_width(width: int) -> int:
    # A block is whole lanes, or the whole width.
    return width if width % _LANES else _LANES


def _memory(length: int, block: int, dtype: jnp.dtype) -> int:
    """Bytes of the core's memory that the backward pass takes."""
    tokens = length * block
    # Four arguments and three results, each twice since copies overlap the work, and two sums.
    copies = tokens * (2 * 7 * dtype.itemsize + 2 * 4)
    return copies + 4 * _ARRAYS_OF_SCORES * max(_BLOCK_SCORES, _SUBLANES * length)


def _dot(a: jax.Array, b: jax.Array, contract_a: int, contract_b: int) -> jax.Array:
    dimensions = (((contract_a,), (contract_b,)), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, preferred_element_type=jnp.float32)


def _scaled(x: jax.Array, head_dim: int) -> jax.Array:
    return (x.astype(jnp.float32) * (1 / math.sqrt(head_dim))).astype(x.dtype)


def _weights(query: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Attention weights (rows, T), still to be multiplied by the second result (rows, 1)."""
    scores = _dot(query, key, 1, 1)
    exponential = jnp.exp(scores - scores.max(axis=1, keepdims=True))
    return exponential, 1 / exponential.sum(axis=1, keepdims=True)


def _heads(
    width: int, head_dim: int, rate: float, seeds_ref
) -> Iterator[tuple[jax.Array, Callable[[jax.Array, jax.Array | int], jax.Array]]]:
    """Of each head of a block: which columns, (1, width), are its own, and its dropout.

    The dropout is a function of some rows of weights and the index of the first of them.
    """
    column = jax.lax.broadcasted_iota(jnp.int32, (1, width), 1)
    image, block, heads = pl.program_id(0), pl.program_id(1), width // head_dim
    for head in range(heads):
        drop = lambda weights, first: weights  # noqa: E731
        if seeds_ref is not None:
            seed = seeds_ref[image, block * heads + head]
            drop = lambda weights, first, seed=seed: drop_weights(weights, seed, rate, first)  # noqa: E731
        yield column // head_dim == head, drop


def _for_all_queries(
    length: int, body: Callable[[slice | pl.Slice, jax.Array | int], None]
) -> None:
    """Calls `body` with blocks of rows that together are all queries, and their first rows."""
    rows = max(_BLOCK_SCORES // length // _SUBLANES * _SUBLANES, _SUBLANES)
    whole = length // rows
    if whole:
        # A loop, since every operation on a block is hundreds of instructions to compile.
        @pl.loop(0, whole)
        def _(i: jax.Array) -> None:
            first = pl.multiple_of(i * rows, _SUBLANES)
            body(pl.ds(first, rows), first)

    if length % rows:
        body(slice(whole * rows, length), whole * rows)


def _forward_kernel(head_dim, rate, seeds_ref, q_ref, k_ref, v_ref, out_ref):
    _, length, width = q_ref.shape
    key, value = k_ref[0], v_ref[0]
    heads = list(_heads(width, head_dim, rate, seeds_ref))

    def some_queries(rows, first):
        query = _scaled(q_ref[0, rows], head_dim)
        out = jnp.zeros(query.shape, jnp.float32)
        for own, drop in heads:
            exponential, inverse = _weights(jnp.where(own, query, 0), key)
            mixed = _dot(drop(exponential, first).astype(value.dtype), value, 1, 0)
            out = jnp.where(own, mixed * inverse, out)
        out_ref[0, rows] = out.astype(out_ref.dtype)

    _for_all_queries(length, some_queries)


def _backward_kernel(
    head_dim, rate, seeds_ref, q_ref, k_ref, v_ref, d_out_ref, dq_ref, dk_ref, dv_ref, *sums
):
    _, length, width = q_ref.shape
    key, value = k_ref[0], v_ref[0]
    dk_sum, dv_sum = sums
    heads = list(_heads(width, head_dim, rate, seeds_ref))
    dk_sum[...] = jnp.zeros(dk_sum.shape, jnp.float32)
    dv_sum[...] = jnp.zeros(dv_sum.shape, jnp.float32)

    def some_queries(rows, first):
        all_query, all_d_out = _scaled(q_ref[0, rows], head_dim), d_out_ref[0, rows]
        dq = jnp.zeros(all_query.shape, jnp.float32)
        for own, drop in heads:
            query, d_out = jnp.where(own, all_query, 0), jnp.where(own, all_d_out, 0)
            exponential, inverse = _weights(query, key)
            weights = exponential * inverse
            d_weights = drop(_dot(d_out, value, 1, 1), first)
            inner = (weights * d_weights).sum(axis=1, keepdims=True)
            d_scores = (weights * (d_weights - inner)).astype(key.dtype)
            dv_sum[...] += _dot(drop(weights, first).astype(value.dtype), d_out, 0, 0)
            dk_sum[...] += _dot(d_scores, query, 0, 0)
            dq = jnp.where(own, _dot(d_scores, key, 1, 0), dq)
        dq_ref[0, rows] = _scaled(dq, head_dim).astype(dq_ref.dtype)

    _for_all_queries(length, some_queries)
    dk_ref[0] = dk_sum[...].astype(dk_ref.dtype)
    dv_ref[0] = dv_sum[...].astype(dv_ref.dtype)


def _call(
    kernel: Callable[..., None],
    arrays: tuple[jax.Array, ...],
    seeds: jax.Array | None,
    head_dim: int,
    rate: float,
    interpret: bool,
    *,
    results: int,
    sums: int,
) -> list[jax.Array]:
    """Runs a kernel for every image and block of heads.

    All arrays are (B, T, heads * head_dim) but `seeds`, (B, heads).
    """
    first = arrays[0]
    batch, length, width = first.shape
    block = _block_width(width)
    spec = pl.BlockSpec((1, length, block), lambda image, heads: (image, 0, heads))
    memory = _memory(length, block, first.dtype)
    body, scalars = functools.partial(kernel, head_dim, rate), ()
    if seeds is None:
        body = functools.partial(body, None)
    else:
        scalars = (seeds,)
    scalar_spec = pl.BlockSpec(memory_space=pltpu.SMEM)
    return pl.pallas_call(
        body,
        grid=(batch, width // block),
        in_specs=[scalar_spec] * len(scalars) + [spec] * len(arrays),
        out_specs=[spec] * results,
        out_shape=[jax.ShapeDtypeStruct(first.shape, first.dtype)] * results,
        scratch_shapes=[pltpu.VMEM((length, block), jnp.float32)] * sums,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=int(memory / _USABLE)
        ),
        interpret=interpret,
        name=kernel.__name__.strip("_").replace("kernel", "attention"),
    )(*scalars, *arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _attention(query, key, value, seeds, head_dim, rate, interpret):
    arrays = query, key, value
    return _call(_forward_kernel, arrays, seeds, head_dim, rate, interpret, results=1, sums=0)[0]


def _attention_forward(query, key, value, seeds, head_dim, rate, interpret):
    out = _attention(query, key, value, seeds, head_dim, rate, interpret)
    return out, (query, key, value, seeds)


def _attention_backward(head_dim, rate, interpret, residuals, d_out):
    *arrays, seeds = residuals
    arrays = *arrays, d_out
    options = seeds, head_dim, rate, interpret
    return *_call(_backward_kernel, arrays, *options, results=3, sums=2), None


_attention.defvjp(_attention_forward, _attention_backward)
