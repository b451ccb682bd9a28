"""Every config loads, is complete, and describes a run that can be built."""

import importlib
import pathlib
import types

import jax
import pytest

from segmenter_jax.configs import common
from segmenter_jax.conversion.opening import SourceNetwork
from segmenter_jax.data.specs import DatasetSpec
from segmenter_jax.models import Segmenter
from segmenter_jax.training import experiment

CONFIGS = pathlib.Path(common.__file__).parent
NAMES = sorted(path.stem for path in CONFIGS.glob("[a-z]*.py"))

# Classes, crop, encoder width and depth, decoder, extra tokens, steps: as in the paper's table.
# What a config of a pretrained backbone may start from.
SOURCE = SourceNetwork(
    {"width": 64, "depth": 2, "num_heads": 2, "patch_size": 14, "position_size": (28, 28)},
    {"mean": (0.5,), "std": (0.5,)},
)

PAPER = {
    "ade20k_vitti16": (150, 512, 192, 12, "mask", 1, 161_728),
    "ade20k_vits16": (150, 512, 384, 12, "mask", 1, 161_728),
    "ade20k_vitb16": (150, 512, 768, 12, "mask", 1, 161_728),
    "ade20k_vitl16": (150, 640, 1024, 24, "mask", 1, 161_728),
    "ade20k_vitb8_linear": (150, 512, 768, 12, "linear", 1, 161_728),
    "ade20k_deitb16": (150, 512, 768, 12, "mask", 2, 161_728),
    "ade20k_deitb16_linear": (150, 512, 768, 12, "linear", 2, 161_728),
    "ade20k_loca_vitb16_linear": (150, 512, 768, 12, "linear", 0, 161_728),
    "pascal_context_vitl16": (60, 480, 1024, 24, "mask", 1, 80_128),
    "cityscapes_vitl16": (19, 768, 1024, 24, "mask", 1, 80_352),
}

# Linear probes: width, frozen steps, batch, weight decay, as published by the backbones' authors.
PROBES = {
    "ade20k_dinov3_vitl16_linear": (1024, 40_000, 16, 1e-3),
    "ade20k_dinov3_vitb16_linear": (768, 40_000, 16, 1e-3),
    "ade20k_dinov3_vits16_linear": (384, 40_000, 16, 1e-3),
    "ade20k_dinov2_vitb14_linear": (768, 40_000, 16, 1e-4),
}


def load(name):
    return importlib.import_module(f"segmenter_jax.configs.{name}").get_config()


def leaves(config, prefix=""):
    for key, value in config.items():
        if hasattr(value, "items"):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


@pytest.mark.parametrize("name", NAMES)
def test_config_is_locked_and_adds_no_field(name):
    config = load(name)
    assert config.is_locked
    assert set(leaves(config)) == set(leaves(common.get_config()))
    with pytest.raises(AttributeError):
        config.unknown = 1


