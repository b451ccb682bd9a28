"""Trains the paper's recipe here and in PyTorch, from equal weights on equal batches.

  python -m tests.soak.against_pytorch [STEPS]

The network in PyTorch is written here from the paper and the names of the authors' checkpoint, the
optimizer is `torch.optim.SGD` with Nesterov's momentum. Prints the largest relative difference of
the losses, and fails above 1e-4.
"""

import pathlib
import sys

import jax
import numpy as np
import torch
from torch.nn import functional as F

from segmenter_jax.data.builders.shapes import render_scene
from segmenter_jax.models import Segmenter
from segmenter_jax.training import optimizers, sharding
from segmenter_jax.training.program import TrainProgram
from segmenter_jax.training.state import StepOptions
from tests.golden_params import golden_config, golden_params

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
SIZE, PATCH, HEADS, BATCH = 64, 16, 2, 2
LEARNING_RATE, MIN_LEARNING_RATE, MOMENTUM = 1e-2, 1e-5, 0.9


class Weights:
    """Applies parts of a network by the names of the authors' checkpoint."""

    def __init__(self, path: pathlib.Path) -> None:
        state = torch.load(path, weights_only=True)["model"]
        self.values = {name: value.clone().requires_grad_() for name, value in state.items()}

    def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.values[f"{name}.weight"], self.values[f"{name}.bias"])

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = (self.values[f"{name}.{part}"] for part in ("weight", "bias"))
        return F.layer_norm(x, x.shape[-1:], weight, bias, 1e-5)

    def block(self, name: str, x: torch.Tensor, heads: int) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = self.linear(f"{name}.attn.qkv", self.norm(f"{name}.norm1", x))
        query, key, value = qkv.reshape(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-2, -1) / (width // heads) ** 0.5).softmax(-1)
        mixed = (weights @ value).transpose(1, 2).reshape(batch, length, width)
        x = x + self.linear(f"{name}.attn.proj", mixed)
        hidden = F.gelu(self.linear(f"{name}.mlp.fc1", self.norm(f"{name}.norm2", x)))
        return x + self.linear(f"{name}.mlp.fc2", hidden)

    def logits(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) to (B, K, H, W)."""
        v = self.values
        embedding = (v[f"encoder.patch_embed.proj.{part}"] for part in ("weight", "bias"))
        patches = F.conv2d(image, *embedding, stride=PATCH)
        grid = patches.shape[2:]
        x = patches.flatten(2).transpose(1, 2)
        x = torch.cat([v["encoder.cls_token"].expand(len(x), -1, -1), x], 1)
        x = x + v["encoder.pos_embed"]
        for i in range(sum(name.endswith("norm1.weight") for name in v if "encoder" in name)):
            x = self.block(f"encoder.blocks.{i}", x, HEADS)
        x = self.linear("decoder.proj_dec", self.norm("encoder.norm", x)[:, 1:])
        count = x.shape[1]
        x = torch.cat([x, v["decoder.cls_emb"].expand(len(x), -1, -1)], 1)
        for i in range(sum(name.endswith("norm1.weight") for name in v if "decoder" in name)):
            x = self.block(f"decoder.blocks.{i}", x, x.shape[-1] // 64)
        x = self.norm("decoder.decoder_norm", x)
        patches = F.normalize(x[:, :count] @ v["decoder.proj_patch"], dim=-1)
        classes = F.normalize(x[:, count:] @ v["decoder.proj_classes"], dim=-1)
        masks = self.norm("decoder.mask_norm", patches @ classes.transpose(1, 2))
        masks = masks.transpose(1, 2).unflatten(2, grid)
        return F.interpolate(masks, scale_factor=PATCH, mode="bilinear")


def batch_of(step: int) -> dict[str, np.ndarray]:
    """Crops of generated scenes; a tenth of the second one's pixels is ignored."""
    rng = np.random.default_rng(step)
    rows = []
    for index in range(BATCH):
        image, label = render_scene("train", BATCH * step + index)
        top, left = (rng.integers(0, side - SIZE + 1) for side in label.shape)
        place = np.s_[top : top + SIZE, left : left + SIZE]
        label = label[place].copy()
        label[rng.random(label.shape) < 0.1 * index] = 255
        rows.append((image[place], label))
    images, labels = map(np.stack, zip(*rows, strict=True))
    return {"image": images, "label": labels, "valid_size": np.full((BATCH, 2), SIZE, np.int32)}


def main(steps: int) -> int:
    """Trains both; returns the exit code."""
    jax.config.update("jax_default_matmul_precision", "highest")
    schedule = optimizers.polynomial_schedule(LEARNING_RATE, MIN_LEARNING_RATE, steps)
    optimizer = optimizers.make_optimizer(
        "sgd", momentum=MOMENTUM, nesterov=True, weight_decay=0.0, clip_norm=None
    )
    options = StepOptions(mean=(0.5,) * 3, std=(0.5,) * 3, photometric=False)
    model = Segmenter(golden_config("segm_mask"))
    mesh = sharding.make_mesh(fsdp=1, num_devices=1)
    program = TrainProgram(model, optimizer, schedule, options, mesh)
    state = program.place(golden_params("segm_mask"))

    theirs = Weights(GOLDEN / "segm_mask.pth")
    sgd = torch.optim.SGD(theirs.values.values(), LEARNING_RATE, MOMENTUM, nesterov=True)
    losses = []
    for step in range(steps):
        batch = batch_of(step)
        state, metrics = program.step(state, program.put(batch))
        (group,) = sgd.param_groups
        share = (1 - step / steps) ** 0.9
        group["lr"] = (LEARNING_RATE - MIN_LEARNING_RATE) * share + MIN_LEARNING_RATE
        image = torch.tensor(batch["image"]).permute(0, 3, 1, 2) / 127.5 - 1
        label = torch.tensor(batch["label"].astype(np.int64))
        loss = F.cross_entropy(theirs.logits(image), label, ignore_index=255)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        losses.append((float(metrics["loss"]), loss.item()))
    ours, expected = np.array(losses).T
    error = np.abs(ours - expected) / expected
    print(f"loss {ours[0]:.4f} at first, {ours[-20:].mean():.4f} at last ({steps} steps)")
    print(f"largest relative difference {error.max():.1e}, at step {error.argmax()}")
    return int(error.max() > 1e-4)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 300))
