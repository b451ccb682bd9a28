"""Images of one's own, with a pretrained backbone that is trained as well; better on a GPU.

python -m segmenter_jax.main --config=folder_dinov2_finetune --workdir=runs/mine \
    --config.dataset.source=path/to/folder --config.init_from=path/to/dinov2-small

`init_from` may also be the workdir of a run of `folder_dinov2`, whose decoder is then gone on with.
"""

import ml_collections

from segmenter_jax.configs import folder_dinov2


def get_config() -> ml_collections.ConfigDict:
    """The mask transformer, all layers trained, lower ones less."""
    config = folder_dinov2.get_config()
    config.total_steps = 1_500

    config.model.decoder = "mask"
    config.model.head_norm = "none"

    # Crops smaller than the windows of evaluation, at its scale: less time for a step.
    config.augment.crop_size = 252
    config.augment.scale_range = (0.5, 1.5)

    config.features.views = 0

    config.optimizer.freeze_encoder = False
    config.optimizer.learning_rate = 3e-4
    config.optimizer.warmup_steps = 150
    config.optimizer.weight_decay = 0.05
    config.optimizer.layer_decay = 0.75

    config.checkpoint.every_steps = 250
    return config
