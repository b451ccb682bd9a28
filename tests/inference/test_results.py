"""Which results in a folder still hold."""

import os

import jax
import pytest
from PIL import Image

from segmenter_jax.inference.predictor import Predictor
from segmenter_jax.inference.record_files import RECORDS_FILE
from segmenter_jax.inference.results import MISSING, Results, Wanted
from tests.golden_params import golden_params
from tests.models_on_disk import golden_description

WANTED = Wanted(kinds=("overlay", "ids"), alpha=0.5, video_suffix=None)


@pytest.fixture(scope="module")
def params():
    return golden_params("segm_mask")


@pytest.fixture
def unfinished(tmp_path, params):
    """What a run finds to be made of a picture: `MISSING`, None, or why; then it makes it."""
    photo = tmp_path / "photo.bmp"
    Image.new("RGB", (8, 8)).save(photo)
    os.utime(photo, (10**9, 10**9))

    def one_run(weights="a", path=photo, kinds=WANTED.kinds, alpha=0.5, model=None, **settings):
        description = golden_description(**(model or {}))
        predictor = Predictor(description, params, devices=jax.local_devices()[:1])
        wanted = Wanted(kinds, alpha, None)
        planned = {path: path.relative_to(path.parent).with_suffix("")}
        engine = predictor.engine(**settings)
        results = Results(tmp_path, planned, wanted, description, engine.settings, weights)
        reason = results.unfinished(path)
        results.start([path])
        results.begin(path)
        for kind, suffix in (("overlay", "jpg"), ("ids", "png")):
            (tmp_path / kind).mkdir(exist_ok=True)
            (tmp_path / kind / f"photo.{suffix}").touch()
        results.finish(path)
        return reason

    assert one_run() == MISSING
    assert one_run() is None
    return one_run


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weights": "b"}, "made by another model"),
        ({"model": {"mean": (0.2,)}}, "made by another model"),
        ({"scales": (0.5, 1), "flip": True}, "made with another scales and flip"),
        ({"stride": 32}, "made with another stride"),
        ({"base_size": None}, "made with another base_size"),
        ({"alpha": 0.4}, "made with another alpha"),
        ({"alpha": 0.4, "kinds": ("ids",)}, None),
        ({"batch_size": 3}, None),
    ],
)
def test_results_hold_for_the_model_and_settings_that_made_them(unfinished, change, reason):
    assert unfinished(**change) == reason
    assert unfinished(**change) is None


@pytest.mark.parametrize("change", ["size", "time", "folder"])
def test_results_hold_for_the_file_they_were_made_of(unfinished, tmp_path, change):
    photo = tmp_path / "photo.bmp"
    if change == "size":
        Image.new("RGB", (8, 9)).save(photo)
        os.utime(photo, (10**9, 10**9))
    elif change == "time":
        os.utime(photo, (10**9, 10**9 + 1))
    else:
        (tmp_path / "other").mkdir()
        photo = photo.rename(tmp_path / "other" / "photo.bmp")
    assert unfinished(path=photo) == "made of another file, or one that changed since"
    assert unfinished(path=photo) is None


def test_what_a_killed_process_did_not_record_is_made_again(unfinished, tmp_path):
    records = tmp_path / RECORDS_FILE
    records.write_bytes(records.read_bytes()[:-5])
    assert unfinished() == "not recorded what made them"
    assert unfinished() is None
    (tmp_path / "ids" / "photo.png").unlink()
    assert unfinished() == MISSING


def test_records_of_inputs_that_are_not_asked_for_are_kept(unfinished, tmp_path):
    unfinished(kinds=("ids",), weights="b")
    assert unfinished(kinds=("overlay",)) is None
    assert len((tmp_path / RECORDS_FILE).read_text().splitlines()) == 2