@pytest.mark.parametrize("name", NAMES)
def test_config_builds_its_model_and_schedule(name):
    config = load(name)
    num_classes = PAPER.get(name, (7,))[0]
    colors = tuple((i, i, i) for i in range(num_classes))
    spec = DatasetSpec("any", tuple(map(str, range(num_classes))), colors)
    description = experiment.describe(config, spec, SOURCE)
    _, schedule = experiment.make_optimization(config)
    experiment.make_transform(config, spec)
    assert schedule(config.total_steps) == pytest.approx(config.optimizer.min_learning_rate)

    crop = config.augment.crop_size
    model = Segmenter(description.model)
    image = jax.ShapeDtypeStruct((1, crop, crop, 3), "float32")
    logits, variables = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x), image
    )
    patch = description.model.patch_size
    assert logits.shape == (1, -(-crop // patch), -(-crop // patch), num_classes)
    if name in PAPER:
        _, crop, width, depth, decoder, extra, steps = PAPER[name]
        c = description.model
        assert (c.image_size, c.width, c.depth) == ((crop, crop), width, depth)
        assert (c.decoder, c.num_extra_tokens, config.total_steps) == (decoder, extra, steps)
        assert ("class_embedding" in variables["params"]["decoder"]) == (decoder == "mask")
    if name in PROBES:
        o, e = config.optimizer, config.eval
        probe = description.model.width, config.total_steps, config.batch_size, o.weight_decay
        assert probe == PROBES[name]
        assert (o.freeze_encoder, description.model.head_norm) == (True, "batch")
        assert (crop, e.window, e.stride) == (512, 512, 341)


def test_another_patch_size_keeps_the_number_of_positions():
    config = load("folder_dinov2")
    config.model.patch_size = 16
    model = experiment.model_config(config, 3, 3, SOURCE)
    assert (model.patch_size, model.position_size, model.grid) == (16, (32, 32), (2, 2))
    config.model.variant = "dinov2_S/14"
    model = experiment.model_config(config, 3, 3)
    assert (model.patch_size, model.grid) == (16, (37, 37))


def test_every_published_result_has_a_config():
    assert PAPER.keys() | PROBES.keys() <= set(NAMES)


def test_no_field_is_read_with_a_default_of_its_own():
    for path in CONFIGS.parent.rglob("*.py"):
        assert "config.get(" not in path.read_text(), path


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ((1.0, 2.0), "has 2 values, the dataset 'any' has 3 classes"),
        ((1.0, -1.0, 1.0), "must be numbers of at least 0, not all 0"),
        ((0.0, 0.0, 0.0), "must be numbers of at least 0, not all 0"),
        ((1.0, "a", 1.0), "must be numbers of at least 0, not all 0"),
    ],
)
def test_wrong_class_weights_are_refused(value, message):
    config = common.get_config()
    config.loss.class_weights = value
    description = experiment.describe(config, DatasetSpec("any", tuple("abc"), ((0, 0, 0),) * 3))
    with pytest.raises(ValueError, match=message):
        experiment.make_options(config, description, from_features=False)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("ema_decay", 1.0, r"config\.ema_decay must be in \[0, 1\), got 1.0"),
        ("total_steps", 0, r"config\.total_steps must be at least 1, got 0"),
        ("optimizer.max_skipped_updates", -1, r"max_skipped_updates must be at least 0, got -1"),
        ("log.profile_steps", -1, r"config\.log\.profile_steps must be at least 0, got -1"),
        ("log.stall_seconds", -1.0, r"config\.log\.stall_seconds must be at least 0, got -1"),
        ("mesh.fsdp", 3, r"config\.mesh: fsdp=3 does not divide 8 devices"),
        ("optimizer.momentum", 1.5, r"config\.optimizer: momentum must be in \[0, 1\), got 1.5"),
        ("augment.flip_prob", 2.0, r"config\.augment: .*flip_prob"),
        ("augment.normalization", "a", r"config\.augment\.normalization='a' is unknown"),
        ("model.gelu", "b", r"config\.model: .*gelu"),
        ("eval.window", 0, r"config\.eval: window=0 must be at least 1 pixel"),
        ("eval.batch_size", 0, r"config\.eval: batch_size=0 must be None or at least 1"),
        ("loss.class_weights", (1.0,), r"config\.loss: class_weights has 1 values"),
    ],
)
def test_wrong_values_are_refused_with_the_place_of_their_field(monkeypatch, name, value, message):
    config = common.get_config()
    config.update_from_flattened_dict({name: value})
    spec = DatasetSpec("any", tuple("abc"), ((0, 0, 0),) * 3)
    dataset = types.SimpleNamespace(
        spec=spec, source=lambda _: (), warnings=(), splits={"train": 9}
    )
    monkeypatch.setattr(experiment, "build_dataset", lambda *_: dataset)
    with pytest.raises(ValueError, match=message):
        experiment.build(config)


def test_layer_decay_of_a_frozen_encoder_is_refused():
    config = common.get_config()
    config.optimizer.freeze_encoder = True
    config.optimizer.layer_decay = 0.75
    with pytest.raises(ValueError, match=r"layer_decay=0.75 .*freeze_encoder"):
        experiment.make_optimization(config)


@pytest.mark.parametrize("name", sorted(PAPER))
def test_no_published_recipe_uses_the_optional_features(name):
    config, off = load(name), common.get_config()
    for field in ("layer_decay", "freeze_encoder", "max_skipped_updates", "clip_norm"):
        assert config.optimizer[field] == off.optimizer[field]
    assert config.loss == off.loss
    assert (config.ema_decay, config.grad_accum_steps) == (0, 1)
