"""A linear probe of DINOv3-L/16 on ADE20K: published mIoU 54.9; not trained here yet.

python -m segmenter_jax.main --config=ade20k_dinov3_vitl16_linear --workdir=runs/probe \
    --config.init_from=path/to/dinov3-vitl16-pretrain-lvd1689m

The weights are under Meta's licence: https://github.com/facebookresearch/dinov3 tells how to get
them. From their recipe differ: hue by 18 of 180 degrees instead of up to all, a loss over the
labelled pixels only, and one cosine in the place of a product of two decays.
"""

import ml_collections

from segmenter_jax.configs import common


def get_config() -> ml_collections.ConfigDict:
    """40,000 steps of batch 16 on the frozen encoder, crops of 512 pixels."""
    config = common.get_config()
    config.init_from = "path/to/dinov3-vitl16-pretrain-lvd1689m"
    config.total_steps = 40_000
    config.batch_size = 16

    config.model.variant = "dinov3_L/16"
    config.model.decoder = "linear"
    config.model.head_norm = "batch"
    config.model.head_dropout_rate = 0.1

    config.augment.normalization = "imagenet"

    config.optimizer.freeze_encoder = True
    config.optimizer.name = "adamw"
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 1_500
    config.optimizer.min_learning_rate = 0.0
    config.optimizer.weight_decay = 1e-3

    config.eval.stride = 341
    return config
