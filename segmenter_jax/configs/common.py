"""Every setting and its default. Other configs start from this one and change a few lines.

Override any of them on the command line: `--config.batch_size=16 --config.model.variant=S/16`.
Sizes are in pixels, lengths in optimizer steps, batches are global (over all devices and hosts).
"""

import ml_collections
from ml_collections.config_dict import placeholder


def get_config() -> ml_collections.ConfigDict:
    """Defaults: Seg-Ti-Mask/16 with the paper's ADE20K recipe."""
    config = ml_collections.ConfigDict()
    config.seed = 0  # Of parameters, data order, augmentation and dropout.
    # Length of the run: 64 epochs of the 20,210 images of ADE20K, each with a last, short batch.
    config.total_steps = 64 * 2527
    config.batch_size = 8  # Global batch.
    # Parts a batch is processed in: less memory, same gradient but for other draws of dropout.
    config.grad_accum_steps = 1
    config.ema_decay = (
        0.0  # Of an average of the weights, which is then evaluated and kept; 0: off.
    )
    # Weights to start from: model directory, .npz, .pth, .safetensors, https:// or gs:// address of
    # one, "hf://facebook/dinov2-small", or a name such as "augreg/B_16" or "dinov2_S/14"
    # (segmenter_jax/conversion/published.py).
    config.init_from = ""
    config.init_entry = ""  # Which of several sets of weights in that file, say "model_ema".
    # How its position embeddings are resized to the crop: "bilinear" (None) as the reference does,
    # "bicubic", or "corner_linear" as Google's own code.
    config.position_method = placeholder(str)

    config.model = ml_collections.ConfigDict()
    # Ti, S, B or L, and the patch size; a pretrained encoder's such as "dinov2_S/14" or
    # "dinov3_L/16", see segmenter_jax/models/variants.py; or "source": the encoder of init_from.
    config.model.variant = "Ti/16"
    # Replaces the variant's patch size: the patch embedding of init_from is then resized.
    config.model.patch_size = placeholder(int)
    config.model.width = placeholder(int)  # Replaces the variant's width.
    config.model.depth = placeholder(int)  # Replaces the variant's number of layers.
    config.model.num_heads = placeholder(int)  # Replaces the variant's number of heads.
    config.model.distilled = placeholder(bool)  # DeiT's distillation token; None: the variant's.
    config.model.dropout_rate = 0.0  # Of the encoder.
    config.model.attention_dropout_rate = 0.0  # Of the encoder's attention weights.
    config.model.drop_path_rate = 0.1  # Of the encoder's last layer; grows linearly up to it.
    config.model.decoder = "mask"  # "mask" or "linear"; "eomt" is not trained here.
    config.model.decoder_depth = 2  # Layers of the mask decoder.
    config.model.decoder_dropout_rate = 0.1  # Of the mask decoder.
    # Of its attention weights. No fused kernel for GPUs has it: there 0 is faster.
    config.model.decoder_attention_dropout_rate = 0.1
    config.model.decoder_drop_path_rate = 0.0  # Of the mask decoder.
    # Of the linear decoder's input, in training: "batch" is folded into the head when kept.
    config.model.head_norm = "none"
    config.model.head_dropout_rate = 0.0  # Share of channels that an image is left without.
    # 1e-6 in Google's ViT code, 1e-5 in the reference; None: the variant's.
    config.model.layer_norm_eps = placeholder(float)
    config.model.decoder_layer_norm_eps = placeholder(float)  # None: as the encoder's.
    # "tanh" in Google's ViT code, "exact" in the reference; None: the variant's.
    config.model.gelu = placeholder(str)
    config.model.dtype = "auto"  # Compute type: bfloat16 on TPU and GPU, float32 on CPU.
    config.model.attention = "auto"  # Implementation, see segmenter_jax/models/attention.py.
    config.model.remat = False  # Recompute layers in the backward pass: less memory, more time.
    # Encoder layers as a loop: compiles fast on TPUs, gathers one at a time under FSDP, lets remat
    # work on CPUs.
    config.model.scan_layers = False

    config.dataset = ml_collections.ConfigDict()
    config.dataset.name = "ade20k"  # See `python -m segmenter_jax.prepare_data list`.
    config.dataset.data_dir = "~/tensorflow_datasets"  # Where built datasets lie.
    config.dataset.source = ""  # Folder of a "folder" dataset, built on first use.
    config.dataset.train_split = "train"  # Split that is learnt from.
    config.dataset.eval_split = "validation"  # Split that is scored; "val" in folders.

    config.augment = ml_collections.ConfigDict()
    config.augment.crop_size = 512  # Side of the square training crop; also the model's size.
    config.augment.base_size = 512  # Short side of the box that images are scaled to.
    config.augment.aspect_bound = 4.0  # Long side of that box over its short side.
    config.augment.scale_range = (0.5, 2.0)  # Factor on the box, drawn uniformly.
    config.augment.category_max_ratio = 0.75  # No class above this share of a crop.
    config.augment.flip_prob = 0.5  # Of a horizontal flip.
    config.augment.photometric = True  # Brightness, contrast, saturation, hue.
    # "vit" (mean and std 0.5), "imagenet", "deit" (ImageNet's as the reference rounds them),
    # "sat493m" (DINOv3's for satellite images), or "source": those of init_from.
    config.augment.normalization = "vit"

    config.loader = ml_collections.ConfigDict()
    config.loader.num_workers = 0  # Worker processes; 0 reads in threads of this one.
    config.loader.num_threads = placeholder(int)  # Reading threads; None: one a core, up to 4.
    config.loader.prefetch = 4  # Batches kept ready.

    # What a frozen encoder gives, computed once and kept on disk for the training of decoders.
    config.features = ml_collections.ConfigDict()
    config.features.views = 0  # Crops of each training image that are kept; 0: none.
    config.features.folder = ""  # Where they lie; "": beside the built dataset.

    config.optimizer = ml_collections.ConfigDict()
    config.optimizer.name = "sgd"  # "sgd" or "adamw".
    config.optimizer.schedule = "polynomial"  # "polynomial" or "cosine".
    config.optimizer.learning_rate = 1e-3  # At the start, or after warm-up.
    config.optimizer.min_learning_rate = 1e-5  # At the end.
    config.optimizer.power = 0.9  # Of the polynomial schedule.
    config.optimizer.warmup_steps = 0  # Linear, before or in the schedule.
    config.optimizer.momentum = 0.9  # Of SGD.
    config.optimizer.nesterov = True  # Of SGD, as in the reference.
    config.optimizer.weight_decay = 0.0  # "sgd": as in PyTorch; "adamw": of kernels only.
    config.optimizer.clip_norm = placeholder(float)  # Bound of the gradient norm; None: none.
    config.optimizer.layer_decay = 1.0  # Learning rate of an encoder layer over that of the next.
    config.optimizer.freeze_encoder = False  # Train the decoder only.
    config.optimizer.max_skipped_updates = 0  # Non-finite updates left out in a row; 0: stop.

    config.loss = ml_collections.ConfigDict()
    config.loss.class_weights = ()  # One weight per class, for example (1.0, 0.5, 2.0); (): all 1.

    config.eval = ml_collections.ConfigDict()
    config.eval.every_steps = 10_000  # 0: only at the end.
    config.eval.window = 512  # Side of the sliding window.
    config.eval.stride = 512  # Of the sliding window; the paper's tables use crop_size - 32.
    config.eval.batch_size = placeholder(int)  # Windows at a time; None: by device.
    config.eval.num_pictures = 4  # Overlays written at each evaluation, spread over the split.

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every_steps = 2_000  # What a kill may cost.
    config.checkpoint.keep = 2  # Latest checkpoints kept; the best model is kept apart.

    config.log = ml_collections.ConfigDict()
    config.log.every_steps = 50  # Numbers fetched from the devices, logged and printed.
    config.log.profile_steps = 0  # Traced into WORKDIR/profile after 10 steps of a start; 0: none.
    config.log.stall_seconds = 600.0  # Without a step, until stacks are printed; 0: never.

    config.mesh = ml_collections.ConfigDict()
    config.mesh.fsdp = 1  # Pieces that parameters and optimizer state are cut into.
    config.mesh.num_devices = placeholder(int)  # None: all there are.
    return config.lock()
