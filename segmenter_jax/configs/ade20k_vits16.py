"""Seg-S-Mask/16 on ADE20K: published mIoU 45.3 SS, 46.9 MS; not trained here yet.

python -m segmenter_jax.main --config=ade20k_vits16 --workdir=runs/ade20k_vits16
"""

import ml_collections

from segmenter_jax.configs import common


def get_config() -> ml_collections.ConfigDict:
    """ADE20K recipe of the paper: 161,728 steps of batch 8, crops of 512 pixels."""
    config = common.get_config()
    config.model.variant = "S/16"
    config.init_from = "augreg/S_16"
    return config
