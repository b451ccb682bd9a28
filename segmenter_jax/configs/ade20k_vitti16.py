"""Seg-Ti-Mask/16 on ADE20K: published mIoU 38.1 SS, 38.8 MS; not trained here yet.

python -m segmenter_jax.main --config=ade20k_vitti16 --workdir=runs/ade20k_vitti16
"""

import ml_collections

from segmenter_jax.configs import common


def get_config() -> ml_collections.ConfigDict:
    """ADE20K recipe of the paper: 161,728 steps of batch 8, crops of 512 pixels."""
    config = common.get_config()
    config.model.variant = "Ti/16"
    config.init_from = "augreg/Ti_16"
    return config
