"""Images of one's own, with a pretrained backbone that is trained as well; better on a GPU.

python -m segmenter_jax.main --config=folder_dinov2_finetune --workdir=runs/mine2 \
    --config.dataset.source=path/to/folder --config.init_from=runs/mine

`init_from` is best the workdir of a run of `folder_dinov2`, whose decoder is gone on with: the
learning rate is one for weights that need little. With a folder of the hub the decoder is new.
"""

import ml_collections

from segmenter_jax.configs import folder_dinov2


def get_config() -> ml_collections.ConfigDict:
    """All layers trained, lower ones less, on larger images than a frozen encoder sees."""
    config = folder_dinov2.get_config()
    config.batch_size = 4

    config.model.head_norm = "none"

    # Small crops of large images: thin things are seen, and a step takes seconds on a CPU.
    config.augment.crop_size = 308
    config.augment.base_size = 518
    config.augment.scale_range = (0.7, 1.5)

    config.features.views = 0

    config.optimizer.freeze_encoder = False
    config.optimizer.learning_rate = 1.5e-4
    config.optimizer.warmup_steps = 50
    config.optimizer.weight_decay = 0.05
    config.optimizer.layer_decay = 0.8

    config.eval.window = 308
    config.eval.stride = 210

    config.checkpoint.every_steps = 100
    return config
