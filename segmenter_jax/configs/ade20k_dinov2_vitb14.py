"""DINOv2-B/14 with the mask transformer on ADE20K, trained end to end: no figure is published.

python -m segmenter_jax.main --config=ade20k_dinov2_vitb14 --workdir=runs/dinov2_vitb14 \
    --config.init_from=path/to/dinov2-base
"""

import ml_collections

from segmenter_jax.configs import ade20k_dinov3_vitb16


def get_config() -> ml_collections.ConfigDict:
    """The recipe of DINOv3-B/16, crops of 37 x 37 patches."""
    config = ade20k_dinov3_vitb16.get_config()
    config.init_from = "path/to/dinov2-base"
    config.model.variant = "dinov2_B/14"
    config.augment.crop_size = 518
    config.augment.base_size = 518
    config.eval.window = 518
    config.eval.stride = 476
    return config
