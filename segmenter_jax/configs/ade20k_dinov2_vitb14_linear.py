"""A linear probe of DINOv2-B/14 on ADE20K: published mIoU 47.3; not trained here yet.

python -m segmenter_jax.main --config=ade20k_dinov2_vitb14_linear --workdir=runs/probe \
    --config.init_from=path/to/dinov2-base

A crop of 512 pixels is padded to 37 whole patches: 518, the size of the pretraining.
"""

import ml_collections

from segmenter_jax.configs import common


def get_config() -> ml_collections.ConfigDict:
    """40,000 steps of batch 16 on the frozen encoder, crops of 512 pixels."""
    config = common.get_config()
    config.init_from = "path/to/dinov2-base"
    config.total_steps = 40_000
    config.batch_size = 16

    config.model.variant = "dinov2_B/14"
    config.model.decoder = "linear"
    config.model.head_norm = "batch"

    config.augment.normalization = "imagenet"

    config.optimizer.freeze_encoder = True
    config.optimizer.name = "adamw"
    config.optimizer.power = 1.0
    config.optimizer.warmup_steps = 1_500
    config.optimizer.min_learning_rate = 0.0
    config.optimizer.weight_decay = 1e-4

    config.eval.stride = 341
    return config
