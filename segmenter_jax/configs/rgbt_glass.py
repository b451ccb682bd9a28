"""Seg-B-Mask/16 on RGB-T glass (colour and thermal): published MAE 0.072; not trained here yet.

python -m segmenter_jax.main --config=rgbt_glass --workdir=runs/rgbt_glass

The benchmark's metrics:
python -m segmenter_jax.evaluate runs/rgbt_glass --dataset=rgbt_glass --split=test --binary
"""

import ml_collections

from segmenter_jax.configs import common


def get_config() -> ml_collections.ConfigDict:
    """A recipe of our own, as none was published: 20k steps of batch 8, crops of 512 pixels."""
    config = common.get_config()
    config.total_steps = 20_000
    config.model.variant = "B/16"
    config.init_from = "augreg/B_16"  # Its patch kernels are inflated to four channels.
    config.dataset.name = "rgbt_glass"
    config.dataset.eval_split = "test"
    # Images without glass show one class, so every crop of theirs would be drawn in vain.
    config.augment.category_max_ratio = 1.0
    config.eval.every_steps = 2_000
    return config
