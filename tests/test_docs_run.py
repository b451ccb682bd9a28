"""Every command and all Python code of README and docs runs, one page after the other.

Each page has a folder with what it speaks of: pictures, datasets, weights and models, all tiny.
What differs from the text stands in `SUBSTITUTES`; what is not run, and why, in `NOT_RUN`.
"""

import ast
import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tarfile

import cv2
import numpy as np
import pytest

import segmenter_jax
from tests.data import replicas
from tests.models_on_disk import write_golden_model
from tests.test_docs import BLOCKS, OUTSIDE, ROOT, commands, imported
from tests.tiny_runs import environment, write_dataset

pytestmark = pytest.mark.slow

GOLDEN = ROOT / "tests" / "golden"

SHORT = {"total_steps": 2, "batch_size": 2, "optimizer__warmup_steps": 0, "log__every_steps": 1}
SHORT |= {"mesh__num_devices": 1}  # Tests have eight.
SIZES = ("augment__crop_size", "augment__base_size", "eval__window", "eval__stride")
# A network that is named by its sizes, and one whose sizes are those of its weights.
SMALL = SHORT | dict.fromkeys(SIZES, 32) | {"model__width": 64, "model__depth": 1}
SMALL |= {"model__num_heads": 2, "model__decoder_depth": 1}
PRETRAINED = SHORT | dict.fromkeys(SIZES, 56)


def flags(settings: dict[str, object]) -> str:
    return " ".join(f"--config.{n.replace('__', '.')}={v}" for n, v in settings.items())


# By the name of a config; they come last in a command, and so win. None else is pretrained.
SETTINGS = dict.fromkeys(("folder_dinov2", "folder_dinov2_finetune"), PRETRAINED)
SETTINGS |= dict.fromkeys(("ade20k_vitti16", "ade20k_vits16"), SMALL | {"init_from": ""})

CHECKPOINT = "seg_small_mask/checkpoint.pth"

# Words of a command, and what is written for them.
SUBSTITUTES = {
    # The datasets here have seven classes.
    "'--config.loss.class_weights=(0.7,0.7,2.5,0.7,1.0,0.9,2.2,2.2,1.0,2.0,2.0)'": "",
    "'--config.loss.class_weights=(0.7,0.7,2.5,0.7,1.0,0.9,2.2,2.2,1.0,2.5,3.5)'": "",
    # The tiny checkpoint that stands for a published one has seven classes.
    "models/seg_s --dataset=ade20k": "models/seg_s --dataset=shapes",
    "models/mmseg_s --dataset=ade20k": "models/mmseg_s --dataset=shapes",
    f"{CHECKPOINT} --dataset=ade20k": f"{CHECKPOINT} --dataset=shapes",
    "--window=512 --stride=480 --base_size=512": (
        "--window=64 --stride=48 --base_size=64 --num_heads=2"
    ),
    # Of three pictures, where the published set has 20,210; with the archive of test images.
    "--source=ADEChallengeData2016.zip": "--source=zipped --allow_partial",
    "--stride=608": "--stride=32",
    "--stride=480": "--stride=32",
    "--size 512x1024": "--size 64x128",
    "--layer 2 --patch 60,40": "--layer 0 --patch 60,40",
    "--variant B/16 --size 512 --batch_size 8 --devices 8": (
        "--variant Ti/16 --size 32 --batch_size 2 --devices 1"
    ),
    "/shared/out": "shared/out",
    "0/32": "0/2",
}

# Patterns of commands that are not run, and why.
NOT_RUN = {
    r"pip install|-m venv|-m build|pre-commit": "installs: .ci/run does that",
    r"^(hf|git|sbatch) |hf://|--download|augreg/": "needs the network or a cluster",
    r"(gs|s3)://": "needs a bucket: inference/test_buckets.py",
    r"segmenter_jax\.publish .*--private": "uploads: conversion/test_hub.py",
    r"^(du|sort|head|export|taskset|xprof) ": "is no program of this project",
    r"^\.ci/|pytest -q( -m slow)?$|tests\.soak\.fidelity|-m sphinx": "takes minutes or is .ci/run",
    r"segmenter_jax\.demo": "serves until it is stopped: test_demo.py",
    r"benchmark plan": "compiles for minutes: benchmark/test_plan.py",
    r"--coordinator": "waits for other machines: runtime/test_processes.py",
    r"models/eomt-l --dataset": "no dataset has its classes: conversion/test_eomt.py",
    r"segmenter_jax\.export": "needs other packages: test_export_command.py",
}

RUN = [b for b in BLOCKS if b[2] in ("", "python") and not b[0].endswith(".py")]


