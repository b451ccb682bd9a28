"""Dense layer, layer normalisation and GELU with gradients written out.

The values and parameters are those of `flax.linen`. What differs is the backward pass: it keeps
fewer arrays of the forward pass, and products come in the layout they are wanted in. XLA's
compilers otherwise transpose a whole array of activations for the gradient of a kernel.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint
from jax.nn import initializers

from segmenter_jax.models.choices import Gelu

# The reference cuts the tails at 2, a hundred standard deviations: they are whole.
dense_init = initializers.normal(0.02)

# Dense layers whose results are logits.
LOGITS = ("head", "class_head")


@jax.custom_vjp
def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Affine map of the last axis; reverse-mode derivative only.

    Args:
      x: (B, T, C).
      kernel: (C, D), in the dtype of `x`.
      bias: (D,), in the dtype of `x`.

    Returns:
      (B, T, D).
    """
    return x @ kernel + bias


def _dense_forward(x, kernel, bias):
    return dense(x, kernel, bias), (x, kernel)


def _dense_backward(residuals, cotangent):
    x, kernel = residuals
    dx = jax.lax.dot_general(cotangent, kernel, (((2,), (1,)), ((), ())))
    return dx, *jax.lax.platform_dependent(
        x, cotangent, tpu=_of_parameters_on_tpu, default=_of_parameters
    )


def _of_parameters(x: jax.Array, d_out: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gradients of a kernel (C, D) and a bias (D,), from x (B, T, C) and d_out (B, T, D)."""
    # One axis to sum over: with two, a CPU's compiler transposes x after all.
    rows, d_rows = (array.reshape(-1, array.shape[-1]) for array in (x, d_out))
    return jax.lax.dot_general(rows, d_rows, (((0,), (0,)), ((), ()))), d_rows.sum(axis=0)


def _of_parameters_on_tpu(x: jax.Array, d_out: jax.Array) -> tuple[jax.Array, jax.Array]:
    d_kernel = jax.lax.dot_general(x, d_out, (((0, 1), (0, 1)), ((), ())))
    # Else its layout is that of the parameter, which may have heads, and all tokens are transposed
    # to reach it.
    d_kernel = with_layout_constraint(d_kernel, Layout((0, 1)))
    # The bias's as a sum over rows takes three times the product for that of the kernel. With fewer
    # than eight equal results the compiler would make a sum of it again.
    ones, highest = jnp.ones((8, *x.shape[:2]), x.dtype), jax.lax.Precision.HIGHEST
    sums = jax.lax.dot_general(ones, d_out, (((1, 2), (0, 1)), ((), ())), precision=highest)
    return d_kernel, sums[0]


dense.defvjp(_dense_forward, _dense_backward)


class KernelBias(nn.Module):
    """Holds one projection's kernel and bias without applying them."""

    kernel_shape: tuple[int, ...]
    bias_shape: tuple[int, ...]
    kernel_init: initializers.Initializer = dense_init
    bias_init: initializers.Initializer = initializers.zeros

    @nn.compact
    def __call__(self) -> tuple[jax.Array, jax.Array]:
        kernel = self.param("kernel", self.kernel_init, self.kernel_shape)
        return kernel, self.param("bias", self.bias_init, self.bias_shape)


class Dense(nn.Module):
    """`dense` with its parameters."""

    features: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, T, C) to (B, T, features) in `dtype`."""
        kernel = self.param("kernel", dense_init, (x.shape[-1], self.features))
        bias = self.param("bias", initializers.zeros, (self.features,))
        return dense(*(value.astype(self.dtype) for value in (x, kernel, bias)))


@jax.custom_vjp
def _exact_gelu(x: jax.Array) -> jax.Array:
    # `nn.gelu` uses erfc, several times slower on a CPU; the two differ by float32 rounding of 1.
    return x * (0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5)))


def _exact_gelu_forward(x):
    return _exact_gelu(x), x


def _exact_gelu_backward(x, cotangent):
    # With the sign turned, or the compiler would keep the forward pass's erf instead of x alone.
    cdf = 0.5 - 0.5 * jax.lax.erf(x * -math.sqrt(0.5))
    density = jnp.exp(x * x * -0.5) * (1 / math.sqrt(2 * math.pi))
    return (cotangent * (cdf + x * density),)


_exact_gelu.defvjp(_exact_gelu_forward, _exact_gelu_backward)


def gelu(x: jax.Array, kind: Gelu) -> jax.Array:
    """GELU by the error function ("exact") or by its tanh approximation."""
    return nn.gelu(x, approximate=True) if kind == "tanh" else _exact_gelu(x)


def _statistics(x: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    mean = x.mean(axis=-1, keepdims=True)
    variance = jnp.maximum((x * x).mean(axis=-1, keepdims=True) - mean * mean, 0)
    return mean, jax.lax.rsqrt(variance + epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, dtype: jnp.dtype
) -> jax.Array:
    """Layer normalisation over the last axis, computed in float32; reverse-mode derivative only.

    Args:
      x: (B, T, C).
      scale, bias: float32 (C,).
      epsilon: added to the variance.
      dtype: of the result.

    Returns:
      (B, T, C) in `dtype`.
    """
    return _layer_norm_forward(x, scale, bias, epsilon, dtype)[0]


def _layer_norm_forward(x, scale, bias, epsilon, dtype):
    x32 = x.astype(jnp.float32)
    mean, inverse_std = (checkpoint_name(s, "statistics") for s in _statistics(x32, epsilon))
    y = (x32 - mean) * inverse_std * scale + bias
    return y.astype(dtype), (x, scale, mean, inverse_std)


def _layer_norm_backward(epsilon, dtype, residuals, cotangent):
    del epsilon, dtype
    x, scale, mean, inverse_std = residuals
    normalised = (x.astype(jnp.float32) - mean) * inverse_std
    cotangent = cotangent.astype(jnp.float32)
    scaled = cotangent * scale
    along = (scaled * normalised).mean(axis=-1, keepdims=True)
    dx = inverse_std * (scaled - scaled.mean(axis=-1, keepdims=True) - normalised * along)
    d_scale = (cotangent * normalised).sum(axis=(0, 1))
    return dx.astype(x.dtype), d_scale, cotangent.sum(axis=(0, 1))


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class LayerNorm(nn.Module):
    """`layer_norm` with its parameters."""

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Normalises (B, T, C); the result is in `dtype`."""
        scale = self.param("scale", initializers.ones, (x.shape[-1],))
        bias = self.param("bias", initializers.zeros, (x.shape[-1],))
        return layer_norm(x, scale, bias, self.epsilon, self.dtype)


def to_compute_type(params: Any, dtype: jnp.dtype) -> Any:
    """Casts what a network casts at every use: the same results for less memory and no casting.

    Layer normalisations, position embeddings and logits of dense layers are computed in float32,
    and their parameters stay so.

    Args:
      params: the tree under "params" of a network or of a block; cast before is as well.
      dtype: compute type of the network.
    """

    def cast(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        # A block's own parameters have no module above them.
        module, name = path[-2].key if len(path) > 1 else "", path[-1].key
        stays = "norm" in module.lower() or module in LOGITS or name == "pos_embedding"
        return leaf if stays else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)
