"""Scaled dot-product attention behind one function.

Implementations, all without mask and for any number of tokens; dropout of the weights is not in
cudnn and splash:
  xla: matmul, softmax, matmul; keeps the (B, heads, T, T) weights for the backward pass.
  heads: one head at a time, weights recomputed in the backward pass; the least memory of what runs
    everywhere.
  cudnn: fused kernel of NVIDIA's library, 16-bit types only.
  resident: fused kernel for TPUs, see `tpu_attention`; some thousands of tokens at most.
  splash: fused kernel for TPUs, which comes with JAX.
  auto: on a CPU "heads" for `_LONG` tokens or more; elsewhere the first of the platform's fused
    kernels that passes `probe`, for a 16-bit type; else "xla".
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from segmenter_jax.models.attention_kernels import DROPPING, KERNELS, UNSPLIT, einsum
from segmenter_jax.models.choices import IMPLEMENTATIONS
from segmenter_jax.models.placement import (
    Placement,
    is_present,
    one_device,
    per_device,
    platform_of,
    spans_processes,
)
from segmenter_jax.models.random_masks import drop_weights
from segmenter_jax.runtime import processes
from segmenter_jax.runtime.console import logger
from segmenter_jax.runtime.errors import first_line

# What "auto" tries for 16-bit types, in this order.
_FUSED = {"gpu": ("cudnn",), "tpu": ("resident", "splash")}

# On a CPU "xla" is a little faster at every length, and from here on takes twice the memory of a
# training step and more.
_LONG = 512


def attention_weights(query: jax.Array, key: jax.Array) -> jax.Array:
    """Softmax attention weights, computed in float32.

    Args:
      query: (B, T, heads, head_dim).
      key: (B, S, heads, head_dim).

    Returns:
      float32 (B, heads, T, S); rows sum to 1.
    """
    scores = einsum("bthd,bshd->bhts", query, key)
    return jax.nn.softmax(scores * (1 / math.sqrt(query.shape[-1])), axis=-1)


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    implementation: str = "auto",
    mesh: Placement = None,
    seeds: jax.Array | None = None,
    dropout_rate: float = 0.0,
) -> jax.Array:
    """Full (unmasked) multi-head attention.

    Args:
      query, key, value: (B, T, heads, head_dim), float32 or bfloat16.
      implementation: one of `IMPLEMENTATIONS`, explained at the top of this module.
      mesh: the devices that B is split over; None takes JAX's own choice.
      seeds: uint32 (B, heads) of the weights' dropout; None for none.
      dropout_rate: probability that a weight is dropped, where there are seeds.

    Returns:
      (B, T, heads, head_dim) in the dtype of `value`.

    Raises:
      ValueError: the implementation is unknown, or was asked for by name and does not work here.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"{implementation=} is unknown; choose from {IMPLEMENTATIONS}")
    shape, dtype = query.shape[1:], jnp.dtype(query.dtype)
    rate = 0.0 if seeds is None else dropout_rate
    if implementation == "auto":
        implementation = choose(shape, dtype, mesh, rate)
    elif implementation in UNSPLIT and (problem := probe(implementation, shape, dtype, mesh, rate)):
        raise ValueError(
            f"attention {implementation=} does not work on {platform_of(mesh)} for "
            f"{dtype} {shape}: {problem}"
        )
    kernel = _kernel(implementation, rate, mesh)
    return kernel(query, key, value) if seeds is None else kernel(query, key, value, seeds)


def _kernel(name: str, rate: float, mesh: Placement) -> Callable[..., jax.Array]:
    kernel = functools.partial(KERNELS[name], rate=rate) if rate else KERNELS[name]
    return _flat_per_device(kernel, mesh) if name in UNSPLIT else kernel


def _flat_per_device(kernel: Callable[..., jax.Array], mesh: Placement) -> Callable[..., jax.Array]:
    """`per_device` with tokens (B, T, heads * head_dim) at its boundary.

    With heads there all tokens are copied: the compiler does not see that they are split on one
    side and joined on the other.
    """

    def on_all(query: jax.Array, key: jax.Array, value: jax.Array, *seeds: jax.Array) -> jax.Array:
        shape = query.shape

        def on_one(*arrays: jax.Array) -> jax.Array:
            heads = [x.reshape(*x.shape[:2], *shape[2:]) for x in arrays[:3]]
            return kernel(*heads, *arrays[3:]).reshape(arrays[0].shape)

        tokens = [x.reshape(*x.shape[:2], -1) for x in (query, key, value)]
        return per_device(on_one, mesh)(*tokens, *seeds).reshape(shape)

    return on_all


