"""The folder that is published, and its model card. Uploads: tests/conversion/test_hub.py."""

import dataclasses
import json
import re
from typing import get_args

import numpy as np
import pytest
import yaml
from PIL import Image

from segmenter_jax import publish
from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.conversion.model_card import Facts, lineage, model_card
from segmenter_jax.evaluation.metrics import SegmentationReport
from segmenter_jax.models.choices import Decoder
from tests.golden_params import golden_config
from tests.models_on_disk import CLASSES, golden_description, write_golden_model

PROTOCOL = "window 64, stride 48, base 64, scales 1, flip no"
REPORT = SegmentationReport(np.diag([4, 3, 2, 1, 1, 1, 0]), CLASSES, PROTOCOL, num_images=3)
BACKBONE = {
    "format": "dinov2",
    "source": "hf://facebook/dinov2-small@0123",
    "sha256": "5ha",
    "license": "other",
    "license_name": "their-licence",
    "options": {"seed": 0},
}
PROVENANCE = {
    "dataset": "street",
    "init_from": BACKBONE,
    "step": 40,
    "mean_iou": REPORT.mean_iou,
    "scored_on": {"dataset": "street", "split": "val", "num_images": 3, "protocol": PROTOCOL},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir with a model, a report and a picture."""
    workdir = tmp_path_factory.mktemp("run")
    write_golden_model(workdir / "model" / "best", provenance=PROVENANCE)
    (workdir / "config.json").write_text("{}")
    (workdir / "report.json").write_text(REPORT.to_json())
    (workdir / "predictions").mkdir()
    Image.new("RGB", (30, 10), "red").save(workdir / "predictions" / "a.png")
    return workdir


def card(description: ModelDescription, report=None, **fields) -> tuple[dict, str]:
    """Front matter and text of a model card."""
    facts = {"repo": "me/street", "num_params": 265_000, "digest": "d16e57", "legend": "legend.png"}
    text = model_card(
        Facts(
            **facts | {"license": {"license": "mit"}} | fields,
            description=description,
            report=report,
        )
    )
    _, front, text = text.split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_folder_of_a_run(run, tmp_path, capsys):
    out, photo = tmp_path / "out", tmp_path / "photo.jpg"
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    Image.new("RGB", (40, 30), "blue").save(photo, exif=exif)
    assert publish.main([str(run), "me/street", "--output", str(out), "--picture", str(photo)]) == 0
    assert capsys.readouterr().out == f"written: {out}\n"
    names = ["README.md", "legend.png", "model.json", "model.safetensors", "picture_1.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "photo.jpg"]
    assert ModelDescription.from_json((out / "model.json").read_text()).provenance == PROVENANCE
    assert not Image.open(out / "picture_1.png").getexif()
    text = (out / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert (front["license"], front["license_name"]) == ("other", "their-licence")
    assert "![Segmentation](picture_1.png)" in text
    assert "| 0 | sky | `#00c85a` | 100.00 | 100.00 | 33.33 |" in text
    assert "| 6 | sign | `#b4505a` |  |  | 0.00 |" in text

    assert publish.main([str(run), "me/street", "--output", str(out)]) == 1
    assert f"{out}: exists; choose another name" in capsys.readouterr().err


def test_what_is_wrong_is_told_before_anything_is_written(run, tmp_path, capsys):
    def error(*arguments):
        assert publish.main([*map(str, arguments), "--output", str(tmp_path / "out")]) == 1
        return capsys.readouterr().err

    assert "hf://street: expected hf://owner/name" in error(run, "street")
    (tmp_path / "x.png").write_text("no picture")
    assert f"{tmp_path}/x.png: no picture" in error(run, "a/b", "--picture", tmp_path / "x.png")
    write_golden_model(tmp_path / "m")
    assert "--license is missing: the model does not say" in error(tmp_path / "m", "a/b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "x.png"]


def test_pictures_of_a_run_are_offered_not_taken(run, tmp_path, capsys):
    assert publish.main([str(run), "me/street", "--output", str(tmp_path / "out")]) == 0
    assert f"to show one: --picture {run}/predictions/a.png" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("picture*"))


def test_a_report_of_another_step_is_not_shown(run, tmp_path):
    later = json.loads(REPORT.to_json()) | {"mean_iou": 0.5}
    before = (run / "report.json").read_text()
    (run / "report.json").write_text(json.dumps(later))
    assert publish.main([str(run), "me/street", "--output", str(tmp_path / "out")]) == 0
    (run / "report.json").write_text(before)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| mean IoU | 100.00 |" in text and "pixel accuracy" not in text
    assert "Not measured: single classes (the run's report is of another step)" in text


def test_the_card_of_a_measured_model():
    front, text = card(
        golden_description(provenance=PROVENANCE), report=json.loads(REPORT.to_json())
    )
    (result,) = front.pop("model-index")[0]["results"]
    assert result["dataset"] == {"type": "street", "name": "street", "split": "val"}
    assert result["metrics"][0] == {"type": "mean_iou", "name": "mean IoU (%)", "value": 100.0}
    assert front == {
        "license": "mit",
        "library_name": "segmenter_jax",
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", "segmenter", "vision-transformer", "jax", "flax"],
        "base_model": "facebook/dinov2-small",
    }
    for line in (
        "# street",
        'seg = segmenter_jax.load("hf://me/street")',
        f"On split `val` of `street`, 3 pictures, at the labels' own sizes ({PROTOCOL}):",
        "Not measured: mean boundary IoU, calibration error, several scales and flips, pictures",
        "- Trained on `street`, 40 steps; first weights: those that follow",
        "- From `hf://facebook/dinov2-small@0123`, read as dinov2; licence other; SHA-256 of its",
        "windows of 64 pixels every 48",
        "265,000 parameters",
    ):
        assert line in text, line


def test_the_card_of_a_model_of_which_nothing_is_known():
    names = ("a|b", "<img src=x>", "[x](y)", "`", "*", "new\nline", "日本")
    front, text = card(golden_description(classes=names))
    assert "model-index" not in front and "base_model" not in front
    assert "Nothing was measured" in text and "IoU" not in text
    assert r"| 0 | a\|b |" in text and r"| 1 | \<img src=x\> |" in text and "| 6 | 日本 |" in text
    assert len(re.findall(r"^\| \d+ \|", text, re.MULTILINE)) == 7


@pytest.mark.parametrize("decoder", get_args(Decoder))
def test_every_decoder_is_called_by_its_name(decoder):
    words = {
        "linear": "and a linear decoder;",
        "mask": "and a mask transformer of 2 blocks;",
        "eomt": "and 100 queries in its last 2 blocks (EoMT);",
    }
    network = dataclasses.replace(golden_config("segm_mask"), decoder=decoder)
    assert words[decoder] in card(golden_description(model=network))[1]


def test_paths_of_somebodys_machine_are_not_told():
    source = {"format": "timm", "source": "/home/me/w.pth", "sha256": "5ha"}
    _, text = card(golden_description(provenance=source))
    assert "- From `w.pth`, read as timm; licence not told" in text and "/home" not in text


def test_the_lineage_goes_back_to_the_first_weights():
    first = {"source": "a"}
    steps = lineage({"parent": {"dataset": "x", "init_from": {"parent": first, "source": "b"}}})
    assert [step.get("source") for step in steps] == [None, None, "b", "a"]
    assert lineage({"init_from": None}) == [{"init_from": None}]
