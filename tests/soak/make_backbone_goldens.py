"""Makes tests/golden/backbones: tiny random encoders as `transformers` saves them, and tokens.

  pip install transformers torch safetensors; python -m tests.soak.make_backbone_goldens [NAME ...]

Every parameter is perturbed, so that each one matters. The suite reads what is stored and needs no
`transformers`. Made with transformers 5.24.0.
"""

import pathlib
import sys

import numpy as np
import torch
import transformers as tf

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "golden" / "backbones"
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
# (height, width) in patches: the positions' own grid, a wide one, and one smaller in one way.
GRIDS = {"native": (4, 4), "wide": (4, 7), "other": (6, 3)}


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


def main() -> None:
    """Writes a folder for each network."""
    for name, network, patch, options in networks():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for key, value in network.named_parameters():
                noise = torch.randn(value.shape, generator=generator)
                # Keys have no bias in DINOv3; everything else gets one.
                value += noise * (0.5 if "embed" in key or "token" in key else 0.2)
        network.eval().save_pretrained(FOLDER / name)
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
    main()
