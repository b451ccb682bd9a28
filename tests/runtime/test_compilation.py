"""Flags of the compiler, its cache, and what the log says of a compilation."""

import logging
import os

import jax
import jax.numpy as jnp
import pytest

from segmenter_jax.runtime.compilation import logged_compilation, prepare_compilation

OFF = "--xla_gpu_enable_triton_gemm=false"


@pytest.fixture
def updated(monkeypatch):
    """Options of JAX that are set; they are not, so that this process stays as it is."""
    options = {}
    monkeypatch.setattr(jax.config, "update", options.__setitem__)
    return options


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, OFF),
        ("--xla_gpu_autotune_level=2", f"--xla_gpu_autotune_level=2 {OFF}"),
        ("--xla_gpu_enable_triton_gemm=true", "--xla_gpu_enable_triton_gemm=true"),
        ("/a/file/of.flags", "/a/file/of.flags"),
    ],
)
def test_triton_is_off_unless_its_flag_is_set(monkeypatch, updated, before, after):
    monkeypatch.setenv("XLA_FLAGS", before or "")
    if before is None:
        monkeypatch.delenv("XLA_FLAGS")
    prepare_compilation()
    assert os.environ["XLA_FLAGS"] == after


def test_programs_are_kept_in_the_cache_folder_or_where_jax_was_told(
    monkeypatch, updated, tmp_path
):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "elsewhere")
    prepare_compilation()
    assert "jax_compilation_cache_dir" not in updated
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    prepare_compilation()
    assert updated["jax_compilation_cache_dir"] == str(tmp_path / "segmenter_jax" / "xla")
    assert (
        "xla_gpu_per_fusion_autotune_cache_dir" in jax.config.jax_persistent_cache_enable_xla_caches
    )


def test_log_tells_what_is_compiled_and_whether_it_was_in_the_cache(caplog):
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    caplog.set_level(logging.INFO, "segmenter_jax")
    try:
        for _ in range(2):
            with logged_compilation("the sum", jax.devices()[:2]):
                # Another function with the same program.
                jax.jit(lambda x: x.sum() + 0.123).lower(jnp.zeros(3)).compile()
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", before)
    first, compiled, second, cached = [record.getMessage() for record in caplog.records]
    assert first == second == "compiling the sum for 2 x cpu"
    assert compiled.startswith("compiled in ") and compiled.endswith(" s")
    assert cached.endswith(" s, from the cache")
