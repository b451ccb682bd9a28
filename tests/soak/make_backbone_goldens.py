"""Makes tests/golden/backbones: tiny random networks as `transformers` saves them, and tokens.

  pip install transformers torch safetensors; python -m tests.soak.make_backbone_goldens [NAME ...]

Of EoMT, the logits of masks and of classes. Every parameter is perturbed, so that each one matters.
The suite reads what is stored and needs no `transformers`. Made with transformers 5.24.0.
"""

import pathlib
import sys
from collections.abc import Sequence

import numpy as np
import torch
import transformers as tf

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "golden" / "backbones"
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
# (height, width) in patches: the positions' own grid, a wide one, and one smaller in one way.
GRIDS = {"native": (4, 4), "wide": (4, 7), "other": (6, 3)}
CLASSES = {0: "wall", 1: "sky", 2: "floor", 3: "tree"}


def networks():
    """Name -> (network, patch size, options of its call)."""
    patch = 4
    dino = SIZE | {"patch_size": patch, "image_size": 4 * patch, "mlp_ratio": 2}
    v3 = {k: v for k, v in dino.items() if k != "mlp_ratio"} | {"num_register_tokens": 4}
    plain = {"intermediate_size": 48, "patch_size": patch, "image_size": 4 * patch}
    resized = {"interpolate_pos_encoding": True}
    yield "dinov2", tf.Dinov2Model(tf.Dinov2Config(**dino)), patch, {}
    registers = tf.Dinov2WithRegistersConfig(**dino, use_swiglu_ffn=True, num_register_tokens=4)
    yield "dinov2_registers", tf.Dinov2WithRegistersModel(registers), patch, {}
    config = tf.DINOv3ViTConfig(**v3, intermediate_size=64)
    yield "dinov3", tf.DINOv3ViTModel(config), patch, {}
    gated = {"intermediate_size": 48, "use_gated_mlp": True, "hidden_act": "silu"}
    yield "dinov3_gated", tf.DINOv3ViTModel(tf.DINOv3ViTConfig(**v3, **gated)), patch, {}
    config = tf.SiglipVisionConfig(**SIZE, **plain)
    yield "siglip", tf.SiglipVisionModel(config), patch, resized
    plain = {k: v for k, v in plain.items() if k != "image_size"}
    config = tf.Siglip2VisionConfig(**SIZE, **plain, num_patches=16)
    yield "naflex", tf.Siglip2VisionModel(config), patch, {}
    plain["image_size"] = 4 * patch
    config = tf.ViTConfig(**SIZE, **plain, layer_norm_eps=1e-6)
    yield "vit", tf.ViTModel(config, add_pooling_layer=False), patch, resized


def flat_patches(image, patch):
    """Arguments of NaFlex, which takes patches: rows, columns and channels of each in one axis."""
    batch, channels, height, width = image.shape
    rows, columns = height // patch, width // patch
    x = image.reshape(batch, channels, rows, patch, columns, patch)
    x = x.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)
    sizes = torch.tensor([[rows, columns]] * batch)
    return {
        "pixel_values": x,
        "pixel_attention_mask": torch.ones(x.shape[:2]),
        "spatial_shapes": sizes,
    }


def segmenters():
    """Name -> (network, patch size)."""
    size = SIZE | {"num_blocks": 1, "num_queries": 5, "num_register_tokens": 4}
    config = tf.EomtConfig(
        **size, patch_size=16, image_size=64, mlp_ratio=2, id2label=CLASSES, num_upscale_blocks=2
    )
    yield "eomt_dinov2", tf.EomtForUniversalSegmentation(config), 16
    config = tf.EomtDinov3Config(
        **size,
        patch_size=8,
        image_size=32,
        intermediate_size=64,
        layer_norm_eps=1e-5,
        num_upscale_blocks=1,
        num_labels=4,
    )
    yield "eomt_dinov3", tf.EomtDinov3ForUniversalSegmentation(config), 8


def save_perturbed(network: torch.nn.Module, name: str) -> torch.Generator:
    """Makes every parameter matter and saves the network; returns a source of more numbers."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, value in network.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            # Keys have no bias in DINOv3; everything else gets one.
            value += noise * (0.5 if "embed" in key or "token" in key else 0.2)
    network.eval().save_pretrained(FOLDER / name)
    return generator


def save_segmenters(wanted: Sequence[str]) -> None:
    """Writes a folder for each EoMT; masks of attention are off, as at the end of its training."""
    for name, network, patch in segmenters():
        if wanted and name not in wanted:
            continue
        network.attn_mask_probs.zero_()
        generator = save_perturbed(network, name)
        image = torch.randn(2, 3, 4 * patch, 4 * patch, generator=generator)
        with torch.no_grad():
            found = network(pixel_values=image)
        np.savez_compressed(
            FOLDER / f"{name}.npz",
            image_nhwc=image.permute(0, 2, 3, 1).numpy(),
            masks=found.masks_queries_logits.permute(0, 2, 3, 1).numpy(),
            classes=found.class_queries_logits.numpy(),
        )
        print(name, found.masks_queries_logits.shape, found.class_queries_logits.shape)


def main(wanted: Sequence[str]) -> None:
    """Writes a folder for each network, or for those of the names wanted."""
    save_segmenters(wanted)
    for name, network, patch, options in networks():
        if wanted and name not in wanted:
            continue
        generator = save_perturbed(network, name)
        expected = {}
        for case, (rows, columns) in GRIDS.items():
            image = torch.randn(2, 3, rows * patch, columns * patch, generator=generator)
            with torch.no_grad():
                call = flat_patches(image, patch) if name == "naflex" else {"pixel_values": image}
                tokens = network(**call, **options).last_hidden_state
            expected[f"{case}/image_nhwc"] = image.permute(0, 2, 3, 1).numpy()
            expected[f"{case}/tokens"] = tokens.numpy()
        np.savez_compressed(FOLDER / f"{name}.npz", **expected)
        print(name, {key: value.shape for key, value in expected.items() if "tokens" in key})


if __name__ == "__main__":
    main(sys.argv[1:])
