"""Images of one's own with a pretrained backbone, on a CPU or one GPU.

python -m segmenter_jax.main --config=folder_dinov2 --workdir=runs/mine \
    --config.dataset.source=path/to/folder --config.init_from=path/to/dinov2-small

`init_from` is a folder of the Hugging Face hub such as facebook/dinov2-small, or any other encoder
that `convert` reads; its sizes and the normalisation of its images are taken from it.
"""

import ml_collections

from segmenter_jax.configs import folder


def get_config() -> ml_collections.ConfigDict:
    """A linear decoder on features of the frozen encoder of `init_from`, which are kept."""
    config = folder.get_config()
    config.total_steps = 1_000

    config.model.variant = "source"
    config.model.depth = None
    config.model.decoder = "linear"
    config.model.head_norm = "batch"

    config.augment.crop_size = 434
    config.augment.base_size = 434
    # One crop of each picture at the size of evaluation: what is kept is seen again and again.
    config.augment.scale_range = (1.0, 1.0)
    config.augment.normalization = "source"

    config.features.views = 1

    # High, as few steps have to take a head of zeros to features that stay as they are.
    config.optimizer.freeze_encoder = True
    config.optimizer.learning_rate = 3e-2
    config.optimizer.weight_decay = 1e-4

    config.eval.every_steps = 0
    config.eval.window = 434
    config.eval.stride = 310

    config.checkpoint.every_steps = 500
    return config
