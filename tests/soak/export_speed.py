"""What exports take for a picture beside the model that they were made of, in turns.

python -m tests.soak.export_speed MODEL EXPORT... [--rounds N]

Prints for each export the median of the model's seconds, and the median quotient of the export's
time by the model's with its quartiles; also how many class ids differ. Each pair sees one picture.
"""

import argparse
import json
import os
import pathlib
import time
from collections.abc import Callable

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np

import segmenter_jax
from segmenter_jax.conversion import onnx_files, stablehlo

READERS = {"onnx": onnx_files.deserialize, "stablehlo": stablehlo.deserialize}


def seconds(call: Callable[[np.ndarray], np.ndarray], picture: np.ndarray) -> tuple[float, ...]:
    """How long a call takes, and what it gives."""
    start = time.perf_counter()
    ids = np.asarray(call(picture))
    return time.perf_counter() - start, ids


def race(predict: Callable, folder: pathlib.Path, rounds: int) -> None:
    """Prints the row of one export."""
    about = json.loads((folder / "export.json").read_text())
    function = about["functions"]["picture"]
    read = READERS[about["to"]]((folder / function["file"]).read_bytes())
    shape = function["inputs"]["picture"]["shape"]
    rng = np.random.default_rng(0)
    own, quotients, differing = [], [], []
    for index in range(rounds + 1):
        coarse = rng.integers(0, 256, (6, 8, shape[2]), np.uint8)
        picture = coarse.repeat(-(-shape[0] // 6), 0).repeat(-(-shape[1] // 8), 1)
        picture = np.ascontiguousarray(picture[: shape[0], : shape[1]])
        calls = [predict, lambda pixels: read(pixels)["ids"]]
        # The first of a pair finds colder caches: by turns.
        order = (0, 1) if index % 2 else (1, 0)
        found = {which: seconds(calls[which], picture) for which in order}
        # The first round compiles.
        if index:
            own.append(found[0][0])
            quotients.append(found[1][0] / found[0][0])
            differing.append(float((found[0][1] != found[1][1]).mean()))
    low, middle, high = np.quantile(quotients, (0.25, 0.5, 0.75))
    name = f"{about['to']} {about['precision']} {shape[0]}x{shape[1]}"
    print(
        f"{name}: model {np.median(own):.3f} s, export by model {middle:.2f} "
        f"({low:.2f} to {high:.2f}), other ids {100 * np.mean(differing):.4f} %",
        flush=True,
    )


def main() -> None:
    """Races all exports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("exports", nargs="+", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    predictor = segmenter_jax.load(arguments.model)
    for folder in arguments.exports:
        race(predictor.predict, folder, arguments.rounds)


if __name__ == "__main__":
    main()
