"""Inference whose logits stay on the devices: the host's answers, launches, transfers, the pool."""

import collections
import itertools
import math

import jax
import numpy as np
import pytest

from segmenter_jax.inference import device_way, sliding_window
from segmenter_jax.inference.device_way import DeviceWay
from segmenter_jax.inference.geometry import InferenceSettings, scaled_size, window_anchors
from segmenter_jax.inference.host_way import HostWay
from segmenter_jax.inference.merging import OUTPUTS
from segmenter_jax.inference.pool import AXIS
from segmenter_jax.inference.sliding_window import SlidingWindow
from segmenter_jax.models import Segmenter
from segmenter_jax.models.params import abstract_params
from tests.compilations import compilations
from tests.inference.test_sliding_window import VIT, PatchMeans
from tests.tiny import tiny_network

PARAMS = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
MULTI_SCALE = {"scales": (0.5, 1.0, 1.25), "flip": True}


def images(*sizes):
    rng = np.random.default_rng(0)
    return [{"image": rng.integers(0, 256, (*size, 3), np.uint8)} for size in sizes]


def engine(num_devices=1, way=DeviceWay, **settings):
    """An engine of small windows that takes a way, whatever its devices."""
    settings = {"window": 32, "stride": 24} | settings
    devices = jax.local_devices()[:num_devices]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sliding_window, "_way_for", lambda mesh: way)
        return SlidingWindow(PatchMeans(), InferenceSettings(**settings), devices=devices, **VIT)


def predict(an_engine, examples, outputs=("ids", "probs"), **options):
    results = list(an_engine.predict(PARAMS, examples, outputs, **options))
    assert [example for example, _ in results] == examples
    return [maps for _, maps in results]


def assert_same_maps(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].dtype == b[name].dtype
            np.testing.assert_allclose(a[name], b[name], atol=1e-6, rtol=0, err_msg=name)


def test_one_cpu_device_keeps_its_logits_on_the_host_and_nobody_else():
    for devices, way in ((1, HostWay), (8, DeviceWay)):
        settings = InferenceSettings(32, 32)
        chosen = SlidingWindow(PatchMeans(), settings, devices=jax.local_devices()[:devices], **VIT)
        assert type(chosen.way) is way


@pytest.mark.parametrize(("num_devices", "settings"), [(1, {"base_size": 48}), (8, MULTI_SCALE)])
def test_maps_are_those_of_the_host(num_devices, settings):
    # Odd sizes, some smaller than a window, some of many windows and tiles.
    examples = images((40, 56), (7, 90), (33, 32), (150, 141), (1, 1), *[(31, 35)] * 5)
    expected = predict(engine(way=HostWay, **settings), examples, OUTPUTS, top_k=2)
    found = predict(engine(num_devices, **settings), examples, OUTPUTS, top_k=2)
    assert_same_maps(found, expected)


class Counts(collections.Counter):
    """Calls of both programs, arrays sent, and maps fetched while it is entered."""

    def __init__(self, monkeypatch):
        super().__init__()
        programs = [(device_way, "forward"), (device_way, "merge_tiles")]
        for module, name in [*programs, (jax, "device_put"), (jax, "device_get")]:
            monkeypatch.setattr(module, name, self._counted(name, getattr(module, name)))

    def _counted(self, name, function):
        def call(*args, **kwargs):
            self[name] += 1
            if name.startswith("device_"):
                self[f"{name} arrays"] += len(jax.tree.leaves(args[0]))
            return function(*args, **kwargs)

        return call


@pytest.mark.parametrize("num_devices", [1, 8])
def test_a_batch_of_pictures_takes_one_call_of_each_program_and_nothing_else_crosses(
    num_devices, monkeypatch
):
    examples = images(*[(64, 64)] * 8)
    an_engine = engine(num_devices, window=64, stride=64, batch_size=8)
    expected = predict(an_engine, examples, ("ids",))
    params = an_engine.place(PARAMS)
    counts = Counts(monkeypatch)
    with jax.transfer_guard("disallow"), compilations() as compiled:
        results = list(an_engine.predict(params, examples))
    assert_same_maps([maps for _, maps in results], expected)
    assert not compiled
    assert counts == {
        "forward": 1,
        "merge_tiles": 1,
        # Parameters that are there already; windows and slots; index, rows and columns of tiles.
        "device_put": 3,
        "device_put arrays": 1 + 2 + 5,
        "device_get": 1,
        "device_get arrays": 1,
    }


def test_programs_are_those_of_two_shapes_whatever_the_images():
    an_engine = engine(8, window=24, stride=20, **MULTI_SCALE)
    with compilations() as compiled:
        predict(an_engine, images(*itertools.product((20, 31, 77), (26, 64))), ("ids",))
    # The pool, the forward pass for bytes, that for floats of enlarged images, and the tail.
    assert len(compiled) <= 4


