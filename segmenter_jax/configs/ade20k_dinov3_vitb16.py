"""DINOv3-B/16 with the mask transformer on ADE20K, trained end to end: no figure is published.

python -m segmenter_jax.main --config=ade20k_dinov3_vitb16 --workdir=runs/dinov3_vitb16 \
    --config.init_from=path/to/dinov3-vitb16-pretrain-lvd1689m

Learning rate, its decay by layer, and weight decay are those of EoMT on DINOv2; warm-up and the
bound of the gradient are not.
"""

import ml_collections

from segmenter_jax.configs import common


def get_config() -> ml_collections.ConfigDict:
    """40,000 steps of batch 16, crops of 512 pixels."""
    config = common.get_config()
    config.init_from = "path/to/dinov3-vitb16-pretrain-lvd1689m"
    config.total_steps = 40_000
    config.batch_size = 16

    config.model.variant = "dinov3_B/16"

    config.augment.normalization = "imagenet"

    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 1e-4
    config.optimizer.min_learning_rate = 0.0
    config.optimizer.warmup_steps = 1_500
    config.optimizer.weight_decay = 0.05
    config.optimizer.layer_decay = 0.8
    config.optimizer.clip_norm = 1.0

    config.eval.stride = 480
    return config
