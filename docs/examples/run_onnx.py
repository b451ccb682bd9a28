"""Segments a picture with an ONNX export; needs onnxruntime and Pillow only.

python run_onnx.py EXPORT photo.jpg classes.png
"""

import hashlib
import json
import pathlib
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

folder, source, target = map(pathlib.Path, sys.argv[1:])
about = json.loads((folder / "export.json").read_text())
function = about["functions"]["picture"]
content = (folder / function["file"]).read_bytes()
assert hashlib.sha256(content).hexdigest() == function["sha256"], "the file is damaged"
session = onnxruntime.InferenceSession(content, providers=onnxruntime.get_available_providers())

picture = ImageOps.exif_transpose(Image.open(source)).convert("RGB")
height, width, _ = function["inputs"]["picture"]["shape"]
pixels = np.asarray(picture.resize((width, height)))
ids, confidence = session.run(["ids", "confidence"], {"picture": pixels})

classes = Image.fromarray(ids).resize(picture.size, Image.Resampling.NEAREST)
classes.putpalette([value for color in about["colors"] for value in color])
classes.save(target)
for i in np.unique(ids):
    print(about["classes"][i], f"{(ids == i).mean():.1%}, sure {confidence[ids == i].mean():.2f}")
