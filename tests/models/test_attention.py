"""All attention implementations agree; what does not work here says so."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segmenter_jax.models import attention as module
from segmenter_jax.models import tpu_attention, transformer
from segmenter_jax.models.attention import attention, attention_weights, probe
from segmenter_jax.models.attention_kernels import CUDNN_FORWARD, KERNELS
from segmenter_jax.models.random_masks import drop_weights
from tests.tiny import tiny_network


def random_inputs(length=37, heads=3, head_dim=16, batch=2, dtype=np.float32):
    rng = np.random.default_rng(0)
    shape = (batch, length, heads, head_dim)
    return [rng.normal(size=shape).astype(dtype) for _ in range(4)]


def definition(query, key, value):
    """float64 softmax(q k / sqrt(d)) v, one head at a time."""
    query, key, value = (x.astype(np.float64) for x in (query, key, value))
    out = np.zeros(value.shape)
    for b in range(query.shape[0]):
        for h in range(query.shape[2]):
            scores = query[b, :, h] @ key[b, :, h].T / np.sqrt(query.shape[-1])
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            out[b, :, h] = weights / weights.sum(axis=1, keepdims=True) @ value[b, :, h]
    return out


@pytest.mark.parametrize("implementation", ["auto", "xla", "heads"])
@pytest.mark.parametrize("length", [1, 37, 130])
def test_output_is_the_definition(implementation, length):
    query, key, value, _ = random_inputs(length)
    actual = attention(*map(jnp.asarray, (query, key, value)), implementation)
    np.testing.assert_allclose(actual, definition(query, key, value), atol=1e-6)


def test_large_scores_stay_finite():
    query, key, value, _ = random_inputs()
    for implementation in ("xla", "heads"):
        actual = attention(*map(jnp.asarray, (300 * query, 300 * key, value)), implementation)
        np.testing.assert_allclose(actual, definition(300 * query, 300 * key, value), atol=1e-3)


def test_weights_are_those_of_the_output():
    query, key, value, _ = map(jnp.asarray, random_inputs())
    weights = attention_weights(query, key)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-6)
    expected = jnp.einsum("bhts,bshd->bthd", weights, value)
    np.testing.assert_allclose(attention(query, key, value), expected, atol=1e-6)


RESIDENT = functools.partial(tpu_attention.attention, interpret=True)
SPLASH = functools.partial(KERNELS["splash"], interpret=True)


# The kernels for TPUs run here in Pallas' interpreter; 77 and 300 are no multiple of a block.
@pytest.mark.parametrize(
    "kernel, shape",
    [
        (KERNELS["heads"], (77, 2, 16)),
        (SPLASH, (77, 2, 64)),
        (RESIDENT, (77, 2, 64)),
        (RESIDENT, (1025, 4, 64)),
        (RESIDENT, (151, 3, 64)),
        (RESIDENT, (197, 4, 32)),
        (RESIDENT, (40, 1, 128)),
    ],
    ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_output_and_gradients_equal_those_of_xla(kernel, shape):
    *inputs, cotangent = map(jnp.asarray, random_inputs(*shape))
    expected, expected_vjp = jax.vjp(KERNELS["xla"], *inputs)
    actual, actual_vjp = jax.vjp(kernel, *inputs)
    np.testing.assert_allclose(actual, expected, atol=2e-6)
    for a, b in zip(actual_vjp(cotangent), expected_vjp(cotangent), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)


def dropped_definition(query, key, value, seeds, rate):
    weights = drop_weights(attention_weights(query, key), seeds, rate)
    return jnp.einsum("bhts,bshd->bthd", weights, value)


# Of 1100 queries the kernel for TPUs takes some at a time.
@pytest.mark.parametrize(
    ("kernel", "length"),
    [(KERNELS["xla"], 77), (KERNELS["heads"], 77), (RESIDENT, 77), (RESIDENT, 1100)],
    ids=["xla", "heads", "resident", "resident, long"],
)
def test_kernels_drop_the_same_weights(kernel, length):
    *inputs, cotangent = map(jnp.asarray, random_inputs(length, 2, 64))
    seeds = jax.random.bits(jax.random.key(0), (2, 2), jnp.uint32)
    results = []
    for function in (kernel, dropped_definition):
        out, vjp = jax.vjp(lambda *x: function(*x, seeds, 0.1), *inputs)  # noqa: B023
        results.append((out, *vjp(cotangent)))
    for actual, expected in zip(*results, strict=True):
        np.testing.assert_allclose(actual, expected, atol=5e-6)


def test_dropped_weights_are_a_share_of_their_own_in_every_head():
    seeds = jax.random.bits(jax.random.key(0), (2, 3), jnp.uint32)
    kept = np.asarray(drop_weights(jnp.ones((2, 3, 200, 300)), seeds, 0.1))
    np.testing.assert_allclose(np.unique(kept), [0, 1 / 0.9], rtol=1e-6)
    dropped = (kept == 0).reshape(6, -1)
    deviation = np.sqrt(0.09 / dropped.shape[1])
    np.testing.assert_allclose(dropped.mean(axis=1), 0.1, atol=5 * deviation)
    correlation = np.corrcoef(dropped.astype(float)) - np.eye(6)
    assert np.abs(correlation).max() < 5 / np.sqrt(dropped.shape[1])
    part = drop_weights(jnp.ones((2, 3, 16, 300)), seeds, 0.1, first_query=32)
    np.testing.assert_array_equal(part, kept[:, :, 32:48])


def test_kernels_without_dropout_are_not_taken_for_it(caplog, monkeypatch):
    monkeypatch.setattr(module, "platform_of", lambda mesh: "gpu")
    half = jnp.dtype("bfloat16")
    module.choose.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert module.choose((21, 2, 16), half, None, 0.1) == "xla"
    module.choose.cache_clear()
    assert "not cudnn: it has no dropout of attention weights" in caplog.text
    query, key, value, _ = map(jnp.asarray, random_inputs())
    seeds = jnp.zeros((2, 3), jnp.uint32)
    with pytest.raises(ValueError, match=r"'cudnn' does not work.*no dropout of attention weights"):
        attention(query, key, value, "cudnn", seeds=seeds, dropout_rate=0.1)


@pytest.mark.parametrize("shape", [(2, 12), (2, 48)])
def test_resident_refuses_heads_that_fill_no_lanes(shape):
    query, key, value, _ = random_inputs(9, *shape)
    with pytest.raises(ValueError, match=f"head size {shape[1]} does not divide 128"):
        RESIDENT(query, key, value)


@pytest.mark.parametrize("dropout_rate", [0.0, 0.1])
def test_kernels_work_on_each_devices_share_of_the_batch(monkeypatch, dropout_rate):
    monkeypatch.setitem(KERNELS, "resident", RESIDENT)
    monkeypatch.setattr(module, "probe", lambda *arguments: None)
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    *inputs, cotangent = random_inputs(37, 2, 64, batch=8)
    seeds = np.arange(16, dtype=np.uint32).reshape(8, 2) if dropout_rate else None

    def both(implementation, mesh, query, key, value, cotangent, seeds=None):
        options = {"implementation": implementation, "mesh": mesh, "dropout_rate": dropout_rate}
        kernel = functools.partial(attention, seeds=seeds, **options)
        out, vjp = jax.vjp(kernel, query, key, value)
        return out, vjp(cotangent)

    place = jax.NamedSharding(mesh, jax.P(("data", "fsdp")))
    program = jax.jit(functools.partial(both, "resident", mesh), in_shardings=place)
    arguments = (*inputs, cotangent) if seeds is None else (*inputs, cotangent, seeds)
    program = program.lower(*arguments).compile()
    assert not any(word in program.as_text() for word in ("all-gather", "all-reduce", "all-to-all"))
    expected = both("xla", None, *map(jnp.asarray, arguments))
    actual = program(*jax.device_put(arguments, place))
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-6)


def test_xla_gradients_are_those_of_the_weights():
    *inputs, cotangent = map(jnp.asarray, random_inputs())

    def reference(query, key, value):
        return jnp.einsum("bhts,bshd->bthd", attention_weights(query, key), value)

    gradients = [jax.vjp(f, *inputs)[1](cotangent) for f in (KERNELS["xla"], reference)]
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.parametrize("implementation", ["xla", "heads"])
def test_bfloat16_stays_bfloat16_and_near_float32(implementation):
    inputs = [jnp.asarray(x) for x in random_inputs()[:3]]
    halves = [x.astype(jnp.bfloat16) for x in inputs]
    actual = attention(*halves, implementation)
    assert actual.dtype == jnp.bfloat16
    expected = attention(*(x.astype(jnp.float32) for x in halves), implementation)
    np.testing.assert_allclose(actual.astype(jnp.float32), expected, atol=2e-2)


def test_batch_split_over_devices_needs_no_communication():
    *inputs, cotangent = random_inputs(batch=8)

    def both(query, key, value, cotangent):
        out, vjp = jax.vjp(functools.partial(attention, implementation="heads"), query, key, value)
        return out, vjp(cotangent)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put((*inputs, cotangent), jax.NamedSharding(mesh, jax.P("data")))
    program = jax.jit(both).lower(*sharded).compile()
    assert not any(word in program.as_text() for word in ("all-gather", "all-reduce", "all-to-all"))
    for a, b in zip(
        jax.tree.leaves(program(*sharded)), jax.tree.leaves(both(*inputs, cotangent)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_heads_keeps_no_weights_for_the_backward_pass():
    inputs = [jax.ShapeDtypeStruct((2, 256, 4, 16), jnp.float32)] * 4

    def temporary_bytes(implementation):
        def both(query, key, value, cotangent):
            kernel = functools.partial(attention, implementation=implementation)
            return jax.vjp(kernel, query, key, value)[1](cotangent)

        memory = jax.jit(both).lower(*inputs).compile().memory_analysis()
        return memory.temp_size_in_bytes

    assert temporary_bytes("heads") < 0.7 * temporary_bytes("xla")


def test_probe_reports_success_failure_and_disagreement(monkeypatch):
    shape, dtype = (19, 2, 8), jnp.dtype("float32")
    assert probe("heads", shape, dtype) is None
    assert "interpret mode" in probe("splash", shape, dtype)

    def too_large(query, key, value):
        return 1.01 * KERNELS["xla"](query, key, value)

    monkeypatch.setitem(KERNELS, "cudnn", too_large)
    assert probe("cudnn", (23, 2, 8), dtype) == (
        "output differs from its definition by 1.0e-02 of its largest value"
    )


def test_probe_runs_while_a_function_is_traced():
    @jax.jit
    def traced(x):
        assert probe("heads", (29, 1, 8), jnp.dtype("bfloat16")) is None
        return x

    traced(1.0)


def test_full_memory_is_not_taken_for_a_kernel_that_does_not_work(monkeypatch):
    def too_much(query, key, value):
        return value + jax.lax.optimization_barrier(jnp.zeros(1 << 46) + query.sum())[0]

    monkeypatch.setitem(KERNELS, "cudnn", too_much)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED"):
        probe("cudnn", (31, 2, 8), jnp.dtype("float32"))


@pytest.mark.parametrize(
    "shape, dtype, platform, chosen, reason",
    [
        ((257, 3, 64), "bfloat16", "cpu", "xla", ""),
        ((1025, 3, 64), "bfloat16", "cpu", "heads", ""),
        ((1025, 3, 64), "bfloat16", "gpu", "cudnn", "cudnn for bfloat16 (1025, 3, 64)"),
        ((1025, 3, 64), "float32", "gpu", "xla", "fused kernels are not tried for float32"),
        ((1025, 3, 64), "bfloat16", "tpu", "resident", "resident for bfloat16 (1025, 3, 64)"),
        ((8193, 3, 64), "bfloat16", "tpu", "splash", "splash; not resident: too long"),
        ((1025, 3, 300), "bfloat16", "gpu", "xla", "xla for bfloat16 (1025, 3, 300); not cudnn"),
        ((1025, 3, 64), "bfloat16", "metal", "xla", "there is no fused kernel for metal"),
    ],
)
def test_auto_takes_the_fused_kernel_that_works(
    monkeypatch, caplog, shape, dtype, platform, chosen, reason
):
    def problem(name, shape, dtype, mesh, dropout_rate):
        if shape[0] > 5000 and name == "resident":
            return "too long"
        return "head too large" if shape[2] > 256 else None

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(module, "probe", problem)
    monkeypatch.setattr(module, "platform_of", lambda mesh: platform)
    assert module.choose.__wrapped__(shape, jnp.dtype(dtype), None) == chosen
    assert reason in caplog.text


@pytest.mark.parametrize("heads, expected", [(3, 3), (6, 2), (16, 2), (1, 1)])
def test_the_probed_kernel_has_the_blocks_of_the_one_that_runs(monkeypatch, heads, expected):
    shapes = []

    def kernel(query, key, value):
        shapes.append(query.shape)
        return KERNELS["xla"](query, key, value)

    monkeypatch.setitem(KERNELS, "resident", kernel)
    assert probe("resident", (5, heads, 64), jnp.dtype("float32")) is None
    # Of 128 columns, or of all where these fill no whole blocks.
    assert {shape[2] for shape in shapes} == {expected}


def test_a_kernel_that_does_not_compile_is_refused_whatever_the_compiler_says(monkeypatch):
    def too_large(query, key, value):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in vmem")

    monkeypatch.setitem(KERNELS, "splash", too_large)
    assert "vmem" in probe("splash", (33, 2, 8), jnp.dtype("float32"))


def test_the_backward_pass_of_a_block_runs_cudnn_once(monkeypatch):
    # Traced and not run: the library need not be there.
    cudnn = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(module, "probe", lambda *arguments: None)
    monkeypatch.setattr(transformer, "platform_of", lambda mesh: "gpu")
    config = tiny_network(attention="cudnn", dtype="bfloat16").encoder_block()
    x = jnp.zeros((2, 17, 64), jnp.bfloat16)
    params = transformer.Block(config, 0.0).init(jax.random.key(0), x, True)
    block = transformer.block_class(False, None)(config, 0.0)
    gradient = jax.grad(lambda params: block.apply(params, x, True).astype(jnp.float32).sum())
    traced = str(jax.make_jaxpr(gradient)(params))
    for name in (CUDNN_FORWARD, CUDNN_FORWARD.replace("fwd", "bwd")):
        assert traced.count(name) == 1


def test_errors_name_the_choice():
    query, key, value, _ = map(jnp.asarray, random_inputs())
    with pytest.raises(ValueError, match=r"implementation='fast' is unknown.*'auto', 'xla'"):
        attention(query, key, value, "fast")
    with pytest.raises(
        ValueError, match=r"implementation='cudnn' does not work on cpu for float32"
    ):
        attention(query, key, value, "cudnn")
