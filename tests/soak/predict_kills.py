"""Kills `predict` at random moments, starts it again, and compares its results with those expected.

python -m tests.soak.predict_kills [KILLS] [PICTURES] [SEED]

Between the kills pictures and both videos are replaced. In the end every result has to be whole,
none double, none stale: byte for byte those of a run that nobody killed.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import numpy as np
from PIL import Image

from segmenter_jax.inference.record_files import RECORDS_FILE
from segmenter_jax.pictures.video import Frame
from segmenter_jax.pictures.video_writing import write_video
from tests.models_on_disk import write_golden_model
from tests.tiny_runs import ROOT, environment

VIDEOS = ("a.mp4", "b.gif")
FRAMES = 40


def write_picture(path: pathlib.Path, seed: int) -> None:
    """Writes a picture of 48 x 64 pixels."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(noise).resize((64, 48), Image.Resampling.BICUBIC).save(path)


def write_clip(path: pathlib.Path, seed: int) -> None:
    """Writes a video whose frames are shown for different times."""
    rng, start = np.random.default_rng(seed), 0.0
    with write_video(path) as append:
        for _ in range(FRAMES):
            duration = 0.01 * rng.integers(2, 20)
            append(Frame(rng.integers(0, 256, (48, 64, 3), np.uint8), start, duration))
            start += duration


def start(model: pathlib.Path, inputs: pathlib.Path, output: pathlib.Path) -> subprocess.Popen:
    """Starts the command; its messages are added to OUTPUT.log."""
    arguments = ("-m", "segmenter_jax.predict", model, inputs, "-o", output, "--batch_size", "2")
    with open(f"{output}.log", "a") as log:
        command = [sys.executable, *map(str, arguments)]
        return subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=log)


def files(folder: pathlib.Path) -> dict[str, bytes]:
    """Everything in a folder but the records, which name the folder of the inputs' times."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != RECORDS_FILE
    }


def recorded(output: pathlib.Path) -> int:
    """How many results are recorded."""
    path = output / RECORDS_FILE
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill(process: subprocess.Popen, output: pathlib.Path, moment: str, rng: random.Random) -> bool:
    """Kills a run at a moment, and returns whether it had not ended before.

    Args:
      process: the run.
      output: where its results go.
      moment: "while it starts", "inside a video", or a number of results to be made before.
      rng: chooses the exact time.
    """

    def wait_until(condition) -> None:
        while process.poll() is None and not condition():
            time.sleep(0.001)

    if moment == "while it starts":
        time.sleep(rng.uniform(0, 6))
    elif moment == "inside a video":
        wait_until(lambda: any((output / "overlay" / f".incomplete.{v}").exists() for v in VIDEOS))
        time.sleep(rng.uniform(0, 0.5))
    else:
        # Records are written anew when a run starts, without those it makes again.
        wait_until(lambda: recorded(output))
        enough = recorded(output) + int(moment)
        wait_until(lambda: recorded(output) >= enough)
        time.sleep(rng.uniform(0, 0.05))
    process.send_signal(signal.SIGKILL)
    return process.wait() != 0


def main(kills: int = 30, pictures: int = 500, seed: int = 0) -> None:
    """Prints a line per kill and raises if anything differs in the end."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="predict_kills_") as name:
        folder = pathlib.Path(name)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/cache")
        model, inputs = write_golden_model(folder / "model"), folder / "in"
        inputs.mkdir()
        for index in range(pictures):
            write_picture(inputs / f"{index:04d}.png", index)
        for index, video in enumerate(VIDEOS):
            write_clip(inputs / video, index)
        # Inside the inputs, where they could be taken for inputs.
        killed, alone = inputs / "out", folder / "alone"
        in_time = 0
        for index in range(kills):
            moment = str(rng.randrange(1, 2 + 6 * pictures // kills))
            if index % 4 == 3:
                moment = "while it starts"
            elif index > 0.6 * kills:
                moment = "inside a video"
                # One that is finished has to be made again.
                write_clip(inputs / VIDEOS[index % 2], pictures + index)
            in_time += kill(start(model, inputs, killed), killed, moment, rng)
            left = [p.relative_to(killed).as_posix() for p in killed.rglob(".incomplete*")]
            print(
                f"kill {index + 1} ({moment}): {recorded(killed)} recorded, left: {left}",
                flush=True,
            )
            if index % 5 == 0:
                write_picture(inputs / f"{index:04d}.png", pictures + index)
        assert start(model, inputs, killed).wait() == 0, pathlib.Path(f"{killed}.log").read_text()
        again = start(model, inputs, killed).wait()
        messages = pathlib.Path(f"{killed}.log").read_text()
        assert again == 0 and "0 of 0 files segmented" in messages.splitlines()[-1], messages
        moved = killed.rename(folder / "out")
        assert start(model, inputs, alone).wait() == 0, pathlib.Path(f"{alone}.log").read_text()
        found, expected = files(moved), files(alone)
        # Of a run that went on, the legend has all classes.
        assert found.pop("legend.png") and expected.pop("legend.png")
        assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())
        different = [name for name in found if found[name] != expected[name]]
        assert not different, different
        lines = [json.loads(line) for line in (moved / RECORDS_FILE).read_text().splitlines()]
        assert len({line["result"] for line in lines}) == len(lines) == 2 * (pictures + 2)
    print(
        f"{kills} kills, {in_time} of them before the end: {len(found)} files, byte for byte those "
        "of a run left alone"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
