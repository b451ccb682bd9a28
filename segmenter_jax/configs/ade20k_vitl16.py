"""Seg-L-Mask/16 on ADE20K: published mIoU 51.8 SS, 53.63 MS; not trained here yet.

python -m segmenter_jax.main --config=ade20k_vitl16 --workdir=runs/ade20k_vitl16
"""

import ml_collections

from segmenter_jax.configs import common


def get_config() -> ml_collections.ConfigDict:
    """ADE20K recipe of the paper: 161,728 steps of batch 8, crops of 640 pixels."""
    config = common.get_config()
    config.model.variant = "L/16"
    config.init_from = "augreg/L_16"
    config.augment.crop_size = 640
    config.augment.base_size = 640
    config.eval.window = 640
    config.eval.stride = 640
    return config