@pytest.mark.parametrize("num_devices", [1, 8])
def test_a_tiny_pool_grows_and_gives_the_same_maps(num_devices, monkeypatch, caplog):
    caplog.set_level("INFO")
    examples = images((40, 40), (150, 100), (30, 30), (90, 150), (40, 70))
    expected = predict(engine(way=HostWay, **MULTI_SCALE), examples)
    monkeypatch.setattr(device_way, "_SLOTS", 1)
    an_engine = engine(num_devices, batch_size=8, **MULTI_SCALE)
    before = an_engine.way.slots
    assert_same_maps(predict(an_engine, examples), expected)
    assert an_engine.way.slots > before
    assert "logits of" in caplog.text
    # It stays as large as it had to be.
    messages = len(caplog.records)
    assert_same_maps(predict(an_engine, examples), expected)
    assert len(caplog.records) == messages


def test_slots_are_given_back(monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(device_way, "_SLOTS", 8)
    many = images(*[(32, 32)] * 100)
    an_engine = engine(batch_size=2)
    assert len(predict(an_engine, many)) == 100

    # Neither a consumer that stops nor a bad image keeps any.
    for _ in range(10):
        results = an_engine.predict(PARAMS, many)
        next(results)
        results.close()
    for _ in range(3):
        with pytest.raises(ValueError, match="image must be"):
            list(an_engine.predict(PARAMS, [*many[:9], {"image": np.zeros((40, 40, 4), np.uint8)}]))
    assert_same_maps(predict(an_engine, many[:5]), predict(engine(way=HostWay), many[:5]))
    assert an_engine.way.slots == 8 and not caplog.records


def test_two_passes_at_a_time_do_not_touch_each_other():
    an_engine, examples = engine(batch_size=2), images((40, 70), (64, 33), (31, 31), (90, 40))
    expected = predict(an_engine, examples, ("ids",))
    passes = zip(*(an_engine.predict(PARAMS, examples) for _ in range(2)), strict=True)
    for one, other in passes:
        assert_same_maps([one[1]], [other[1]])
        assert_same_maps([one[1]], [expected.pop(0)])


def test_six_scales_and_flips_of_two_megapixels_fit_the_pool_as_it_begins():
    way = InferenceSettings(768, 512, scales=(0.5, 0.75, 1, 1.25, 1.5, 1.75), flip=True)
    sides = [scaled_size(1024, 2048, way, factor)[1] for factor in way.scales]
    windows = [math.prod(len(window_anchors(n, 768, 512)) for n in size) for size in sides]
    assert 2 * sum(windows) == 126 <= device_way._SLOTS


def test_lowered_programs_are_those_that_run(monkeypatch):
    config = tiny_network(in_channels=3)
    settings = InferenceSettings(32, 24, scales=(0.5, 1.0), batch_size=4)
    model, devices = Segmenter(config), jax.local_devices()[:2]
    an_engine = SlidingWindow(model, settings, devices=devices, **VIT)
    lowered = an_engine.way.lower_programs(("ids", "confidence"))
    calls = {}

    def record(name, key):
        program = getattr(device_way, name)

        def call(*args, **options):
            calls[key] = jax.tree.map(lambda x: (x.shape, x.dtype), args)
            return program(*args, **options)

        monkeypatch.setattr(device_way, name, call)

    record("forward", "forward")
    record("merge_tiles", "tiles")
    params = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_params(config))
    list(an_engine.predict(params, images((64, 64)), ("ids", "confidence")))
    expected = {name: program.args_info[0] for name, program in lowered.items()}
    assert calls == jax.tree.map(lambda x: (x.shape, x.dtype), expected)
    # The pool is written in place.
    (slots, *shape), _ = calls["forward"][0]
    memory = lowered["forward"].compile().memory_analysis()
    assert memory.alias_size_in_bytes >= slots // len(devices) * math.prod(shape) * 4


def test_memory_of_a_call_is_bounded_whatever_is_asked_for():
    way = engine(window=512, stride=480, batch_size=8).way
    wide = engine(window=512, stride=480, batch_size=8).way
    wide.config = PatchMeans(num_classes=150)
    assert way.tiles_per_call(("ids",), 1)[0] == 8 * 32
    share, options = wide.tiles_per_call(("probs", "entropy"), 1)
    pixels = 64 * 128 * 4 * 150
    assert share * pixels <= 2**28 and options["group"] * pixels * 2 <= 2**28
    assert share % options["group"] == 0


def test_a_pool_of_scores_of_pixels_begins_small():
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:2]), (AXIS,))
    settings = InferenceSettings(512, 512, batch_size=4)
    way = DeviceWay(PatchMeans(patch_size=1, num_classes=150), settings, **VIT, mesh=mesh)
    assert way.grid == (512, 512)
    assert way.slots == 2**31 // (4 * 150 * 512**2)
