"""Runs with the options that no published recipe uses."""

import hashlib
import io
import json
import logging
import pathlib
import shutil

import jax
import numpy as np
import pytest
from jax.profiler import ProfileData

import segmenter_jax
from segmenter_jax import load
from segmenter_jax.checkpoints.model_dir import load_description, load_model
from segmenter_jax.conversion import convert
from segmenter_jax.conversion.opening import SourceNetwork
from segmenter_jax.inference.predictor import read_model
from segmenter_jax.models import Segmenter
from segmenter_jax.models.choices import NORMALIZATION
from segmenter_jax.runtime.config_flag import read_config
from segmenter_jax.runtime.console import logger
from segmenter_jax.training import experiment, sharding
from segmenter_jax.training.loop import train_and_evaluate
from segmenter_jax.training.program import TrainProgram
from segmenter_jax.training.step_metrics import NonFiniteLossError
from tests.tiny import tiny_network
from tests.tiny_runs import LIGHT, state_bytes, tiny_config


def train(workdir, source, **overrides):
    """Trains in this process; returns what was logged."""
    log, logger.handlers = io.StringIO(), []
    logger.addHandler(logging.StreamHandler(log))
    logger.setLevel(logging.INFO)
    train_and_evaluate(tiny_config(source, **overrides), workdir)
    return log.getvalue()


EVERY = {
    "ema_decay": 0.5,
    "grad_accum_steps": 2,
    "optimizer__layer_decay": 0.75,
    "optimizer__max_skipped_updates": 2,
    "loss__class_weights": (0.5, 1.0, 1.0, 1.0, 2.0, 1.0, 1.0),
}


@pytest.fixture(scope="module")
def averaged(source, tmp_path_factory):
    """Workdir and output of a run with everything switched on."""
    workdir = tmp_path_factory.mktemp("runs") / "averaged"
    return workdir, train(workdir, source, **EVERY)


def test_average_is_what_is_kept_and_evaluated(averaged):
    workdir, output = averaged
    assert "average of parameters" in output and "activations and work space" in output
    state = state_bytes(workdir, 6)
    description, params = load_model(workdir / "model/latest")
    kernel = params["decoder"]["proj_patch"]
    name = "['decoder']['proj_patch']"
    assert np.asarray(kernel).tobytes() == state["['ema']" + name] != state["['params']" + name]
    assert description.provenance["ema_decay"] == 0.5
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    row = next(row for row in rows if row.get("train/loss"))
    assert row["train/update_norm"] > 0 and row["train/skipped"] == 0


