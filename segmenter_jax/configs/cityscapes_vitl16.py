"""Seg-L-Mask/16 on Cityscapes: published mIoU 79.1 SS, 81.3 MS; not trained here yet.

python -m segmenter_jax.main --config=cityscapes_vitl16 --workdir=runs/cityscapes_l16
"""

import ml_collections

from segmenter_jax.configs import common


def get_config() -> ml_collections.ConfigDict:
    """Cityscapes recipe of the paper: 216 epochs of 372 batches of 8, crops of 768 pixels."""
    config = common.get_config()
    config.total_steps = 216 * 372
    config.init_from = "augreg/L_16"
    config.model.variant = "L/16"
    config.dataset.name = "cityscapes"
    config.augment.crop_size = 768
    config.augment.base_size = 1024
    config.augment.aspect_bound = 2.0
    config.optimizer.learning_rate = 1e-2
    config.eval.window = 768
    config.eval.stride = 512
    return config
