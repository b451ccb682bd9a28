"""Generated shapes: trains, evaluates and shows predictions in minutes on a CPU.

python -m segmenter_jax.main --config=quickstart --workdir=runs/quickstart
"""

import ml_collections

from segmenter_jax.configs import common


def get_config() -> ml_collections.ConfigDict:
    """A small Segmenter with patches of 8 pixels, from scratch, with AdamW."""
    config = common.get_config()
    config.total_steps = 400
    config.batch_size = 16

    config.model.variant = "Ti/8"
    config.model.width = 128
    config.model.depth = 4
    config.model.num_heads = 4
    config.model.drop_path_rate = 0.0
    config.model.decoder_dropout_rate = 0.0
    config.model.decoder_attention_dropout_rate = 0.0

    config.dataset.name = "shapes"

    config.augment.crop_size = 96
    config.augment.base_size = 96
    config.augment.scale_range = (0.75, 1.5)

    config.optimizer.name = "adamw"
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.min_learning_rate = 0.0
    config.optimizer.warmup_steps = 50
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0

    config.eval.every_steps = 200
    config.eval.window = 96
    config.eval.stride = 64

    config.checkpoint.every_steps = 200
    config.log.every_steps = 20
    return config
