"""Scaled dot-product attention behind one function."""

import math

import jax
import jax.numpy as jnp

IMPLEMENTATIONS = ("auto", "xla")


def attention_weights(query: jax.Array, key: jax.Array) -> jax.Array:
    """Softmax attention weights, computed in float32.

    Args:
      query: (B, T, heads, head_dim).
      key: (B, S, heads, head_dim).

    Returns:
      float32 (B, heads, T, S); rows sum to 1.
    """
    scores = jnp.einsum("bthd,bshd->bhts", query, key, preferred_element_type=jnp.float32)
    return jax.nn.softmax(scores * (1 / math.sqrt(query.shape[-1])), axis=-1)


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, implementation: str = "auto"
) -> jax.Array:
    """Full (unmasked) multi-head attention.

    Args:
      query, key, value: (B, T, heads, head_dim), float32 or bfloat16.
      implementation: one of `IMPLEMENTATIONS`.

    Returns:
      (B, T, heads, head_dim) in the dtype of `value`.

    Raises:
      ValueError: the implementation is unknown.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"{implementation=} is unknown; choose from {IMPLEMENTATIONS}")
    weights = attention_weights(query, key).astype(value.dtype)
    return jnp.einsum("bhts,bshd->bthd", weights, value)
