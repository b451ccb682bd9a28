"""Segments a picture with a StableHLO export on any device; needs jax and flatbuffers only.

python run_stablehlo.py EXPORT picture.npy classes.npy    (uint8 (H, W, 3) in, class ids out)
"""

import hashlib
import json
import pathlib
import sys

import jax
import numpy as np

folder, source, target = map(pathlib.Path, sys.argv[1:])
about = json.loads((folder / "export.json").read_text())
function = about["functions"]["picture"]
content = (folder / function["file"]).read_bytes()
assert hashlib.sha256(content).hexdigest() == function["sha256"], "the file is damaged"
segment = jax.jit(jax.export.deserialize(bytearray(content)).call)

pixels = np.load(source)
expected = tuple(function["inputs"]["picture"]["shape"])
assert pixels.shape == expected, f"{source} is {pixels.shape}, the export is of {expected}"
results = jax.device_get(segment(pixels))

np.save(target, results["ids"])
for i in np.unique(results["ids"]):
    here = results["ids"] == i
    share, sure = 100 * here.mean(), results["confidence"][here].mean()
    print(f"{about['classes'][i]:<20}{share:5.1f} % of the picture, confidence {sure:.2f}")
