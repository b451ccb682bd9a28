"""Features of a frozen encoder: what is kept, for whom, and what a run does with it."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from segmenter_jax.checkpoints.model_dir import load_model
from segmenter_jax.data.pipeline import train_batches
from segmenter_jax.models.params import init_params
from segmenter_jax.training import experiment as experiments
from segmenter_jax.training.features import BATCH, encode_batch, kept_features
from segmenter_jax.training.loop import train_and_evaluate
from segmenter_jax.training.run_log import read_metrics
from segmenter_jax.training.stop_request import StopRequest
from tests.tiny_runs import LIGHT, tiny_config, write_dataset

FROZEN = LIGHT | {
    "optimizer__freeze_encoder": True,
    "features__views": 2,
    "total_steps": 8,
    "augment__photometric": True,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data") / "scenes", train=6, val=2)


@pytest.fixture
def build(source, tmp_path):
    """Function of overrides: (experiment, encoder, function that gives its features)."""

    def build(**overrides):
        settings = FROZEN | {"features__folder": tmp_path / "kept"} | overrides
        experiment = experiments.build(tiny_config(source, **settings))
        encoder = init_params(experiment.program.model.config, 0)["encoder"]
        features = functools.partial(kept_features, experiment, encoder)
        return experiment, encoder, lambda stop=None: features(stop or StopRequest())

    return build


def folders(tmp_path):
    return sorted(path.name for path in (tmp_path / "kept").iterdir())


def test_kept_are_the_first_crops_that_a_run_would_draw(build):
    experiment, encoder, features = build()
    program = experiment.program
    kept = features()
    assert len(kept) == 2 * BATCH  # Two batches show each of six images twice.
    encode = encode_batch(program)
    plain = dataclasses.replace(
        program, options=dataclasses.replace(program.options, from_features=False)
    )
    params = init_params(program.model.config, 0)
    images = train_batches(
        experiment.dataset.source("train"), experiment.transform, global_batch_size=BATCH, seed=0
    )
    with images:
        for step in range(2):
            batch = next(images)
            rows = [kept[BATCH * step + i] for i in range(BATCH)]
            np.testing.assert_array_equal([row["label"] for row in rows], batch["label"])
            tokens = encode(encoder, program.put(batch), np.int32(step))
            np.testing.assert_array_equal([row["features"] for row in rows], tokens)

            # The step on features is the step on the images that they are of.
            ours, theirs = (p.place(params).replace(step=np.int32(step)) for p in (program, plain))
            data = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
            _, found = program.step(ours, program.put(data))
            _, expected = plain.step(theirs, plain.put(batch))
            # Tokens are rounded to float16.
            np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-3)


def test_features_are_kept_once_and_for_what_they_depend_on(build, tmp_path):
    build()[2]()
    (name,) = folders(tmp_path)
    changed = (tmp_path / "kept" / name / "features.npy").stat().st_mtime_ns
    # Another decoder, optimizer, batch or length changes nothing of them.
    build(model__decoder="mask", optimizer__name="sgd", total_steps=9, batch_size=2)[2]()
    assert folders(tmp_path) == [name]
    assert (tmp_path / "kept" / name / "features.npy").stat().st_mtime_ns == changed
    for overrides in ({"seed": 1}, {"augment__flip_prob": 0.0}, {"augment__normalization": "deit"}):
        build(**overrides)[2]()
    assert len(folders(tmp_path)) == 4


@pytest.mark.parametrize("torn", [0, 1])
def test_interrupted_work_goes_on_where_it_stopped(torn, build, tmp_path):
    _, _, features = build()
    features()
    (name,) = folders(tmp_path)
    kept = tmp_path / "kept"
    whole = {p.name: p.read_bytes() for p in (kept / name).iterdir()}
    shutil.rmtree(kept)

    class AfterOne(StopRequest):
        """A signal in the first batch."""

        asked = 0

        @property
        def received(self):
            self.asked += 1
            return "SIGTERM" if self.asked > 1 else None

        @received.setter
        def received(self, _):
            pass

    assert features(AfterOne()) is None
    (part,) = folders(tmp_path)
    assert part == f".incomplete.{name}"
    with open(kept / part / "features.npy", "ab") as file:
        file.write(b"\1" * torn)
    features()
    assert folders(tmp_path) == [name]
    assert {p.name: p.read_bytes() for p in (kept / name).iterdir()} == whole


def test_too_small_a_disk_is_told_before_the_work(build, monkeypatch, tmp_path):
    _, _, features = build()
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"features of 16 crops take 0\.0 GB.*features\.views lower"):
        features()


def test_run_learns_from_features_and_leaves_a_plain_model(source, tmp_path):
    overrides = FROZEN | {"model__head_norm": "batch", "total_steps": 20, "log__every_steps": 10}
    workdir = epath.Path(tmp_path / "run")
    train_and_evaluate(tiny_config(source, **overrides), workdir)
    _, losses = read_metrics(workdir)["train/loss"]
    assert losses[-1] < losses[0]
    description, params = load_model(workdir / "model/latest")
    assert description.model.head_norm == "none" and params["decoder"].keys() == {"head"}
    # Beside the built dataset, for the next run.
    (kept,) = (source.parent / "built/tiny/features").iterdir()
    assert json.loads((kept / "about.json").read_text())["split"] == "train"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"optimizer__freeze_encoder": False}, r"features\.views=2 .*freeze_encoder"),
        ({"features__views": -1}, r"config\.features\.views must be at least 0, got -1"),
    ],
)
def test_what_cannot_be_kept_is_refused(overrides, message, build):
    with pytest.raises(ValueError, match=message):
        build(**overrides)


def test_short_run_keeps_nothing(build, caplog):
    caplog.set_level("INFO", "segmenter_jax")
    experiment, _, _ = build(total_steps=2, optimizer__warmup_steps=0)
    assert not experiment.program.options.from_features
    assert "features are not kept: 2 steps" in caplog.text


def test_frozen_step_costs_its_forward_pass():
    from tests.tiny import tiny_network
    from tests.training.test_program import OPTIONS, one_device, program_of

    config = tiny_network(decoder="linear", image_size=(64, 64), depth=6)
    program = program_of(one_device(), dataclasses.replace(OPTIONS, freeze_encoder=True), config)
    state, batch = program.abstract_state(), program.abstract_batch(8)
    step = program.step.lower(state, batch).compile()
    image = jax.ShapeDtypeStruct((8, 64, 64, 3), np.float32)
    forward = jax.jit(lambda p, x: program.model.apply({"params": p}, x))
    forward = forward.lower(state.params, image).compile()
    flops = [program.cost_analysis()["flops"] for program in (step, forward)]
    memory = [program.memory_analysis().temp_size_in_bytes for program in (step, forward)]
    assert flops[0] <= 1.15 * flops[1]
    assert memory[0] <= 1.2 * memory[1]
