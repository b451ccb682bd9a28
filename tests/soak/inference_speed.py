"""Times the engine against the definition with canvases, and its tail against its forward pass.

python -m tests.soak.inference_speed
"""

import json
import time

import jax
import numpy as np
import torch
from torch.nn import functional

from segmenter_jax.inference.geometry import (
    InferenceSettings,
    image_versions,
    scaled_image,
    window_anchors,
)
from segmenter_jax.inference.host_way import HostWay
from segmenter_jax.inference.sliding_window import SlidingWindow
from segmenter_jax.inference.windows import CutImage, Version
from segmenter_jax.models import Segmenter, SegmenterConfig
from tests.compilations import compilations

VIT = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def random_params(model: Segmenter, seed: int = 0) -> dict:
    """Parameters of a model, drawn at random."""
    size = model.config.image_size
    return jax.jit(model.init)(jax.random.key(seed), np.zeros((1, *size, 3), np.float32))["params"]


def canvas_procedure(forward, params, image, settings, patch_size):
    """The reference's way: upsample windows, add to a canvas, divide, resize, softmax, average."""
    total, window = 0, settings.window
    for factor in settings.scales:
        scaled = scaled_image(image, settings, factor)
        for flipped in (False, True):
            source = (scaled[:, ::-1] if flipped else scaled).astype(np.float32) / 127.5 - 1
            height, width = source.shape[:2]
            places = [
                (slice(y, y + window), slice(x, x + window))
                for y in window_anchors(height, window, settings.stride)
                for x in window_anchors(width, window, settings.stride)
            ]
            canvas, count = None, torch.zeros(1, height, width)
            for start in range(0, len(places), settings.batch_size):
                part = places[start : start + settings.batch_size]
                batch = np.zeros((settings.batch_size, window, window, 3), np.float32)
                batch[: len(part)] = [source[p] for p in part]
                logits = torch.from_numpy(np.array(forward(params, batch)))[: len(part)]
                logits = functional.interpolate(
                    logits.permute(0, 3, 1, 2), scale_factor=patch_size, mode="bilinear"
                )
                if canvas is None:
                    canvas = torch.zeros(logits.shape[1], height, width)
                for place, values in zip(part, logits, strict=True):
                    canvas[:, *place] += values
                    count[:, *place] += 1
            canvas = functional.interpolate(
                (canvas / count)[None], image.shape[:2], mode="bilinear"
            )[0]
            total = total + (canvas.flip(2) if flipped else canvas).softmax(0)
    return total.argmax(0).numpy().astype(np.uint8)


def compare(num_images: int = 40) -> dict:
    """Images of as many sizes, 6 scales and flip, 150 classes, a tiny network."""
    config = SegmenterConfig(150, (128, 128), width=64, depth=2, num_heads=2, drop_path_rate=0.0)
    model = Segmenter(config)
    params = random_params(model)
    settings = InferenceSettings(128, 96, 128, scales=SCALES, flip=True, batch_size=8)
    rng = np.random.default_rng(0)
    sizes = zip(rng.permutation(180) + 100, rng.permutation(180) + 100, strict=True)
    images = [
        rng.integers(0, 256, (*size, 3), np.uint8)
        for size, _ in zip(sizes, range(num_images), strict=False)
    ]
    engine = SlidingWindow(model, settings, devices=jax.local_devices()[:1], **VIT)
    forward = jax.jit(lambda params, batch: model.apply({"params": params}, batch))

    def ours(images):
        return [m["ids"] for _, m in engine.predict(params, ({"image": i} for i in images))]

    def direct(images):
        return [canvas_procedure(forward, params, i, settings, 16) for i in images]

    direct(images[:1])
    seconds, agreement = {"ours": 0.0, "direct": 0.0}, []
    with compilations() as compiled:
        ours(images[:1])
        # By turns, so that both see the same load of the machine.
        for start in range(0, num_images, 4):
            part, found = images[start : start + 4], {}
            for name, run in (("ours", ours), ("direct", direct)):
                begin = time.perf_counter()
                found[name] = run(part)
                seconds[name] += time.perf_counter() - begin
            agreement += [
                (a == b).mean() for a, b in zip(found["ours"], found["direct"], strict=True)
            ]
    return {
        "programs_of_the_engine": len(compiled),
        "images_per_second": {name: num_images / s for name, s in seconds.items()},
        "ratio": seconds["direct"] / seconds["ours"],
        "smallest_share_of_equal_pixels": float(min(agreement)),
    }


def tail_share(scales: tuple[float, ...], flip: bool, repeats: int = 3) -> dict:
    """Seconds of the forward passes and of the tail, Seg-Ti-Mask/16 at 512 with 150 classes."""
    config = SegmenterConfig.from_variant("Ti/16", num_classes=150, image_size=(512, 512))
    model = Segmenter(config)
    params = random_params(model)
    settings = InferenceSettings(512, 512, 512, scales=scales, flip=flip, batch_size=1)
    image = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    forward = jax.jit(lambda params, batch: model.apply({"params": params}, batch))
    engine = SlidingWindow(model, settings, devices=jax.local_devices()[:1], **VIT)
    batch = np.zeros((1, 512, 512, 3), np.float32)
    cut, patch_logits, windows = CutImage({"image": image}), [], 0
    rng = np.random.default_rng(0)
    for scaled, flipped in image_versions(image, settings):
        counts = [len(window_anchors(s, 512, 512)) for s in scaled.shape[:2]]
        windows += counts[0] * counts[1]
        shape = (counts[0] * 32, counts[1] * 32, 150)
        patch_logits.append(rng.normal(size=shape).astype(np.float32))
        cut.versions.append(Version(scaled.shape[:2], flipped, tuple(counts)))
    assert isinstance(engine.way, HostWay)
    times = {"forward": [], "tail": []}
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        forward(params, batch).block_until_ready()
        times["forward"].append((time.perf_counter() - begin) * windows)
        begin = time.perf_counter()
        engine.way.merge(cut, patch_logits, ("ids",), 1)
        times["tail"].append(time.perf_counter() - begin)
    seconds = {name: min(values[1:]) for name, values in times.items()}
    share = seconds["tail"] / sum(seconds.values())
    return {"windows": windows, "seconds": seconds, "tail_share": share}


if __name__ == "__main__":
    torch.set_num_threads(2)
    report = {
        "single_scale": tail_share((1.0,), False),
        "multi_scale": tail_share(SCALES, True),
        "canvas": compare(),
    }
    print(json.dumps(report, indent=2))
