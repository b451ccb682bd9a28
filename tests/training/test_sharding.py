"""Mesh and placement rules, on 8 simulated devices."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from segmenter_jax.models import Segmenter, placement
from segmenter_jax.models.placement import leaf_spec
from segmenter_jax.training import sharding
from tests.conversion.test_backbones import FOLDER, NETWORKS, opened_model


def test_mesh_uses_all_devices_or_as_many_as_asked():
    assert dict(sharding.make_mesh().shape) == {"data": 8, "fsdp": 1}
    assert dict(sharding.make_mesh(fsdp=4).shape) == {"data": 2, "fsdp": 4}
    assert dict(sharding.make_mesh(fsdp=2, num_devices=2).shape) == {"data": 1, "fsdp": 2}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"fsdp": 3}, r"fsdp=3 does not divide 8 devices; choose from \[1, 2, 4, 8\]"),
        ({"num_devices": 9}, "num_devices=9 must be between 1 and the 8 devices"),
    ],
)
def test_impossible_meshes_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        sharding.make_mesh(**kwargs)


def test_batch_size_that_does_not_divide_names_the_choices():
    mesh = sharding.make_mesh()
    sharding.check_batch_size(16, mesh, grad_accum_steps=2)
    with pytest.raises(
        ValueError, match=r"choose from \[8, 16\], or use \[1, 2, 3, 4, 6\] devices"
    ):
        sharding.check_batch_size(12, mesh)
    with pytest.raises(ValueError, match=r"choose from \[16\]"):
        sharding.check_batch_size(8, mesh, grad_accum_steps=2)
    with pytest.raises(ValueError, match="grad_accum_steps=0 must be at least 1"):
        sharding.check_batch_size(8, mesh, grad_accum_steps=0)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((1024, 4096), PartitionSpec(None, "fsdp")),
        ((4096, 1024), PartitionSpec("fsdp")),
        ((1025, 1024), PartitionSpec(None, "fsdp")),
        ((1023, 1025), PartitionSpec()),
        ((64,), PartitionSpec()),
        ((), PartitionSpec()),
    ],
)
def test_large_leaves_are_cut_along_their_largest_divisible_dimension(shape, spec):
    assert leaf_spec(shape, fsdp=4) == spec
    assert leaf_spec(shape, fsdp=1) == PartitionSpec()


@pytest.mark.parametrize(
    ("name", "scan_layers"), [(name, index % 2 == 1) for index, name in enumerate(NETWORKS)]
)
def test_tokens_of_pretrained_encoders_are_the_same_on_eight_devices(
    monkeypatch, name, scan_layers
):
    monkeypatch.setattr(placement, "MIN_SHARDED_SIZE", 64)
    description, params, _ = opened_model(FOLDER / name)
    mesh = sharding.make_mesh(fsdp=2)
    config = dataclasses.replace(description.model, scan_layers=scan_layers)
    model = Segmenter(config, mesh=mesh)
    places = sharding.tree_sharding(params, mesh)
    assert any("fsdp" in place.spec for place in jax.tree.leaves(places))
    with np.load(FOLDER / f"{name}.npz") as golden:
        image, tokens = (np.tile(golden[f"wide/{n}"].T, 4).T for n in ("image_nhwc", "tokens"))
    encode = jax.jit(lambda params, x: model.apply({"params": params}, x, method=model.encode))
    found = encode(
        jax.device_put(params, places), jax.device_put(image, sharding.batch_sharding(mesh))
    )
    assert len(found.sharding.device_set) == 8
    np.testing.assert_allclose(found, tokens, atol=2e-5)
