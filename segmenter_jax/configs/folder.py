"""Your own images: a folder with classes.json, which says where images and labels are.

python -m segmenter_jax.main --config=folder --workdir=runs/mine \
    --config.dataset.name=mine --config.dataset.source=path/to/folder
"""

import ml_collections

from segmenter_jax.configs import common


def get_config() -> ml_collections.ConfigDict:
    """A small Segmenter from scratch at low resolution; set init_from for pretrained weights."""
    config = common.get_config()
    config.total_steps = 1_000
    config.batch_size = 8

    config.model.variant = "Ti/8"
    config.model.depth = 4
    config.model.drop_path_rate = 0.0

    config.dataset.name = "folder"
    config.dataset.eval_split = "val"

    config.augment.crop_size = 128
    config.augment.base_size = 160
    config.augment.scale_range = (0.75, 1.75)

    config.optimizer.name = "adamw"
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 5e-4
    config.optimizer.min_learning_rate = 0.0
    config.optimizer.warmup_steps = 100
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0

    config.eval.every_steps = 250
    config.eval.window = 128
    config.eval.stride = 96

    config.checkpoint.every_steps = 250
    return config
