"""Datasets and label files that look right and are not, and what to tell the user about them."""

from collections.abc import Iterable

import numpy as np

from segmenter_jax.data.specs import ILLEGAL_LABEL, DatasetSpec

JPEG_LABEL = "; lossy compression changes ids at every border, so export the labels again as PNG"
RGB_LABEL = (
    "; colours are no ids: this is a rendering (such as ADE20K's _seg.png or Cityscapes' "
    "_color.png) or a palette image that was converted"
)
ORIENTATION = (
    "images are turned or mirrored by EXIF, and nothing tells whether their labels are as well "
    '("label_orientation" in classes.json says so: "shown" or "stored")'
)
SCENE_PARSE150 = (
    "TFDS's scene_parse150 holds the instance annotations of 100 classes, not the semantic labels "
    "of ADE20K's 150; build 'ade20k' from ADEChallengeData2016.zip"
)
_FULL_ADE20K = (
    "this is the full ADE20K release, whose colour-coded _seg.png files have some 3000 classes; "
    "the benchmark of 150 classes is ADEChallengeData2016.zip"
)
_INSTANCES = (
    "annotations_instance holds instance annotations; the semantic labels are in "
    "ADEChallengeData2016.zip under annotations"
)
_EXPORTS = {
    "/SegmentationClass": "Pascal VOC or CVAT",
    "/labelmap.txt": "CVAT",
    "/annotations/instances_": "COCO",
    "/_annotations.coco.json": "COCO",
}
_CITYSCAPES_CLASSES = 19
_CITYSCAPES_IDS = 34


def source_traps(paths: Iterable[str]) -> list[str]:
    """Recognises sources that hold another kind of labels.

    Args:
      paths: relative paths of a source's files.

    Returns:
      One explanation for each trap.
    """
    found: dict[str, str] = {}
    for path in paths:
        if "scene_parse150" in path:
            found.setdefault(SCENE_PARSE150, path)
        elif path.endswith("_seg.png"):
            found.setdefault(_FULL_ADE20K, path)
        elif "annotations_instance/" in path:
            found.setdefault(_INSTANCES, path)
    return [f"{path}: {explanation}" for explanation, path in found.items()]


def layout_hints(paths: Iterable[str]) -> list[str]:
    """Recognises exports of other tools; one explanation for each, with what to do."""
    return [
        f"{path} looks like an export of {tool}: docs/data.md says how to convert it"
        for path in paths
        for mark, tool in _EXPORTS.items()
        if mark in f"/{path}"
    ]


def explain_values(raw: np.ndarray, spec: DatasetSpec, has_palette: bool) -> str:
    """A guess at why a label holds values that its dataset does not define.

    Args:
      raw: the stored values, (H, W).
      spec: the dataset's classes and label values.
      has_palette: the file is a palette image.

    Returns:
      Text to append to the message; empty if nothing fits.
    """
    if raw.dtype.kind == "f" or raw.min() < 0:
        return "; a value that stands for no data belongs to ignore_ids in classes.json"
    if raw.max() > 255:
        return (
            "; values above 255 are instance ids (as in Cityscapes' instanceIds files), "
            "but semantic labels are needed"
        )
    lookup = spec.label_lookup()
    values = np.unique(raw)
    illegal = values[lookup[values] == ILLEGAL_LABEL].tolist()
    classes = np.flatnonzero((lookup != spec.ignore_label) & (lookup != ILLEGAL_LABEL))
    if spec.num_classes == _CITYSCAPES_CLASSES and max(illegal) < _CITYSCAPES_IDS:
        return (
            "; these look like raw Cityscapes ids (labelIds), which the dataset 'cityscapes' maps "
            "to the 19 classes"
        )
    if illegal == [classes[-1] + 1] and 0 in classes and 0 not in values:
        return "; the labels look one-based: class ids have to start at 0"
    if illegal == [255] and lookup[0] == spec.ignore_label:
        return (
            "; the labels look shifted already (255 for ignored pixels), but the original files, "
            "where 0 is ignored, are expected"
        )
    if illegal == [255] and values.tolist() == [0, 255]:
        return "; in a mask of 0 and 255 the class has the id 255"
    if has_palette:
        return "; the file has a palette: its indices, not its colours, are taken as ids"
    return ""


def palette_conflict(raw: np.ndarray, palette: np.ndarray, spec: DatasetSpec) -> str | None:
    """Recognises a palette image whose colours are right and whose indices are not.

    Args:
      raw: the stored indices, uint8 (H, W), all legal.
      palette: uint8 (256, 3).
      spec: the dataset's classes and label values.

    Returns:
      What is wrong: every class index in use is painted in the colour of some class, and one of
      them in that of another class than its own. None otherwise.
    """
    by_color = {color: i for i, color in reversed(list(enumerate(spec.colors)))}
    trained = spec.label_lookup()
    used = [value for value in np.unique(raw) if trained[value] != spec.ignore_label]
    painted = [by_color.get(tuple(palette[value].tolist())) for value in used]
    if None in painted:
        return None
    for value, shown in zip(used, painted, strict=True):
        own = trained[value]
        if spec.colors[own] != spec.colors[shown]:
            return (
                f"index {value} means {spec.class_names[own]!r}, but the palette paints it in the "
                f"colour of {spec.class_names[shown]!r}; an editor has renumbered the palette, so "
                "export the labels again as grey images of ids"
            )
    return None
