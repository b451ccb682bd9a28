"""What can be found wrong in a config before anything is built from it."""

import contextlib
import operator
from collections.abc import Iterator
from typing import get_args

import jax
import ml_collections
from jax.sharding import Mesh

from segmenter_jax.models.choices import Method
from segmenter_jax.runtime.console import logger
from segmenter_jax.training import sharding
from segmenter_jax.training.program import check_decoder


@contextlib.contextmanager
def group(name: str) -> Iterator[None]:
    """Adds to an error of a part which group of the config its values are from."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"config.{name}: {error}") from error


def check(config: ml_collections.ConfigDict, mesh: Mesh) -> None:
    """Raises ValueError for what can be found wrong before the dataset is known."""
    _check_ranges(config)
    _check_frozen(config)
    with group("model"):
        check_decoder(config.model.decoder)
    sharding.check_batch_size(config.batch_size, mesh, config.grad_accum_steps)


def _check_ranges(config: ml_collections.ConfigDict) -> None:
    """Checks numbers that are handed on without a check of their own."""
    if not 0 <= config.ema_decay < 1:
        raise ValueError(f"config.ema_decay must be in [0, 1), got {config.ema_decay}")
    if (method := config.position_method) not in (None, *(choices := get_args(Method))):
        raise ValueError(f"config.position_method={method!r} is unknown; choose from {choices}")
    for name, least in (
        ("total_steps", 1),
        ("features.views", 0),
        ("optimizer.max_skipped_updates", 0),
        ("checkpoint.keep", 1),
        ("log.profile_steps", 0),
        ("log.stall_seconds", 0),
    ):
        value = operator.attrgetter(name)(config)
        if not value >= least:
            raise ValueError(f"config.{name} must be at least {least}, got {value}")
    if config.init_entry and not config.init_from:
        raise ValueError(f"config.init_entry={config.init_entry!r} is of a file; give init_from")


def _check_frozen(config: ml_collections.ConfigDict) -> None:
    frozen, views = config.optimizer.freeze_encoder, config.features.views
    if frozen and not config.init_from:
        logger.warning("optimizer.freeze_encoder without init_from: the encoder stays random")
    if views and not frozen:
        raise ValueError(
            f"config.features.views={views} keeps what an encoder gives, but this one is trained; "
            "set config.optimizer.freeze_encoder, or config.features.views=0"
        )
    if views and jax.process_count() > 1:
        raise ValueError(
            f"config.features.views={views} works in one process, here are {jax.process_count()}; "
            "config.features.views=0 computes features at every step"
        )


def trains_on_features(config: ml_collections.ConfigDict, num_records: int) -> bool:
    """Whether a run keeps the features of its frozen encoder instead of computing them each time.

    It does not where it sees no crop twice.
    """
    kept, seen = config.features.views * num_records, config.total_steps * config.batch_size
    if kept >= seen:
        logger.info(
            "features are not kept: %d steps of batch %d see no more than the %d crops of "
            "config.features.views=%d",
            config.total_steps,
            config.batch_size,
            kept,
            config.features.views,
        )
    return 0 < kept < seen
