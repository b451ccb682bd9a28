"""Every field of a config is read by a run, and every field of a network by the network."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import pytest

from segmenter_jax.configs import common
from segmenter_jax.conversion.adapt import ENCODER_FIELDS, ENCODER_NUMERICS
from segmenter_jax.models import Segmenter, SegmenterConfig
from segmenter_jax.training.loop import train_and_evaluate
from tests.golden_params import golden_config
from tests.tiny_runs import LIGHT, tiny_config


class Recorded:
    """A config that remembers which of its fields were read, but for the copy a run saves."""

    def __init__(self, config: ml_collections.ConfigDict, read: set[str], prefix: str = ""):
        self._config, self._read, self._prefix = config, read, prefix

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._config, name)
        if isinstance(value, ml_collections.ConfigDict):
            return Recorded(value, self._read, f"{self._prefix}{name}.")
        self._read.add(self._prefix + name)
        return value

    __getitem__ = __getattr__

    def keys(self):
        return self._config.keys()

    def to_dict(self) -> dict[str, Any]:
        return self._config.to_dict()


def names(config: ml_collections.ConfigDict, prefix: str = ""):
    for name, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            yield from names(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_a_run_reads_every_field_of_its_config(source, tmp_path):
    # So that the fields about kept features are needed too.
    frozen = {"optimizer__freeze_encoder": True, "features__views": 1}
    config = tiny_config(source, **LIGHT, **frozen)
    with config.unlocked():
        config.augment.planted = 1
    read: set[str] = set()
    train_and_evaluate(Recorded(config, read), tmp_path / "run")
    assert set(names(config)) - read == {"augment.planted"}


def test_the_fields_of_the_model_group_are_those_of_the_network():
    fields = {field.name for field in dataclasses.fields(SegmenterConfig)}
    # Of the dataset, of the crop, or fixed by the variant.
    elsewhere = {"num_classes", "in_channels", "image_size", "mlp", "mlp_dim"}
    elsewhere |= {"class_token", "num_registers", "layer_scale", "rope_base", "rope_periods"}
    elsewhere |= {"position", "position_size", "position_resize"}
    # Of a decoder that is not trained.
    elsewhere |= {"num_queries"}
    assert set(common.get_config().model.keys()) - {"variant"} == fields - elsewhere


def test_every_field_of_an_encoder_is_compared_with_that_of_a_source():
    fields = {field.name for field in dataclasses.fields(SegmenterConfig)}
    # What a source is fitted to, how it is trained and computed, and decoders.
    free = {"image_size", "patch_size", "position_size", "in_channels", "num_classes"}
    free |= {"dropout_rate", "attention_dropout_rate", "drop_path_rate"}
    free |= {"dtype", "attention", "remat", "scan_layers", "num_queries"}
    free |= {name for name in fields if name.startswith(("decoder", "head_"))}
    assert {*ENCODER_FIELDS, *ENCODER_NUMERICS} == fields - free


def unread(cls: type[SegmenterConfig]) -> set[str]:
    """Fields that no network of a class of configurations reads, however it is built and used."""
    read: set[str] = set()
    used: set[str] = set()

    class Spy(cls):
        def __getattribute__(self, name: str) -> Any:
            read.add(name)
            return super().__getattribute__(name)

    rotated = golden_config("segm_linear_distilled", position="rope")
    queries = golden_config("segm_mask", decoder="eomt")
    linear = golden_config("segm_linear_distilled")
    for plain in (golden_config("segm_mask"), linear, rotated, queries):
        config = Spy(**dataclasses.asdict(plain))
        read.clear()  # Of the checks that a configuration makes of itself.
        model, image = Segmenter(config), jnp.zeros((1, 64, 64, 3))
        key = jax.random.key(0)
        jax.eval_shape(lambda x, m=model, k=key: m.init(k, x), image)
        used |= read
    return {field.name for field in dataclasses.fields(cls)} - used


def test_the_network_reads_every_field_of_its_configuration():
    assert unread(SegmenterConfig) == set()


def test_a_planted_field_that_no_network_reads_is_found():
    @dataclasses.dataclass(frozen=True)
    class Planted(SegmenterConfig):
        planted: int = 0

    assert unread(Planted) == {"planted"}


def test_a_field_that_no_network_has_is_an_error():
    with pytest.raises(TypeError, match="planted"):
        SegmenterConfig.from_variant("Ti/16", num_classes=2, image_size=(32, 32), planted=1)
