"""Seg-B(LOCA)/16 linear on ADE20K: published mIoU 48.0 (weights of ImageNet-1k); not trained here.

python -m segmenter_jax.main --config=ade20k_loca_vitb16_linear --workdir=runs/loca_vitb16_linear

LOCA's authors fine-tuned end to end with Segmenter's linear decoder and have not published how;
what is here is Segmenter's own recipe.
"""

import ml_collections

from segmenter_jax.configs import common


def get_config() -> ml_collections.ConfigDict:
    """ADE20K recipe of the paper: 161,728 steps of batch 8, crops of 512 pixels."""
    config = common.get_config()
    config.model.variant = "loca_B/16"
    config.model.decoder = "linear"
    config.augment.normalization = "imagenet"
    config.init_from = "loca_B/16"
    # Of the training state; an average of them, "ema_params", may lie beside them.
    config.init_entry = "params"
    return config
