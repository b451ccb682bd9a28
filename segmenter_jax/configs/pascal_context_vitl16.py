"""Seg-L-Mask/16 on Pascal Context: published mIoU 58.1 SS, 59.0 MS; not trained here yet.

python -m segmenter_jax.main --config=pascal_context_vitl16 --workdir=runs/pascal_l16
"""

import ml_collections

from segmenter_jax.configs import common


def get_config() -> ml_collections.ConfigDict:
    """Pascal Context recipe of the paper: 256 epochs of 313 batches of 16, crops of 480 pixels."""
    config = common.get_config()
    config.batch_size = 16
    config.total_steps = 256 * 313
    config.init_from = "augreg/L_16"
    config.model.variant = "L/16"
    config.dataset.name = "pascal_context"
    config.augment.crop_size = 480
    config.augment.base_size = 520
    config.augment.aspect_bound = 8.0
    config.eval.window = 480
    config.eval.stride = 320
    return config
