"""From a config to the parts of a run: dataset, network, optimizer, description."""

import dataclasses
import math
import operator
from typing import Any

import ml_collections
import optax
from jax.sharding import Mesh

from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.conversion.adapt import check_encoder
from segmenter_jax.conversion.opening import Hints, SourceNetwork
from segmenter_jax.data.datasets import Dataset, build_dataset
from segmenter_jax.data.specs import DatasetSpec
from segmenter_jax.data.transforms import TrainTransform
from segmenter_jax.inference.geometry import InferenceSettings
from segmenter_jax.models import Segmenter, SegmenterConfig
from segmenter_jax.models.choices import NORMALIZATION
from segmenter_jax.models.config import with_patches
from segmenter_jax.runtime.console import logger
from segmenter_jax.training import optimizers, sharding
from segmenter_jax.training.config_checks import check, group, trains_on_features
from segmenter_jax.training.program import TrainProgram
from segmenter_jax.training.state import StepOptions

# As a variant or a normalisation: that of the weights which a run starts from.
SOURCE = "source"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The parts of a run, each built from its group of the config."""

    config: ml_collections.ConfigDict
    dataset: Dataset
    transform: TrainTransform
    description: ModelDescription
    program: TrainProgram
    settings: InferenceSettings


def needs_source(config: ml_collections.ConfigDict) -> bool:
    """Whether the network, or how its images are normalised, is that of `config.init_from`."""
    return SOURCE in (config.model.variant, config.augment.normalization)


def read_source(config: ml_collections.ConfigDict) -> SourceNetwork | None:
    """The encoder of `config.init_from`; None where a run starts from nothing.

    Raises:
      ValueError: it cannot be read, or is needed and not given.
    """
    if config.init_from:
        # Readers of foreign formats are needed here only.
        from segmenter_jax.conversion.convert import source_network

        crop = config.augment.crop_size
        hints = Hints(config.model.num_heads, (crop, crop))
        return source_network(config.init_from, hints, config.init_entry or None)
    for field in ("model.variant", "augment.normalization"):
        if operator.attrgetter(field)(config) == SOURCE:
            raise ValueError(f'config.{field}="source" needs config.init_from')
    return None


def model_config(
    config: ml_collections.ConfigDict,
    num_classes: int,
    in_channels: int,
    source: SourceNetwork | None = None,
) -> SegmenterConfig:
    """Network described by `config.model` and the training crop.

    Args:
      config: see configs/common.py.
      num_classes: of the dataset.
      in_channels: of the dataset's images.
      source: of the weights that the run starts from.
    """
    fields = dict(config.model)
    variant = fields.pop("variant")
    # A placeholder left alone keeps the variant's size.
    fields = {name: value for name, value in fields.items() if value is not None}
    crop = config.augment.crop_size
    if config.optimizer.freeze_encoder:
        # What is not trained is not disturbed either.
        fields |= dict.fromkeys(("dropout_rate", "attention_dropout_rate", "drop_path_rate"), 0.0)
    fields |= {"num_classes": num_classes, "image_size": (crop, crop), "in_channels": in_channels}
    if variant == SOURCE:
        for name in source.fields.keys() & fields.keys():
            if name in ("width", "depth", "num_heads") and fields[name] != source.fields[name]:
                raise ValueError(
                    f"{name}={fields[name]} replaces what the source has, {source.fields[name]}; "
                    f"--config.model.{name}=None takes it"
                )
        taken = with_patches(source.fields, fields.get("patch_size", source.fields["patch_size"]))
        return SegmenterConfig(**(taken | fields))
    return SegmenterConfig.from_variant(variant, **fields)


def _images(config: ml_collections.ConfigDict, source: SourceNetwork | None) -> dict[str, Any]:
    """`mean` and `std` by which images are normalised."""
    name = config.augment.normalization
    if name == SOURCE and not source.images:
        raise ValueError(
            f"config.augment.normalization: {config.init_from} does not say how its images were "
            f"normalised; choose from {tuple(sorted(NORMALIZATION))}"
        )
    if name == SOURCE:
        return source.images
    if name not in NORMALIZATION:
        choices = (*sorted(NORMALIZATION), SOURCE)
        raise ValueError(f"config.augment.normalization={name!r} is unknown; choose from {choices}")
    return dict(zip(("mean", "std"), NORMALIZATION[name], strict=True))


def _check_network(config: ml_collections.ConfigDict, source: SourceNetwork | None) -> None:
    """Raises ValueError for a network that is none, or not that of the weights it starts from."""
    _images(config, source)
    with group("model"):
        network = model_config(config, num_classes=2, in_channels=3, source=source)
    if source is not None:
        sizes = {"num_classes": 2, "image_size": network.image_size}
        check_encoder(config.init_from, SegmenterConfig(**sizes, **source.fields), network)


def describe(
    config: ml_collections.ConfigDict, spec: DatasetSpec, source: SourceNetwork | None = None
) -> ModelDescription:
    """What will travel with the weights of a run on a dataset.

    Args:
      config: see configs/common.py.
      spec: of the dataset.
      source: see `read_source`.
    """
    images = _images(config, source)
    with group("model"):
        model = model_config(config, spec.num_classes, spec.channels, source)
    # Its base size is that of training, which the transform checks.
    with group("eval"):
        return ModelDescription(
            model=model,
            classes=spec.class_names,
            colors=spec.colors,
            **images,
            ignore_label=spec.ignore_label,
            base_size=config.augment.base_size,
            aspect_bound=config.augment.aspect_bound,
            window=config.eval.window,
            stride=config.eval.stride,
            provenance={"dataset": spec.name, "init_from": config.init_from or None}
            | ({"ema_decay": config.ema_decay} if config.ema_decay else {}),
        )


def make_optimization(
    config: ml_collections.ConfigDict,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """(optimizer, schedule) of `config.optimizer`."""
    o = config.optimizer
    if o.freeze_encoder and o.layer_decay != 1:
        raise ValueError(
            f"layer_decay={o.layer_decay} sets learning rates of the encoder, which "
            "freeze_encoder keeps as it is; leave it at 1.0"
        )
    optimizer = optimizers.make_optimizer(
        o.name,
        momentum=o.momentum,
        nesterov=o.nesterov,
        weight_decay=o.weight_decay,
        clip_norm=o.clip_norm,
        layer_decay=o.layer_decay,
    )
    schedule = optimizers.make_schedule(
        o.schedule,
        learning_rate=o.learning_rate,
        min_learning_rate=o.min_learning_rate,
        total_steps=config.total_steps,
        power=o.power,
        warmup_steps=o.warmup_steps,
    )
    return optimizer, schedule


def make_options(
    config: ml_collections.ConfigDict, description: ModelDescription, from_features: bool
) -> StepOptions:
    """What a training step does, from all groups of the config that it concerns."""
    return StepOptions(
        mean=description.mean,
        std=description.std,
        ignore_label=description.ignore_label,
        class_weights=_class_weights(config, description),
        photometric=config.augment.photometric,
        grad_accum_steps=config.grad_accum_steps,
        freeze_encoder=config.optimizer.freeze_encoder,
        from_features=from_features,
        ema_decay=config.ema_decay,
        skip_non_finite=config.optimizer.max_skipped_updates > 0,
    )


def _class_weights(
    config: ml_collections.ConfigDict, description: ModelDescription
) -> tuple[float, ...] | None:
    weights = tuple(config.loss.class_weights)
    if not weights:
        return None
    classes = len(description.classes)
    if len(weights) != classes:
        raise ValueError(
            f"class_weights has {len(weights)} values, the dataset "
            f"{description.provenance['dataset']!r} has {classes} classes"
        )
    numbers = all(isinstance(w, int | float) and 0 <= w < math.inf for w in weights)
    if not numbers or not any(weights):
        raise ValueError(f"class_weights must be numbers of at least 0, not all 0, got {weights}")
    return tuple(map(float, weights))


def make_transform(config: ml_collections.ConfigDict, spec: DatasetSpec) -> TrainTransform:
    """Host augmentation of `config.augment`."""
    a = config.augment
    return TrainTransform(
        spec=spec,
        crop_size=a.crop_size,
        base_size=a.base_size,
        aspect_bound=a.aspect_bound,
        scale_range=tuple(a.scale_range),
        category_max_ratio=a.category_max_ratio,
        flip_prob=a.flip_prob,
    )


def assemble(
    config: ml_collections.ConfigDict,
    spec: DatasetSpec,
    mesh: Mesh,
    source: SourceNetwork | None = None,
    from_features: bool = False,
) -> tuple[ModelDescription, TrainProgram, InferenceSettings]:
    """What a config computes on a dataset: description, training program, and inference settings.

    Args:
      config: see configs/common.py.
      spec: of the dataset.
      mesh: of devices that are there, or only described.
      source: see `read_source`.
      from_features: see `StepOptions`.

    Raises:
      ValueError: a value of the config is wrong; the message names it.
    """
    with group("optimizer"):
        optimization = make_optimization(config)
    description = describe(config, spec, source)
    with group("loss"):
        options = make_options(config, description, from_features)
    with group("eval"):
        settings = InferenceSettings.of(description, batch_size=config.eval.batch_size)
    model = Segmenter(description.model)
    return description, TrainProgram(model, *optimization, options, mesh, config.seed), settings


def build(config: ml_collections.ConfigDict, source: SourceNetwork | None = None) -> Experiment:
    """Checks a config and builds everything it describes, before any device work.

    Args:
      config: see configs/common.py.
      source: of an earlier start of the run; None reads `config.init_from`.

    Raises:
      ValueError: a value of the config or of the dataset is wrong; the message names it.
    """
    with group("mesh"):
        mesh = sharding.make_mesh(config.mesh.fsdp, config.mesh.num_devices)
    check(config, mesh)
    # For their errors alone: building a dataset may take long.
    with group("optimizer"):
        make_optimization(config)
    if source is None:
        source = read_source(config)
        _check_network(config, source)

    d = config.dataset
    dataset = build_dataset(d.name, d.data_dir, d.source or None)
    for warning in dataset.warnings:
        logger.warning("dataset %s: %s", dataset.name, warning)
    for split in (d.train_split, d.eval_split):
        # Refused here rather than at the first evaluation.
        dataset.source(split)
    with group("augment"):
        transform = make_transform(config, dataset.spec)
    from_features = trains_on_features(config, dataset.splits[d.train_split])
    parts = assemble(config, dataset.spec, mesh, source, from_features)
    return Experiment(config, dataset, transform, *parts)
