"""A linear probe of DINOv3-S/16 on ADE20K: published mIoU 47.0; not trained here yet.

python -m segmenter_jax.main --config=ade20k_dinov3_vits16_linear --workdir=runs/probe \
    --config.init_from=path/to/dinov3-vits16-pretrain-lvd1689m
"""

import ml_collections

from segmenter_jax.configs import ade20k_dinov3_vitl16_linear


def get_config() -> ml_collections.ConfigDict:
    """The recipe of DINOv3-L/16."""
    config = ade20k_dinov3_vitl16_linear.get_config()
    config.init_from = "path/to/dinov3-vits16-pretrain-lvd1689m"
    config.model.variant = "dinov3_S/16"
    return config
