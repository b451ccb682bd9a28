"""Seg-B/8 (linear) on ADE20K: published mIoU 49.5 SS, 50.5 MS; not trained here yet.

python -m segmenter_jax.main --config=ade20k_vitb8_linear --workdir=runs/vitb8_linear
"""

import ml_collections

from segmenter_jax.configs import common


def get_config() -> ml_collections.ConfigDict:
    """ADE20K recipe of the paper: 161,728 steps of batch 8, crops of 512 pixels."""
    config = common.get_config()
    config.model.variant = "B/8"
    config.model.decoder = "linear"
    config.init_from = "augreg/B_8"
    return config