def write_photos(folder: pathlib.Path) -> None:
    """The pictures and the video that pages name."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    single = ("photo.jpg", "other.jpg", "street.jpg", "a.jpg", "b.jpg")
    for name in (*single, "photos/one.jpg", "more/x/two.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / name), pixels)
    fourcc = cv2.VideoWriter.fourcc(*"mp4v")
    video = cv2.VideoWriter(str(folder / "clip.mp4"), fourcc, 5, (90, 60))
    for _ in range(3):
        video.write(pixels)
    video.release()
    (folder / "shards").mkdir()
    with tarfile.open(folder / "shards" / "0001.tar", "w") as tar:
        tar.add(folder / "photo.jpg", "7.jpg")


def write_cvat_export(folder: pathlib.Path) -> None:
    """What CVAT leaves: pictures, masks in colours, and a table of these."""
    (folder / "JPEGImages").mkdir(parents=True)
    (folder / "SegmentationClass").mkdir()
    (folder / "labelmap.txt").write_text("# name:color\nroad:10,20,30::\nsky:0,0,200::\n")
    for i in range(5):
        assert cv2.imwrite(str(folder / f"JPEGImages/{i}.jpg"), np.full((40, 50, 3), 9, np.uint8))
        mask = np.tile(np.array([30, 20, 10], np.uint8), (40, 50, 1))  # BGR.
        assert cv2.imwrite(str(folder / f"SegmentationClass/{i}.png"), mask)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> pathlib.Path:
    """A folder with everything that pages speak of; it is the home of who runs them too."""
    root = tmp_path_factory.mktemp("reader")
    write_photos(root)
    for name in ("mine", "camvid"):
        write_dataset(root / name)
    write_cvat_export(root / "export")
    replicas.write_zipped("ade20k", root / "zipped")
    replicas.write("rgbt_glass", root / "rgbt")
    shutil.copytree(GOLDEN / "backbones" / "dinov2", root / "dinov2-small")
    shutil.copytree(GOLDEN / "backbones" / "eomt_dinov2", root / "eomt-l")
    (root / "seg_small_mask").mkdir()
    shutil.copy(GOLDEN / "segm_mask.pth", root / "seg_small_mask" / "checkpoint.pth")
    shutil.copy(GOLDEN / "segm_mask.variant.yml", root / "seg_small_mask" / "variant.yml")
    shutil.copy(GOLDEN / "mmseg_mask.pth", root / "segmenter_vit-s_mask.pth")
    write_golden_model(root / "golden")

    data = {"dataset__data_dir": str(root / "tensorflow_datasets")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        segmenter_jax.train("quickstart", "runs/quickstart", **SMALL | data)
        own = {"dataset__name": "mine", "dataset__source": "mine", "init_from": "dinov2-small"}
        segmenter_jax.train("folder_dinov2", "runs/mine", **PRETRAINED | data | own)
    for name, source in (("ade20k", "zipped"), ("rgbt_glass", "rgbt")):
        run(root, f"python -m segmenter_jax.prepare_data {name} --source={source} --allow_partial")
    for config, name in (("ade20k_vits16", "l16"), ("rgbt_glass", "rgbt_glass")):
        settings = f"{flags(SMALL)} --config.init_from="
        run(
            root, f"python -m segmenter_jax.main --config={config} --workdir=runs/{name} {settings}"
        )
    shutil.copytree(root / "runs/l16", root / "runs/s16")
    shutil.copytree(root / "runs/quickstart", root / "runs/other")
    return root


def run(folder: pathlib.Path, command: str) -> None:
    """Runs one command in a folder that is the user's home as well."""
    programs = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = {
        "HOME": str(folder),
        "PYTHONPATH": str(ROOT),
        "PATH": programs,
        "HF_HUB_OFFLINE": "1",
    }
    result = subprocess.run(
        command,
        shell=True,
        cwd=folder,
        env=environment() | settings,
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"


def written(words: list[str]) -> str:
    """The command line that is run for the words of a page."""
    line = re.sub(r"^\.venv/bin/", "", shlex.join(words))
    # The longest first: some are parts of others.
    for old in sorted(SUBSTITUTES, key=len, reverse=True):
        line = re.sub(rf"(?<!\S){re.escape(old)}(?!\S)", SUBSTITUTES[old], line)
    if config := re.search(r"segmenter_jax\.main .*--config=(\w+)", line):
        line = f"{line} {flags(SETTINGS.get(config[1], SMALL))}"
    return re.sub(r"\btests/", f"{ROOT}/tests/", line)


@pytest.fixture(scope="module")
def pages() -> dict[str, pathlib.Path]:
    return {}


@pytest.fixture
def folder(request, world, pages, tmp_path_factory) -> pathlib.Path:
    """The folder of a block's page, where the blocks before it have left what they made."""
    page = request.getfixturevalue("block")[0]
    if page not in pages:
        pages[page] = tmp_path_factory.mktemp("page") / "home"
        shutil.copytree(world, pages[page], symlinks=True)
    return pages[page]


@pytest.mark.parametrize("block", RUN, ids=str)
def test_block_runs(block, folder, monkeypatch):
    _, _, language, text = block
    if language == "python":
        run_python(text, folder, monkeypatch)
        return
    lines = [shlex.join(words) for words in commands(text)]
    chosen = [
        written(words)
        for words, line in zip(commands(text), lines, strict=True)
        if not any(re.search(pattern, line) for pattern in NOT_RUN)
    ]
    if not chosen:
        pytest.skip(f"not run: {lines}")
    for line in chosen:
        run(folder, line)


def run_python(text: str, folder: pathlib.Path, monkeypatch) -> None:
    """Runs code of a page as a reader does who has read it from its top."""
    missing = [m for m, _ in imported(ast.parse(text)) if m.split(".")[0] in OUTSIDE]
    if any(importlib.util.find_spec(name.split(".")[0]) is None for name in missing):
        pytest.skip(f"needs {missing}")
    if "hf://" in text:
        pytest.skip("needs the network: conversion/test_hub.py")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    # As long as the shell's.
    text = text.replace('init_from="dinov2-small"', 'init_from="dinov2-small", **PRETRAINED')
    exec(text, {"PRETRAINED": PRETRAINED, "segmenter_jax": segmenter_jax})


def test_every_exception_is_one():
    """What is not run is still on a page."""
    lines = [shlex.join(words) for b in RUN if b[2] == "" for words in commands(b[3])]
    assert [p for p in NOT_RUN if not any(re.search(p, line) for line in lines)] == []
    joined = "\n".join(re.sub(r"^\.venv/bin/", "", line) for line in lines)
    assert [s for s in SUBSTITUTES if s not in joined] == []
