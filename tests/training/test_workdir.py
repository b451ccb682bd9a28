"""What the folder of a run remembers, and whether a run can be saved in it."""

import json
import logging

import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from flax.traverse_util import flatten_dict

from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.checkpoints.model_dir import save_model
from segmenter_jax.configs import common
from segmenter_jax.models.params import init_params
from segmenter_jax.runtime.console import logger
from segmenter_jax.training import sharding
from segmenter_jax.training.workdir import (
    FIXED_FIELDS,
    SWITCHED_FIELDS,
    check_same_run,
    initial_params,
    keep_config,
    try_saving,
    with_origin,
)
from tests.tiny import tiny_network

# Fields of a config that may change before a run resumes.
FREE_FIELDS = {
    *("total_steps", "batch_size", "grad_accum_steps"),
    *("init_from", "init_entry", "position_method"),
    *("model.dtype", "model.attention", "model.remat", "model.scan_layers"),
    *(f"dataset.{n}" for n in ("name", "data_dir", "source", "train_split", "eval_split")),
    *(f"augment.{n}" for n in ("base_size", "aspect_bound", "scale_range", "category_max_ratio")),
    *(f"augment.{n}" for n in ("flip_prob", "photometric", "normalization")),
    *(f"features.{n}" for n in ("views", "folder")),
    *(f"loader.{n}" for n in ("num_workers", "num_threads", "prefetch")),
    *(f"optimizer.{n}" for n in ("schedule", "learning_rate", "min_learning_rate", "power")),
    *(
        f"optimizer.{n}"
        for n in ("warmup_steps", "momentum", "nesterov", "weight_decay", "clip_norm")
    ),
    *(f"optimizer.{n}" for n in ("layer_decay", "max_skipped_updates")),
    "loss.class_weights",
    *(f"eval.{n}" for n in ("every_steps", "window", "stride", "batch_size", "num_pictures")),
    *(f"checkpoint.{n}" for n in ("every_steps", "keep")),
    *(f"log.{n}" for n in ("every_steps", "profile_steps", "stall_seconds")),
    *(f"mesh.{n}" for n in ("fsdp", "num_devices")),
}

TINY = tiny_network(num_classes=2, image_size=(16, 16), num_heads=1, decoder="linear")
DESCRIPTION = ModelDescription(TINY, ("a", "b"), ((0,) * 3, (1,) * 3), (0.5,) * 3, (0.5,) * 3)


@pytest.fixture
def workdir(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO)
    return epath.Path(tmp_path)


def config_with(**values):
    config = common.get_config()
    config.update_from_flattened_dict({n.replace("__", "."): v for n, v in values.items()})
    return config


def start(config, workdir):
    """What a start that is not refused does with its config."""
    check_same_run(config, workdir)
    keep_config(config, workdir)


def test_every_field_either_fits_a_checkpoint_or_may_change():
    fields = flatten_dict(common.get_config().to_dict(), sep=".").keys()
    kinds = (FIXED_FIELDS, SWITCHED_FIELDS, FREE_FIELDS)
    assert set.union(*map(set, kinds)) == set(fields)
    assert sum(map(len, kinds)) == len(fields)


def test_config_is_kept_and_changes_are_told(workdir, caplog):
    changed = config_with(optimizer__clip_norm=1.0, loss__class_weights=(1.0,))
    start(config_with(), workdir)
    start(changed, workdir)
    assert "config.optimizer.clip_norm was None when this run began, is now 1.0" in caplog.text
    kept = json.loads((workdir / "config.json").read_text())
    assert kept["optimizer"]["clip_norm"] == 1.0
    caplog.clear()
    start(changed, workdir)
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({"model__width": 64}, {"model__width": 128}, "model.width was 64, is 128"),
        ({"seed": 0}, {"seed": 1}, "seed was 0, is 1"),
        ({"ema_decay": 0.5}, {"ema_decay": 0.0}, "ema_decay was 0.5, is 0.0"),
        (
            {"optimizer__freeze_encoder": False},
            {"optimizer__freeze_encoder": True, "model__decoder": "linear"},
            "model.decoder was 'mask', is 'linear'; optimizer.freeze_encoder was False, is True",
        ),
    ],
)
def test_what_a_checkpoint_depends_on_cannot_change(workdir, before, after, message):
    start(config_with(**before), workdir)
    kept = (workdir / "config.json").read_text()
    with pytest.raises(ValueError, match=f"holds a run of another config: {message}$"):
        check_same_run(config_with(**after), workdir)
    assert (workdir / "config.json").read_text() == kept


def test_another_value_of_what_stays_on_is_no_other_run(workdir, caplog):
    start(config_with(ema_decay=0.5), workdir)
    start(config_with(ema_decay=0.9), workdir)
    assert "config.ema_decay was 0.5 when this run began, is now 0.9" in caplog.text


def test_run_of_a_version_without_a_field_resumes(workdir, caplog):
    start(config_with(), workdir)
    older = json.loads((workdir / "config.json").read_text())
    del older["model"]["drop_path_rate"]
    older["model"]["forgotten"] = 1
    (workdir / "config.json").write_text(json.dumps(older))
    check_same_run(config_with(), workdir)
    assert "config.model.drop_path_rate was None when this run began, is now 0.1" in caplog.text
    assert "config.model.forgotten was 1 when this run began, is now None" in caplog.text


def test_parameters_without_a_source_are_random_and_forget_an_older_source(workdir):
    (workdir / "init_from.json").write_text("{}")
    params = initial_params(config_with(seed=3), DESCRIPTION, workdir)
    assert not (workdir / "init_from.json").exists()
    expected = init_params(TINY, 3)["encoder"]["pos_embedding"]
    np.testing.assert_array_equal(params["encoder"]["pos_embedding"], expected)
    assert with_origin(DESCRIPTION, workdir) is DESCRIPTION


def test_source_of_parameters_is_remembered(workdir):
    source = workdir / "source"
    save_model(source, DESCRIPTION, init_params(TINY, 7))
    params = initial_params(config_with(init_from=str(source)), DESCRIPTION, workdir)
    expected = init_params(TINY, 7)["encoder"]["pos_embedding"]
    np.testing.assert_array_equal(params["encoder"]["pos_embedding"], expected)
    origin = with_origin(DESCRIPTION, workdir).provenance["init_from"]
    assert origin["source"] == str(source)


def test_saving_is_tried_and_leaves_nothing(workdir):
    # As a start leaves it that was killed meanwhile.
    (workdir / ".trial/checkpoints/0").mkdir(parents=True)
    try_saving(sharding.make_mesh(), workdir)
    assert list(workdir.iterdir()) == []


def test_saving_that_does_not_work_ends_a_run_before_it_begins(workdir, monkeypatch):
    def older(**_):
        raise TypeError("__init__() got an unexpected keyword argument 'deepcopy_host_arrays'")

    monkeypatch.setattr(ocp.type_handlers, "NumpyHandler", older)
    message = (
        rf"{workdir}: nothing was trained, since models and checkpoints cannot be saved here "
        rf"\(orbax-checkpoint {ocp.__version__}\): TypeError: __init__\(\) got an unexpected"
    )
    with pytest.raises(ValueError, match=message):
        try_saving(sharding.make_mesh(), workdir)


def test_checkpoints_are_tried_as_well(workdir, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(ValueError, match=r"cannot be saved here .* No space left on device"):
        try_saving(sharding.make_mesh(), workdir)
