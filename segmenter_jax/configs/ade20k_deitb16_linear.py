"""Seg-B(DeiT)/16 linear on ADE20K: published mIoU 47.1 SS, 48.1 MS; not trained here yet.

python -m segmenter_jax.main --config=ade20k_deitb16_linear --workdir=runs/deitb16_linear
"""

import ml_collections

from segmenter_jax.configs import common


def get_config() -> ml_collections.ConfigDict:
    """ADE20K recipe of the paper: 161,728 steps of batch 8, crops of 512 pixels."""
    config = common.get_config()
    config.model.variant = "B/16"
    config.model.decoder = "linear"
    config.model.distilled = True
    config.augment.normalization = "deit"
    # The authors' file, downloaded once; PyTorch reads it: pip install "segmenter_jax[torch]".
    config.init_from = (
        "https://dl.fbaipublicfiles.com/deit/deit_base_distilled_patch16_384-d0272ac0.pth"
    )
    return config
