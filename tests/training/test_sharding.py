"""Mesh and placement rules, on 8 simulated devices."""

import pytest
from jax.sharding import PartitionSpec

from segmenter_jax.models.placement import leaf_spec
from segmenter_jax.training import sharding


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