def test_resumed_run_with_an_average_is_exact(averaged, source, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(averaged[0], workdir)
    shutil.rmtree(workdir / "checkpoints" / "6")
    assert "resumed at step 3" in train(workdir, source, **EVERY)
    assert state_bytes(workdir, 6) == state_bytes(averaged[0], 6)


def test_start_from_other_weights_is_told_in_the_model(averaged, source, tmp_path):
    start, workdir = averaged[0] / "model/latest", tmp_path / "run"
    settings = {
        "init_from": start,
        "optimizer__freeze_encoder": True,
        "augment__normalization": "deit",
        "total_steps": 4,
    }
    output = train(workdir, source, **settings)
    mean = NORMALIZATION["deit"][0]
    assert (
        f"the source was trained with mean=(0.5, 0.5, 0.5); images are normalised with {mean}"
        in (output)
    )
    provenance = load_description(workdir).provenance
    origin = provenance["init_from"]
    assert origin["format"] == "segmenter_jax" and origin["source"] == str(start)
    assert len(origin["sha256"]) == len(hashlib.sha256().hexdigest())
    assert origin["options"]["position_method"] == "bilinear"
    frozen, first = (load_model(path)[1]["encoder"] for path in (workdir / "model/latest", start))
    jax.tree.map(np.testing.assert_array_equal, frozen, first)

    # What a run came from is known also when it goes on without its source.
    shutil.rmtree(workdir / "checkpoints" / "4")
    shutil.rmtree(workdir / "model")
    start.rename(tmp_path / "moved")
    try:
        assert "resumed at step 3" in train(workdir, source, **settings)
    finally:
        (tmp_path / "moved").rename(start)
    assert load_description(workdir / "model/latest").provenance["init_from"] == origin


def test_compute_type_of_the_training_machine_does_not_travel(averaged):
    workdir, _ = averaged
    description = load_description(workdir)
    assert description.model.dtype == "auto" and description.model.compute_dtype() == "float32"
    assert load(workdir).model.config.compute_dtype() == "float32"


@pytest.mark.slow
def test_profile_of_training_holds_the_steps_asked_for(source, tmp_path):
    workdir = tmp_path / "run"
    settings = LIGHT | {"total_steps": 14, "log__profile_steps": 3, "eval__num_pictures": 0}
    output = train(workdir, source, **settings)
    assert f"profile written to {workdir / 'profile'}" in output
    (trace,) = (workdir / "profile").rglob("*.xplane.pb")
    lines = [line for plane in ProfileData.from_file(str(trace)).planes for line in plane.lines]
    steps = [
        dict(event.stats)["step_num"]
        for line in lines
        for event in line.events
        if event.name == "train"
    ]
    assert steps == [10, 11, 12]


def test_run_stops_after_too_many_skipped_updates(source, tmp_path):
    config = tiny_config(
        source,
        optimizer__max_skipped_updates=3,
        optimizer__learning_rate=1e38,
        optimizer__warmup_steps=0,
        total_steps=12,
        **LIGHT,
    )
    with pytest.raises(NonFiniteLossError, match="after 3 skipped updates"):
        train_and_evaluate(config, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert rows[0]["train/skipped"] > 0


@pytest.fixture
def backbone(tmp_path):
    golden = pathlib.Path(__file__).resolve().parents[1] / "golden" / "backbones"
    return shutil.copytree(golden / "dinov2_registers", tmp_path / "backbone")


def test_a_pretrained_encoder_is_trained_as_its_source_has_it(backbone, source, tmp_path):
    settings = LIGHT | {
        "model__variant": "source",
        **dict.fromkeys(("model__width", "model__depth", "model__num_heads")),
        "augment__normalization": "source",
        "optimizer__freeze_encoder": True,
        "init_from": str(backbone),
    }
    config = tiny_config(source, **settings)
    model = segmenter_jax.train(config, tmp_path / "run")
    assert model.predict(np.zeros((20, 30, 3), np.uint8)).shape == (20, 30)
    description, params = read_model(tmp_path / "run")
    network = description.model
    assert (network.num_registers, network.mlp, network.position_size) == (4, "swiglu", (16, 16))
    assert description.mean == NORMALIZATION["imagenet"][0] and network.drop_path_rate == 0
    _, expected, _ = convert.convert(
        backbone, convert.ConvertOptions(num_classes=2, decoder="linear")
    )
    jax.tree.map(np.testing.assert_array_equal, params["encoder"], expected["encoder"])
    # The run remembers what it started from.
    shutil.rmtree(backbone)
    config.total_steps = 8
    segmenter_jax.train(config, tmp_path / "run")


def test_a_source_that_is_needed_is_asked_for_before_anything_is_built(tmp_path):
    with pytest.raises(ValueError, match=r'config.model.variant="source" needs config.init_from'):
        segmenter_jax.train("folder_dinov2", tmp_path / "run", dataset__source=str(tmp_path))
    with pytest.raises(ValueError, match="nonesuch: does not exist"):
        segmenter_jax.train("folder_dinov2", tmp_path / "run", init_from="nonesuch")
    with pytest.raises(ValueError, match="has no field 'batch'"):
        segmenter_jax.train("folder_dinov2", tmp_path / "run", batch=3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model__depth": 3}, "config.model: depth=3 replaces what the source has, 2"),
        ({"model__variant": "dinov2reg_S/4"}, "has width=32, depth=2.* wants width=384, depth=12"),
        ({"augment__normalization": "any"}, "normalization='any' is unknown"),
    ],
)
def test_what_does_not_fit_a_source_is_told_before_anything_is_built(
    backbone, tmp_path, overrides, message
):
    given = {"dataset__data_dir": tmp_path, "init_from": backbone} | overrides
    with pytest.raises(ValueError, match=message):
        segmenter_jax.train("folder_dinov2", tmp_path / "run", **given)


def test_a_decoder_that_is_not_trained_is_refused_before_anything_is_built(tmp_path):
    with pytest.raises(ValueError, match=r'config.model: the decoder "eomt" is not trained here'):
        segmenter_jax.train("quickstart", tmp_path / "run", model__decoder="eomt")
    # As by `benchmark step`, which has no config.
    network = tiny_network(decoder="eomt")
    with pytest.raises(ValueError, match='the decoder "eomt" is not trained here'):
        TrainProgram(Segmenter(network), None, None, None, sharding.make_mesh(1, 1))


def test_what_replaces_a_part_of_the_source_is_told():
    config = read_config("folder_dinov2", ["--config.model.depth=3"])
    with pytest.raises(
        ValueError, match=r"depth=3 replaces what the source has, 2; --config.*None"
    ):
        experiment.model_config(config, 2, 3, SourceNetwork({"depth": 2}, {}))
