"""How far each stage is from the reference, as a table.

  python -m tests.soak.fidelity

Compares with the outputs of the authors' code and of Google's in tests/golden, with OpenCV, and
with PyTorch (pip install '.[torch]').
"""

import pathlib
from collections.abc import Iterator

import jax
import numpy as np
import torch
from torch.nn import functional as F

from segmenter_jax.conversion import convert as conversion
from segmenter_jax.inference.attention_maps import attention_weights
from segmenter_jax.inference.geometry import InferenceSettings, scaled_image
from segmenter_jax.inference.sliding_window import SlidingWindow
from segmenter_jax.models import Segmenter, upsample
from segmenter_jax.models.params import init_params
from segmenter_jax.models.vit import resize_position_embedding
from segmenter_jax.runtime.tables import align
from segmenter_jax.training import optimizers
from tests.golden_params import NAMES, golden_config, golden_params
from tests.training.test_color_augment import CASES, colors, distort
from tests.training.test_color_augment import reference as distorted

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
IDENTITY = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}

Row = tuple[str, float]


def largest(found: jax.Array, expected: np.ndarray) -> float:
    """Largest difference of two arrays."""
    return float(np.abs(np.asarray(found) - expected).max())


def network(name: str) -> Iterator[Row]:
    """Tokens, logits and attention weights of one golden network."""
    arrays = np.load(GOLDEN / f"{name}.npz")
    model, params = Segmenter(golden_config(name)), golden_params(name)
    for case in ("square", "padded", "wide"):
        image = arrays[f"{case}/image_nhwc"]
        tokens = model.apply({"params": params}, image, method=model.encode)
        logits = upsample(model.apply({"params": params}, image), image.shape[1:3], 16)
        yield f"{name}: tokens, {case}", largest(tokens, arrays[f"{case}/encoder_tokens"])
        yield f"{name}: logits, {case}", largest(logits, arrays[f"{case}/logits_nhwc"])
    image, expected = arrays["square/image_nhwc"], arrays["attention/encoder_layer1"]
    _, weights = attention_weights(model, params, image, "encoder", 1)
    yield f"{name}: attention weights", largest(weights, expected)


def inference(name: str) -> Iterator[Row]:
    """Probabilities of sliding windows, scales and flips of one golden network."""
    arrays, params = np.load(GOLDEN / f"{name}.npz"), golden_params(name)
    settings = InferenceSettings(window=64, stride=48, batch_size=4)
    engine = SlidingWindow(Segmenter(golden_config(name)), settings, **IDENTITY)
    scaled = [arrays[f"multiscale/image{i}_nhwc"][0] for i in (0, 1)]
    versions = {"multiscale": [(x, False) for x in scaled] + [(x[:, ::-1], True) for x in scaled]}
    for case in ("sliding", "sliding_resized", "sliding_small"):
        source = "sliding" if case == "sliding_resized" else case
        image = scaled_image(arrays[f"{source}/image_nhwc"][0], settings, 1.0)
        versions[case] = [(image, False)]
    for case, given in versions.items():
        expected = arrays[f"{case}/probs_hwc"]
        engine.versions = lambda example: iter(example["versions"])
        example = {"image": np.empty((*expected.shape[:2], 3)), "versions": given}
        ((_, maps),) = engine.predict(params, [example], ("probs",))
        yield f"{name}: probabilities, {case}", largest(maps["probs"], expected)


def foreign_weights() -> Iterator[Row]:
    """Tokens of pretrained encoders in the formats of others, and positions at another size."""
    for file, options in (
        ("google_vit_augreg.npz", {}),
        ("deit_distilled.pth", {"num_heads": 2, "layer_norm_eps": 1e-5}),
    ):
        given = conversion.ConvertOptions(num_classes=5, decoder="linear", **options)
        description, params, _ = conversion.convert(GOLDEN / file, given)
        model = Segmenter(description.model)
        name = "google_vit" if "google" in file else "deit_distilled"
        with np.load(GOLDEN / f"{name}_expected.npz") as data:
            image = next(data[key] for key in data.files if "image" in key)
            expected = next(data[key] for key in data.files if "token" in key)
        tokens = model.apply({"params": params}, image, method=model.encode)
        yield f"{file}: tokens", largest(tokens, expected)
    grid = np.random.default_rng(0).normal(size=(1, 24 * 24, 64)).astype(np.float32)
    ours = resize_position_embedding(grid, 0, (24, 24), (32, 32))
    theirs = torch.tensor(grid).reshape(1, 24, 24, 64).permute(0, 3, 1, 2)
    theirs = F.interpolate(theirs, (32, 32), mode="bilinear").permute(0, 2, 3, 1)
    yield "positions of 384 pixels at 512", largest(ours, theirs.reshape(1, -1, 64).numpy())


def recipe() -> Iterator[Row]:
    """Learning rate and colours."""
    golden = np.load(GOLDEN / "poly_schedule.npz")
    base, least, power = (float(golden[name]) for name in ("base_lr", "min_lr", "power"))
    schedule = optimizers.polynomial_schedule(base, least, int(golden["total_steps"]), power)
    rates = [schedule(step) for step in range(len(golden["lr"]))]
    yield "learning rate", largest(np.array(rates), golden["lr"])
    errors = [distort(colors(), **draw) - distorted(colors(), **draw) for draw in CASES]
    yield "colours: mean difference in grey levels", float(np.mean(errors))
    yield "colours: mean absolute difference", float(np.abs(errors).mean())


def spreads() -> Iterator[Row]:
    """Standard deviations of new parameters of a network with one layer of width 192."""
    fields = {"width": 192, "depth": 1, "decoder_depth": 1, "num_heads": 3, "num_classes": 150}
    config = golden_config("segm_mask", **fields, image_size=(512, 512))
    for path, leaf in jax.tree_util.tree_flatten_with_path(init_params(config, 0))[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not name.endswith("scale") and float(leaf.std()):
            yield f"std of {name}", float(leaf.std())


def main() -> None:
    """Prints the table."""
    stages = [*map(network, NAMES), *map(inference, NAMES), foreign_weights(), recipe(), spreads()]
    rows = [
        (name, f"{value:.2g}" if abs(value) < 1e-2 else f"{value:.4f}")
        for stage in stages
        for name, value in stage
    ]
    print("\n".join(align([("stage", "largest difference"), *rows])))


if __name__ == "__main__":
    main()
