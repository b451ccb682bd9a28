"""The sliding-window engine: golden values, the definition, compile counts, order."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segmenter_jax.inference import device_way
from segmenter_jax.inference.geometry import InferenceSettings, scaled_image, window_anchors
from segmenter_jax.inference.merging import OUTPUTS
from segmenter_jax.inference.sliding_window import SlidingWindow
from segmenter_jax.models import Segmenter
from tests.compilations import compilations
from tests.golden_params import NAMES, golden_config, golden_params

# Golden images are normalised already; with these values normalisation changes nothing.
IDENTITY = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3}
VIT = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


def one_device():
    return jax.local_devices()[:1]


class GivenVersions(SlidingWindow):
    """The engine, for images that come scaled already."""

    def versions(self, example):
        return iter(example["versions"])


@pytest.fixture(scope="module", params=itertools.product(NAMES, (1, 8)), ids=str)
def golden(request, golden_dir):
    """Engine on one or on several devices, parameters and the golden arrays of one network."""
    name, num_devices = request.param
    model = Segmenter(golden_config(name))
    settings = InferenceSettings(window=64, stride=48, batch_size=4)
    devices = jax.local_devices()[:num_devices]
    engine = GivenVersions(model, settings, devices=devices, **IDENTITY)
    with np.load(golden_dir / f"{name}.npz") as arrays:
        return engine, golden_params(name), dict(arrays)


def probabilities(engine, params, size, versions):
    example = {"image": np.empty((*size, 3)), "versions": versions}
    ((_, maps),) = engine.predict(params, [example], ("ids", "probs"))
    np.testing.assert_array_equal(maps["ids"], maps["probs"].argmax(-1))
    return maps["probs"]


@pytest.mark.parametrize("case", ["sliding", "sliding_resized", "sliding_small"])
def test_single_scale_is_the_references(golden, case):
    engine, params, arrays = golden
    source = "sliding" if case == "sliding_resized" else case
    image = scaled_image(arrays[f"{source}/image_nhwc"][0], engine.settings, 1.0)
    expected = arrays[f"{case}/probs_hwc"]
    found = probabilities(engine, params, expected.shape[:2], [(image, False)])
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_multi_scale_with_flip_is_the_references(golden):
    engine, params, arrays = golden
    scaled = [arrays[f"multiscale/image{i}_nhwc"][0] for i in (0, 1)]
    versions = [(x, False) for x in scaled] + [(x[:, ::-1], True) for x in scaled]
    expected = arrays["multiscale/probs_hwc"]
    found = probabilities(engine, params, expected.shape[:2], versions)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


@dataclasses.dataclass(frozen=True)
class PatchMeans:
    """A network whose logits are a linear map of each patch's mean colour."""

    patch_size: int = 8
    num_classes: int = 3
    in_channels: int = 3
    gives_scores: bool = False
    mesh: jax.sharding.Mesh | None = None

    @property
    def config(self):
        return self

    @property
    def cell_size(self):
        return self.patch_size

    def clone(self, mesh):
        return dataclasses.replace(self, mesh=mesh)

    def compute_dtype(self, mesh):
        return "float32"

    def apply(self, variables, image):
        p = self.patch_size
        pad = [(0, -n % p) for n in image.shape[1:3]]
        image = jnp.pad(image, ((0, 0), *pad, (0, 0)))
        b, h, w, c = image.shape
        means = image.reshape(b, h // p, p, w // p, p, c).mean((2, 4))
        return jnp.einsum("bhwc,ck->bhwk", means, variables["params"])


def linear_rows(values, size):
    """Bilinear resize of the first axis, half-pixel centres, edges clamped."""
    position = np.clip((np.arange(size) + 0.5) * len(values) / size - 0.5, 0, len(values) - 1)
    low = np.floor(position).astype(int)
    high = np.minimum(low + 1, len(values) - 1)
    weight = (position - low).reshape(-1, *[1] * (values.ndim - 1))
    return values[low] * (1 - weight) + values[high] * weight


def resize(values, size):
    return linear_rows(linear_rows(values, size[0]).swapaxes(0, 1), size[1]).swapaxes(0, 1)


def canvas_procedure(model, params, image, settings):
    """Probabilities by the definition, with a canvas of every class at every pixel."""
    total, p, window = 0, model.patch_size, settings.window
    for factor in settings.scales:
        scaled = scaled_image(image, settings, factor)
        for flipped in (False, True) if settings.flip else (False,):
            source = (scaled[:, ::-1] if flipped else scaled) / 127.5 - 1
            canvas = np.zeros((*source.shape[:2], model.num_classes))
            count = np.zeros((*source.shape[:2], 1))
            for y in window_anchors(source.shape[0], window, settings.stride):
                for x in window_anchors(source.shape[1], window, settings.stride):
                    part = (slice(y, y + window), slice(x, x + window))
                    logits = np.asarray(model.apply({"params": params}, source[part][None])[0])
                    whole = [n * p for n in logits.shape[:2]]
                    canvas[part] += resize(logits, whole)[:window, :window]
                    count[part] += 1
            merged = resize(canvas / count, image.shape[:2])
            merged = np.exp(merged[:, ::-1] if flipped else merged)
            total = total + merged / merged.sum(-1, keepdims=True)
    return total / (len(settings.scales) * (1 + settings.flip))


@given(
    sizes=st.lists(st.tuples(st.integers(1, 150), st.integers(1, 150)), min_size=1, max_size=3),
    window=st.sampled_from([16, 20, 32]),
    stride=st.integers(5, 16),
    base_size=st.sampled_from([None, 24, 48]),
    scales=st.sampled_from([(1.0,), (0.5, 1.25)]),
    flip=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=12, deadline=None)
def test_engine_is_the_canvas_procedure(sizes, window, stride, base_size, scales, flip, seed):
    rng = np.random.default_rng(seed)
    model = PatchMeans()
    params = rng.normal(size=(3, 3)).astype(np.float32)
    options = InferenceSettings(window, stride, base_size, 4.0, scales, flip, batch_size=4)
    engine = SlidingWindow(model, options, devices=one_device(), **VIT)
    images = [{"image": rng.integers(0, 256, (*size, 3), np.uint8)} for size in sizes]
    results = list(engine.predict(params, images, ("ids", "probs")))
    assert [example for example, _ in results] == images
    for example, maps in results:
        expected = canvas_procedure(model, params, example["image"], options)
        np.testing.assert_allclose(maps["probs"], expected, atol=1e-5, rtol=0)
        np.testing.assert_array_equal(maps["ids"], maps["probs"].argmax(-1))


def random_images(count, seed=0):
    rng = np.random.default_rng(seed)
    sizes = zip(rng.permutation(100)[:count] + 30, rng.permutation(100)[:count] + 30, strict=True)
    return [{"image": rng.integers(0, 256, (h, w, 3), np.uint8)} for h, w in sizes]


@pytest.fixture(scope="module")
def tiny():
    """A tiny network that no other test compiles, and its parameters."""
    model = Segmenter(golden_config("segm_mask", depth=1, decoder_depth=1))
    params = golden_params("segm_mask")
    del params["encoder"]["encoderblock_1"], params["decoder"]["block_1"]
    return model, params


def test_twenty_sizes_compile_a_handful_of_programs_and_new_parameters_none(tiny):
    model, params = tiny
    options = InferenceSettings(window=64, stride=48, base_size=80, batch_size=4)
    engine = SlidingWindow(model, options, devices=one_device(), **VIT)
    with compilations() as compiled:
        for _ in engine.predict(params, random_images(20)):
            pass
    # The forward pass for bytes, that for floats of enlarged images, and the tail.
    assert len(compiled) <= 3
    halved = jax.tree.map(lambda leaf: leaf / 2, params)
    with compilations() as compiled:
        for _ in engine.predict(halved, random_images(5, seed=1)):
            pass
    assert not compiled


def test_multi_scale_with_flip_compiles_a_handful_of_programs(tiny):
    model, params = tiny
    options = InferenceSettings(
        56, 40, base_size=80, scales=(0.5, 0.75, 1, 1.25, 1.5, 1.75), flip=True, batch_size=8
    )
    engine = SlidingWindow(model, options, devices=one_device(), **VIT)
    with compilations() as compiled:
        for _ in engine.predict(params, random_images(6)):
            pass
    # The forward pass for bytes, that for floats of enlarged images, and the tail.
    assert len(compiled) <= 3


def test_confidence_entropy_and_best_classes_are_those_of_the_probabilities(tiny):
    model, params = tiny
    options = InferenceSettings(64, 48, scales=(0.75, 1.0), batch_size=4)
    engine = SlidingWindow(model, options, devices=one_device(), **VIT)
    for _, maps in engine.predict(params, random_images(2), OUTPUTS, top_k=3):
        probs = maps["probs"]
        order = np.argsort(-probs, axis=-1, kind="stable")[..., :3]
        np.testing.assert_array_equal(maps["top_ids"], order)
        np.testing.assert_array_equal(maps["top_probs"], np.take_along_axis(probs, order, -1))
        np.testing.assert_array_equal(maps["ids"], order[..., 0])
        np.testing.assert_array_equal(maps["confidence"], probs.max(-1))
        np.testing.assert_allclose(maps["entropy"], -(probs * np.log(probs)).sum(-1), atol=1e-5)


def test_ids_alone_equal_ids_beside_probabilities(tiny):
    model, params = tiny
    engine = SlidingWindow(
        model, InferenceSettings(64, 48, batch_size=4), devices=one_device(), **VIT
    )
    images = random_images(4)
    alone = [maps["ids"] for _, maps in engine.predict(params, images)]
    beside = [maps["probs"] for _, maps in engine.predict(params, images, ("ids", "probs"))]
    for ids, probs in zip(alone, beside, strict=True):
        assert ids.dtype == np.uint8
        # Two programs: float32 rounding may decide between equally probable classes.
        picked = np.take_along_axis(probs, ids[..., None], -1)[..., 0]
        np.testing.assert_allclose(picked, probs.max(-1), rtol=1e-6)


@pytest.mark.parametrize(("num_devices", "platform"), [(1, "cpu"), (8, "cpu"), (8, "gpu")])
@pytest.mark.parametrize("outputs", [("ids",), ("ids", "probs")])
def test_of_equally_probable_classes_the_first_is_taken(
    num_devices, platform, outputs, monkeypatch
):
    monkeypatch.setattr(device_way, "platform_of", lambda mesh: platform)
    # Black pictures are class 0 as much as 3, white ones class 1 as much as 2.
    model = PatchMeans(num_classes=4)
    params = np.array([[-1, 1, 1, -1]] * 3, np.float32)
    devices = jax.local_devices()[:num_devices]
    engine = SlidingWindow(model, InferenceSettings(32, 32, batch_size=8), devices=devices, **VIT)
    pictures = [{"image": np.full((32, 40, 3), value, np.uint8)} for value in (0, 255)]
    ids = [maps["ids"] for _, maps in engine.predict(params, pictures, outputs)]
    assert [np.unique(found).tolist() for found in ids] == [[0], [1]]


def test_all_devices_give_what_one_gives():
    model, params = PatchMeans(), np.eye(3, dtype=np.float32)
    options = InferenceSettings(32, 20, scales=(0.75, 1.0), flip=True)
    images = random_images(2)
    one, all_of_them = (
        [
            maps["probs"]
            for _, maps in SlidingWindow(model, options, devices=devices, **VIT).predict(
                params, images, ("probs",)
            )
        ]
        for devices in (one_device(), None)
    )
    assert jax.local_device_count() == 8
    for a, b in zip(one, all_of_them, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)


def test_examples_are_read_as_they_are_needed(tiny):
    model, params = tiny
    read = []

    def examples():
        for i, example in enumerate(random_images(12)):
            read.append(i)
            yield example

    engine = SlidingWindow(
        model, InferenceSettings(64, 64, batch_size=1), devices=one_device(), **VIT
    )
    results = engine.predict(params, examples())
    assert not read
    next(results)
    assert len(read) < 6


def test_wrong_images_and_outputs_are_refused(tiny):
    model, params = tiny
    engine = SlidingWindow(model, InferenceSettings(64, 64), devices=one_device(), **VIT)
    with pytest.raises(ValueError, match=r"unknown outputs \['logits'\]; choose from \('ids', "):
        engine.predict(params, [], ("logits",))
    with pytest.raises(ValueError, match=r"top_k must be in 1\.\.7 \(classes.*\), got 8"):
        engine.predict(params, [], ("top_ids",), top_k=8)
    with pytest.raises(ValueError, match=r"image must be \(H, W, 3\) .* got \(70, 70, 4\)"):
        next(engine.predict(params, [{"image": np.zeros((70, 70, 4), np.uint8)}]))


def test_no_examples_give_no_results(tiny):
    model, params = tiny
    engine = SlidingWindow(model, InferenceSettings(64, 64), devices=one_device(), **VIT)
    assert list(engine.predict(params, [])) == []