@functools.lru_cache
def choose(
    shape: tuple[int, int, int], dtype: jnp.dtype, mesh: Placement, dropout_rate: float = 0.0
) -> str:
    """What "auto" means; the reason is logged once.

    Args:
      shape: (T, heads, head_dim).
      dtype: of query, key and value.
      mesh, dropout_rate: see `attention`.
    """
    platform = platform_of(mesh)
    if platform == "cpu":
        return "heads" if shape[0] >= _LONG else "xla"
    problems = [f"there is no fused kernel for {platform}"]
    if dtype.itemsize != 2:
        problems = [f"fused kernels are not tried for {dtype}"]
    elif platform in _FUSED:
        problems = []
        for name in _FUSED[platform]:
            if (problem := probe(name, shape, dtype, mesh, dropout_rate)) is None:
                logger.info("attention: %s for %s %s", "; ".join([name, *problems]), dtype, shape)
                return name
            problems.append(f"not {name}: {problem}")
    logger.warning("attention: xla for %s %s; %s", dtype, shape, "; ".join(problems))
    return "xla"


@functools.lru_cache
def probe(
    name: str,
    shape: tuple[int, int, int],
    dtype: jnp.dtype,
    mesh: Placement = None,
    dropout_rate: float = 0.0,
) -> str | None:
    """Compiles an implementation, forward and backward; runs and checks it where the device is.

    What is compiled is small, and kept between starts with all other programs. Where processes
    share the mesh each of them probes, and it works if it does in all of them, since they have to
    compile the same programs.

    Args:
      name: one of `IMPLEMENTATIONS` but "auto".
      shape: (T, heads, head_dim).
      dtype: compute type.
      mesh: of one of its devices the program is made.
      dropout_rate: of the weights.

    Returns:
      None if it works, else why it does not.

    Raises:
      jax.errors.JaxRuntimeError: the device's memory is full, which says nothing about the kernel.
    """
    if dropout_rate and name not in DROPPING:
        return "it has no dropout of attention weights"
    problem = _probe(name, shape, dtype, one_device(mesh), dropout_rate)
    if spans_processes(mesh):
        # Computed now, although a function is being traced.
        with jax.ensure_compile_time_eval():
            failed = processes.maximum(int(problem is not None))
        if failed and problem is None:
            return "another process found that it does not work there"
    return problem


@functools.lru_cache
def _probe(
    name: str,
    shape: tuple[int, int, int],
    dtype: jnp.dtype,
    mesh: jax.sharding.Mesh,
    rate: float,
) -> str | None:
    rng = np.random.default_rng(0)
    # No more heads than fill a kernel's block of 128 columns; where they fill no whole blocks, a
    # block has all of them.
    fitting = max(128 // shape[2], 1)
    heads = shape[1] if shape[1] % fitting else fitting
    inputs = [rng.normal(size=(1, shape[0], heads, shape[2])).astype(dtype) for _ in range(4)]
    seeds = [rng.integers(0, 2**32, (1, heads), np.uint32)] if rate else []
    place = jax.NamedSharding(mesh, jax.P())
    kernel = _kernel(name, rate, mesh)
    program = jax.jit(functools.partial(_outputs, kernel), in_shardings=place)
    # Compilers raise anything; the reason is handed on.
    try:
        # Ahead of time, so that it also runs while another function is being traced.
        compiled = program.lower(*inputs, *seeds).compile()
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"
    if not is_present(mesh.devices.flat[0]):
        return None
    try:
        actual = jax.device_get(compiled(*inputs, *seeds))
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        return f"{type(error).__name__}: {first_line(error)}"
    kept = np.ones((1, 1, 1, 1), np.float32)
    if rate:
        everywhere = np.ones((1, heads, shape[0], shape[0]), np.float32)
        with jax.ensure_compile_time_eval():
            kept = np.asarray(drop_weights(everywhere, seeds[0], rate))
    return _difference(actual, inputs, kept)


def _outputs(kernel: Callable[..., jax.Array], query, key, value, cotangent, *seeds):
    """A kernel's output and gradients."""
    out, backward = jax.vjp(lambda *inputs: kernel(*inputs, *seeds), query, key, value)
    return out, *backward(cotangent)


def _difference(
    actual: tuple[np.ndarray, ...], inputs: list[np.ndarray], kept: np.ndarray
) -> str | None:
    """How a kernel's output and gradients differ from the definition's; None if they do not."""
    query, key, value, d_out = (x.astype(np.float32) for x in inputs)
    scale = 1 / math.sqrt(query.shape[-1])
    weights = np.einsum("bthd,bshd->bhts", query, key) * scale
    weights = np.exp(weights - weights.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    d_weights = np.einsum("bthd,bshd->bhts", d_out, value) * kept
    d_scores = weights * (d_weights - (weights * d_weights).sum(axis=-1, keepdims=True)) * scale
    expected = {
        "output": np.einsum("bhts,bshd->bthd", weights * kept, value),
        "dq": np.einsum("bhts,bshd->bthd", d_scores, key),
        "dk": np.einsum("bhts,bthd->bshd", d_scores, query),
        "dv": np.einsum("bhts,bthd->bshd", weights * kept, d_out),
    }
    tolerance = 2e-2 if inputs[0].dtype.itemsize == 2 else 1e-4
    for (label, b), a in zip(expected.items(), actual, strict=True):
        error = np.abs(a.astype(np.float32) - b).max() / np.abs(b).max()
        if not error <= tolerance:
            return f"{label} differs from its definition by {error:.1e} of its largest value"
    return None
