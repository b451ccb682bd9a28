"""Folder datasets with one fault each, made from a seed, and whether `check` names it."""

import dataclasses
import io
import json
import os
import random
import shutil
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from segmenter_jax.data.datasets import build_dataset, make_builder
from segmenter_jax.data.images import decode_image
from segmenter_jax.data.labels import check_pair, unpack_ids
from segmenter_jax.data.survey import survey
from segmenter_jax.runtime.errors import DataError
from tests.data.conftest import encode

# Of some, the folder still means what it did.
FAULTS: list[Callable[["Mine"], None]] = []
COLORS = [[0, 0, 255], [90, 90, 90], [255, 0, 0]]
CLASSES = tuple(zip(("sky", "road", "car"), COLORS, strict=True))
IMAGES = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
SUFFIXES = {"JPEG": "jpg", "TIFF": "tif"}

Records = dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]


@dataclasses.dataclass
class Mine:
    """A folder that is about to get its fault; `source` is what is handed to the product."""

    root: Path
    random: random.Random
    name: str = "mine"
    source: Path | None = None
    has_colors: bool = True

    def image(self, suffix: str = "*", split: str = "*") -> Path:
        """Some image."""
        return self.random.choice(sorted((self.root / "images").glob(f"{split}/*.{suffix}")))

    def label(self, split: str = "*") -> Path:
        """Some label."""
        return self.random.choice(sorted((self.root / "annotations").glob(f"{split}/*.png")))

    def label_of(self, image: Path) -> Path:
        """That of an image."""
        return self.root / "annotations" / image.parent.name / f"{image.stem}.png"

    def edit(self, change: Callable[[dict], object]) -> None:
        """Changes classes.json."""
        path = self.root / "classes.json"
        fields = json.loads(path.read_text())
        change(fields)
        path.write_text(json.dumps(fields))

    def zip(self, name: Callable[[str], str] = str) -> Path:
        """Packs the folder, with its entries' names changed."""
        self.source = self.root.with_suffix(".zip")
        with zipfile.ZipFile(self.source, "w") as archive:
            for path in sorted(filter(Path.is_file, self.root.rglob("*"))):
                entry = zipfile.ZipInfo("x")
                entry.filename = name(path.relative_to(self.root).as_posix())
                archive.writestr(entry, path.read_bytes())
        return self.source


def write(root: Path, seed: int) -> Records:
    """Writes a folder without faults; returns what it means."""
    rng = np.random.default_rng(seed)
    meant: Records = {}
    for split, count in (("train", 6), ("val", 5)):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for index in range(count):
            form = IMAGES[index % len(IMAGES)]
            height, width = (24, 24) if index == 1 else (24, 32)
            pixels = np.kron(
                rng.integers(0, 256, (6, 8, 3), np.uint8), np.ones((4, 4, 1), np.uint8)
            )
            options = {"compression": "tiff_adobe_deflate"} if form == "TIFF" else {}
            if form == "WEBP":
                options = {"lossless": True}
            image = encode(pixels[:height, :width], form, **options)
            ids = np.kron(rng.permutation(12).reshape(3, 4) % 4, np.ones((8, 8), np.uint8))
            ids = np.array([0, 1, 4, 255], np.uint8)[ids.astype(int)][:height, :width]
            name = f"{split}{index}"
            suffix = SUFFIXES.get(form, form.lower())
            (root / "images" / split / f"{name}.{suffix}").write_bytes(image)
            Image.fromarray(ids).save(root / "annotations" / split / f"{name}.png")
            trained = np.where(ids == 4, 2, ids).astype(np.uint8)
            meant.setdefault(split, {})[name] = decode_image(image, name), trained
    classes = [
        {"id": i, "name": name, "color": color}
        for i, (name, color) in zip((0, 1, 4), CLASSES, strict=True)
    ]
    (root / "classes.json").write_text(json.dumps({"classes": classes, "ignore_ids": [255]}))
    return meant


@dataclasses.dataclass
class Verdict:
    """What became of a folder with a fault.

    Attributes:
      fault: its name.
      problems: what `check` refuses.
      warnings: what `check` warns of.
      refusal: why the build failed, if it did.
      is_as_meant: whether what was built is what the folder meant before its fault.
    """

    fault: str
    problems: list[str]
    warnings: list[str]
    refusal: str | None
    is_as_meant: bool

    @property
    def is_right(self) -> bool:
        """Whether `check` names what the build refuses, and what it makes something else of."""
        if self.refusal is not None or self.problems:
            # The build stops at the first split with problems, and lists not all of many.
            refusal = self.refusal or ""
            return any(problem in refusal for problem in self.problems)
        return self.is_as_meant or bool(self.warnings)


def try_fault(fault: Callable[[Mine], None], seed: int, folder: Path) -> Verdict:
    """Makes a folder with a fault in an empty one, checks it and builds it."""
    meant = write(folder / "mine", seed)
    mine = Mine(folder / "mine", random.Random(seed))
    fault(mine)
    source, problems, warnings = mine.source or mine.root, [], []
    try:
        builder = make_builder(mine.name, folder / "nowhere", source)
        found = survey(builder.scan(), builder.spec)
        problems, warnings = [*found.problems], [*found.warnings]
    except (DataError, ValueError) as error:
        problems = [str(error)]
    try:
        dataset = build_dataset(mine.name, folder / "data", source)
    except (DataError, ValueError) as error:
        return Verdict(fault.__name__, problems, warnings, str(error), False)
    built: Records = {}
    for split in dataset.splits:
        records = dataset.source(split, needs_labels=False)
        for record in map(records.__getitem__, range(len(records))):
            ids = unpack_ids(record["label_ids"], "x") if "label_ids" in record else None
            pixels = decode_image(record["image"], "x")
            if ids is not None:
                # As everything that reads the original label sees it.
                seen = check_pair(record["image"], record["label"], dataset.spec, "x")[1]
                assert np.array_equal(ids, seen)
            built.setdefault(split, {})[record["name"]] = pixels, ids
    classes = tuple(zip(dataset.spec.class_names, map(list, dataset.spec.colors), strict=True))
    names = dataset.spec.class_names == tuple(name for name, _ in CLASSES)
    is_as_meant = _contents(meant) == _contents(built) and (
        names if not mine.has_colors else classes == CLASSES
    )
    return Verdict(fault.__name__, problems, warnings, None, is_as_meant)


def _contents(records: Records) -> dict[str, list[tuple]]:
    """Images and labels by split, whatever they are called."""
    return {
        split: sorted((p.shape, p.tobytes(), None if i is None else i.tobytes()) for p, i in pairs)
        for split, named in records.items()
        for pairs in [named.values()]
    }


def fault(function: Callable[[Mine], None]) -> Callable[[Mine], None]:
    """Registers a fault."""
    FAULTS.append(function)
    return function


def _cut(path: Path, share: float) -> bytes:
    return path.read_bytes()[: int(path.stat().st_size * share)]


@fault
def truncated_image(mine: Mine) -> None:
    path = mine.image()
    path.write_bytes(_cut(path, mine.random.uniform(0.05, 0.98)))


@fault
def truncated_label(mine: Mine) -> None:
    path = mine.label()
    path.write_bytes(_cut(path, mine.random.uniform(0.05, 0.95)))


@fault
def torn_jpeg(mine: Mine) -> None:
    path = mine.image("jpg")
    path.write_bytes(_cut(path, mine.random.uniform(0.75, 0.9)) + b"\xff\xd9")


@fault
def jpeg_without_its_tail(mine: Mine) -> None:
    path = mine.image("jpg")
    kept = _cut(path, mine.random.uniform(0.75, 0.9))
    path.write_bytes(kept + bytes(path.stat().st_size - len(kept) - 2) + b"\xff\xd9")


@fault
def flipped_byte_in_a_png(mine: Mine) -> None:
    path = mine.random.choice([mine.label(), mine.image("png")])
    data = bytearray(path.read_bytes())
    data[mine.random.randrange(41, len(data) - 16)] ^= 1 << mine.random.randrange(8)
    path.write_bytes(data)


@fault
def zeros_in_a_tiff(mine: Mine) -> None:
    path = mine.image("tif")
    data = bytearray(path.read_bytes())
    (offset,) = Image.open(io.BytesIO(data)).tag_v2[273]
    start = offset + mine.random.randrange(2, 20)
    data[start : start + 12] = b"\x55" * 12
    path.write_bytes(data)


@fault
def empty_file(mine: Mine) -> None:
    mine.random.choice([mine.label(), mine.image()]).write_bytes(b"")


@fault
def text_in_the_place_of_a_file(mine: Mine) -> None:
    mine.random.choice([mine.label(), mine.image()]).write_bytes(b"<html>404</html>")


@fault
def missing_file(mine: Mine) -> None:
    mine.random.choice([mine.label(), mine.image()]).unlink()


@fault
def image_that_is_not_read(mine: Mine) -> None:
    path = mine.image()
    path.rename(path.with_suffix(mine.random.choice([".heic", ".txt", "", ".jpg.part"])))


@fault
def hidden_file(mine: Mine) -> None:
    path = mine.random.choice([mine.label(), mine.image()])
    path.rename(path.with_name(f".{path.name}"))


@fault
def hidden_pair(mine: Mine) -> None:
    image = mine.image()
    for path in (mine.label_of(image), image):
        path.rename(path.with_name(f"._{path.name}"))


@fault
def two_images_of_one_name(mine: Mine) -> None:
    path = mine.image("jpg")
    shutil.copy(mine.image("png"), path.with_suffix(".png"))


@fault
def turned_by_exif(mine: Mine) -> None:
    path = mine.image("png")
    exif = Image.Exif()
    exif[0x0112] = mine.random.randrange(2, 9)
    Image.open(path).save(path, exif=exif)


@fault
def label_turned_by_exif(mine: Mine) -> None:
    path = mine.label()
    exif = Image.Exif()
    exif[0x0112] = mine.random.randrange(2, 9)
    Image.open(path).save(path, exif=exif)


@fault
def huge_image(mine: Mine) -> None:
    header = encode(np.zeros((1, 1), np.uint8))
    chunk = b"IHDR" + struct.pack(">II", 20_000, 20_000) + header[24:29]
    checksum = zlib.crc32(chunk).to_bytes(4, "big")
    mine.image("png").write_bytes(header[:12] + chunk + checksum + header[33:])


@fault
def floating_point_image(mine: Mine) -> None:
    path = mine.image("tif")
    Image.open(path).convert("F").save(path)


@fault
def sixteen_bit_pgm(mine: Mine) -> None:
    path = mine.image()
    path.unlink()
    values = np.arange(24 * 32, dtype=">u2").reshape(24, 32)
    path.with_suffix(".pgm").write_bytes(b"P5 32 24 65535\n" + values.tobytes())


@fault
def several_pages(mine: Mine) -> None:
    path = mine.image("tif")
    pages = [Image.open(path), Image.open(mine.image("png"))]
    pages[0].copy().save(path, save_all=True, append_images=pages[1:])


@fault
def moving_picture(mine: Mine) -> None:
    path = mine.image("webp")
    frame = Image.open(path).copy()
    frame.save(path, save_all=True, append_images=[frame.rotate(180)], lossless=True)


@fault
def name_that_is_not_utf_8(mine: Mine) -> None:
    image = mine.image()
    for path in (mine.label_of(image), image):
        os.rename(path, os.fsencode(path.parent) + b"/\xe9" + path.suffix.encode())


@fault
def name_in_two_unicode_forms(mine: Mine) -> None:
    image = mine.image()
    for form in ("NFC", "NFD"):
        name = unicodedata.normalize(form, "é")
        shutil.copy(image, image.with_name(f"{name}{image.suffix}"))
        shutil.copy(mine.label_of(image), mine.label_of(image).with_name(f"{name}.png"))


@fault
def strange_but_legal_name(mine: Mine) -> None:
    image = mine.image()
    name = mine.random.choice(
        ["a b", "x" * 200, "a'b\"c", "日本", "a%20b", "[1]", "a\nb", "#", "\\"]
    )
    for path in (mine.label_of(image), image):
        path.rename(path.with_name(name + path.suffix))


@fault
def suffix_in_capitals(mine: Mine) -> None:
    path = mine.random.choice([mine.label(), mine.image()])
    path.rename(path.with_suffix(path.suffix.upper()))


@fault
def link_to_nothing(mine: Mine) -> None:
    path = mine.random.choice([mine.label(), mine.image()])
    path.unlink()
    path.symlink_to("nowhere.png")


@fault
def link_that_leads_back(mine: Mine) -> None:
    (mine.image().parent / "more").symlink_to(mine.root)


@fault
def pipe_among_the_images(mine: Mine) -> None:
    os.mkfifo(mine.image().parent / "pipe.png")


@fault
def folder_with_the_name_of_a_label(mine: Mine) -> None:
    path = mine.label()
    path.unlink()
    path.mkdir()


@fault
def leftovers_of_editors(mine: Mine) -> None:
    folder = mine.image().parent / mine.random.choice([".ipynb_checkpoints", "__MACOSX", "@eaDir"])
    folder.mkdir()
    shutil.copy(mine.image("png"), folder / "copy.png")


@fault
def copy_in_the_other_split(mine: Mine) -> None:
    image = mine.image(split="train")
    shutil.copy(image, mine.root / "images/val" / image.name)
    shutil.copy(mine.label_of(image), mine.root / "annotations/val")


def _change_label(mine: Mine, change: Callable[[np.ndarray], np.ndarray], split: str = "*") -> None:
    path = mine.label(split)
    Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


@fault
def illegal_value(mine: Mine) -> None:
    value = mine.random.choice([2, 3, 5, 77, 254])
    _change_label(mine, lambda ids: np.where(ids == 1, value, ids).astype(np.uint8))


@fault
def label_of_another_size(mine: Mine) -> None:
    _change_label(mine, lambda ids: ids[: mine.random.randrange(1, 24)])


@fault
def coloured_label(mine: Mine) -> None:
    _change_label(mine, lambda ids: np.dstack([ids] * 3))


@fault
def label_in_the_colours_of_the_classes(mine: Mine) -> None:
    table = np.zeros((256, 3), np.uint8)
    table[[0, 1, 4]] = COLORS
    table[255] = 224, 224, 192
    if mine.random.random() < 0.5:
        mine.edit(lambda fields: fields.update(ignore_colors=[[224, 224, 192]]))
    _change_label(mine, lambda ids: table[ids])


@fault
def transparent_label(mine: Mine) -> None:
    _change_label(mine, lambda ids: np.dstack([ids] * 4))


@fault
def grey_label_with_alpha(mine: Mine) -> None:
    path = mine.label()
    Image.open(path).convert("LA").save(path)


@fault
def sixteen_bit_label(mine: Mine) -> None:
    factor = mine.random.choice([1, 1000])
    _change_label(mine, lambda ids: ids.astype(np.uint16) * np.uint16(factor))


@fault
def jpeg_for_a_label(mine: Mine) -> None:
    path = mine.label()
    data = encode(np.asarray(Image.open(path)), "JPEG")
    if mine.random.random() < 0.5:
        path.unlink()
        path = path.with_suffix(".jpg")
    path.write_bytes(data)


@fault
def label_with_a_renumbered_palette(mine: Mine) -> None:
    path = mine.label()
    ids = np.asarray(Image.open(path)).copy()
    ids[ids == 255] = 0
    picture = Image.fromarray(ids)
    picture.putpalette(bytes([*COLORS[1], *COLORS[0], *[9] * 6, *COLORS[2]]))
    picture.save(path)


@fault
def label_in_another_form(mine: Mine) -> None:
    form, suffix = mine.random.choice(
        [("TIFF", "tif"), ("BMP", "bmp"), ("GIF", "gif"), ("PPM", "pgm"), ("WEBP", "webp")]
    )
    path = mine.label()
    ids = np.asarray(Image.open(path))
    lossy = {"compression": "jpeg"} if form == "TIFF" and mine.random.random() < 0.5 else {}
    path.unlink()
    path.with_suffix(f".{suffix}").write_bytes(encode(ids, form, **lossy))


@fault
def label_of_other_numbers(mine: Mine) -> None:
    path = mine.label()
    ids = np.asarray(Image.open(path)).astype(np.float32)
    missing, factor = mine.random.choice(
        [(255, 1), (255, 0.5), (np.nan, 1), (-9999, 1), (65535, 1), (1e20, 1), (-1e-9, 1)]
    )
    if mine.random.random() < 0.5:
        mine.edit(lambda fields: fields.update(ignore_ids=[255, -9999, 65535, 1e20]))
    path.unlink()
    values = np.where(ids == 255, missing, ids * factor).astype(np.float32)
    path.with_suffix(".tif").write_bytes(encode(values, "TIFF"))


@fault
def truncated_label_of_another_form(mine: Mine) -> None:
    form, suffix = mine.random.choice(
        [("TIFF", "tif"), ("BMP", "bmp"), ("GIF", "gif"), ("PPM", "pgm")]
    )
    path = mine.label()
    data = encode(np.asarray(Image.open(path)), form)
    path.unlink()
    path = path.with_suffix(f".{suffix}")
    path.write_bytes(data[: int(len(data) * mine.random.uniform(0.05, 0.95))])


@fault
def two_labels_of_one_name(mine: Mine) -> None:
    path = mine.label()
    Image.open(path).save(path.with_suffix(mine.random.choice([".tif", ".bmp", ".jpg"])))


@fault
def label_that_is_ignored(mine: Mine) -> None:
    _change_label(mine, lambda ids: np.full_like(ids, 255))


@fault
def split_that_is_ignored(mine: Mine) -> None:
    for path in (mine.root / "annotations" / mine.random.choice(["train", "val"])).iterdir():
        Image.fromarray(np.full_like(np.asarray(Image.open(path)), 255)).save(path)


@fault
def class_that_train_never_shows(mine: Mine) -> None:
    for path in (mine.root / "annotations/train").iterdir():
        ids = np.asarray(Image.open(path))
        Image.fromarray(np.where(ids == 4, 0, ids).astype(np.uint8)).save(path)


@fault
def masks_of_0_and_255(mine: Mine) -> None:
    for path in (mine.root / "annotations").glob("*/*.png"):
        ids = np.asarray(Image.open(path))
        Image.fromarray(np.where(ids == 1, 255, 0).astype(np.uint8)).save(path)


@fault
def split_that_cannot_be_named(mine: Mine) -> None:
    name = mine.random.choice(["val-1", "all", "2024", "v al", "val.old"])
    for kind in ("images", "annotations"):
        (mine.root / kind / "val").rename(mine.root / kind / name)


@fault
def empty_split(mine: Mine) -> None:
    for kind in ("images", "annotations"):
        (mine.root / kind / "test").mkdir()


@fault
def images_without_labels(mine: Mine) -> None:
    (mine.root / "images/test").mkdir()
    shutil.copy(mine.image(), mine.root / "images/test")


@fault
def split_without_its_labels(mine: Mine) -> None:
    shutil.rmtree(mine.root / "annotations" / mine.random.choice(["train", "val"]))


@fault
def split_without_its_images(mine: Mine) -> None:
    shutil.rmtree(mine.root / "images" / mine.random.choice(["train", "val"]))


@fault
def folder_of_another_name(mine: Mine) -> None:
    old, new = mine.random.choice(
        [("annotations", "labels"), ("images", "Images"), ("images/val", "images/valid")]
    )
    (mine.root / old).rename(mine.root / new)


@fault
def images_beside_the_splits(mine: Mine) -> None:
    image = mine.image()
    for kind, path in (("annotations", mine.label_of(image)), ("images", image)):
        path.rename(mine.root / kind / path.name)


@fault
def classes_that_windows_has_written(mine: Mine) -> None:
    path = mine.root / "classes.json"
    text = path.read_text().replace("{", "{\r\n")
    path.write_bytes(text.encode(mine.random.choice(["utf-8-sig", "utf-16", "utf-8"])))


@fault
def classes_that_are_no_json(mine: Mine) -> None:
    path = mine.root / "classes.json"
    text = path.read_text()
    path.write_text(mine.random.choice(["", "[]", "null", text[:-1], text.replace("]}", "],}")]))


@fault
def field_that_is_wrong(mine: Mine) -> None:
    key, value = mine.random.choice(
        [
            *(("id", value) for value in (0, "1", 1.5, True, -1, 256, None, 255)),
            *(("color", value) for value in ([1, 2], "red", [1, 2, 300], [1, 2, 3, 4], None, 7)),
            *(("name", value) for value in (None, "sky", 7, "", ["a"])),
        ]
    )
    mine.edit(lambda fields: fields["classes"][1].update({key: value}))


@fault
def field_that_is_missing(mine: Mine) -> None:
    key = mine.random.choice(["id", "name", "color", "classes"])
    mine.has_colors = key != "color"
    mine.edit(lambda fields: (fields if key == "classes" else fields["classes"][1]).pop(key))


@fault
def classes_written_otherwise(mine: Mine) -> None:
    names = [name for name, _ in CLASSES]
    classes = mine.random.choice(
        [names, dict(zip("014", names, strict=True)), dict(zip(names, "014", strict=True))]
    )
    mine.has_colors = False
    classes = mine.random.choice([classes, {"classes": classes}])
    (mine.root / "classes.json").write_text(json.dumps(classes))


@fault
def several_values_of_a_class(mine: Mine) -> None:
    more = mine.random.choice([9, 255, 1, 1000, -1])
    mine.edit(lambda fields: fields["classes"][2].update(id=[4, more]))
    if more > 0:
        _change_label(mine, lambda ids: np.where(ids == 4, more, ids).astype(np.uint16))


@fault
def labels_elsewhere(mine: Mine) -> None:
    (mine.root / "annotations").rename(mine.root / "masks")
    for path in (mine.root / "masks").rglob("*.png"):
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    pattern = mine.random.choice(
        [
            *("masks/{split}/{stem}_mask.png", "masks/{split}/{stem}_mask", "masks/{split}"),
            *("masks", "annotations/{split}", "masks/{split}/{stem}_Mask.png", "masks/*_mask.png"),
        ]
    )
    mine.edit(lambda fields: fields.update(labels=pattern))


@fault
def split_of_another_name(mine: Mine) -> None:
    (mine.root / "images/val").rename(mine.root / "images/valid")
    images = {"train": "images/train", "val": mine.random.choice(["images/valid", "images/val"])}
    mine.edit(lambda fields: fields.update(images=images))


@fault
def share_for_validation(mine: Mine) -> None:
    share = mine.random.choice([0, 0.2, 1, "20 %", True])
    if mine.random.random() < 0.5:
        mine.edit(lambda fields: fields.update(images="images/train", labels="annotations/train"))
    mine.edit(lambda fields: fields.update(val_share=share))


@fault
def field_with_another_name(mine: Mine) -> None:
    mine.edit(lambda fields: fields.update(ignore_id=fields.pop("ignore_ids")))


@fault
def classes_that_contradict(mine: Mine) -> None:
    change = mine.random.choice(
        [
            {"ignore_ids": [4]},
            {"ignore_ids": "255"},
            {"ignore_ids": 255},
            {"classes": []},
            {"label_orientation": "sideways"},
            {"ignore_colors": [COLORS[0]]},
            {"ignore_ids": [], "ignore_colors": [[1, 2, 3]]},
            {"ignore_ids": [255, 255]},
            {"ignore_colors": [[1, 2]]},
            {"ignore_colors": [[1, 2, 300]]},
        ]
    )
    mine.edit(lambda fields: fields.update(change))


@fault
def name_of_the_dataset(mine: Mine) -> None:
    mine.name = mine.random.choice(["../mine", "", ".mine", "a/b", "my data", "mine-2.0", "shapes"])


@fault
def folder_above(mine: Mine) -> None:
    above = mine.root.with_name("above")
    above.mkdir()
    mine.root.rename(above / "mine")
    mine.source = above
    if mine.random.random() < 0.5:
        shutil.copytree(above / "mine", above / "copy")


@fault
def classes_only_in_an_older_copy(mine: Mine) -> None:
    shutil.copytree(mine.root, mine.root / "older")
    (mine.root / "classes.json").unlink()


@fault
def archive_in_another_form(mine: Mine) -> None:
    top, separator = mine.random.choice(["", "top/", "a/b/"]), mine.random.choice(["/", "\\"])
    mine.zip(lambda name: (top + name).replace("/", separator))


@fault
def archive_that_is_not_to_be_trusted(mine: Mine) -> None:
    name = mine.random.choice(["../x", "/x", "..\\x", "C:\\x", "C:/x", "a/../../x"])
    with zipfile.ZipFile(mine.zip(), "a") as archive:
        archive.writestr(name, b"x")


@fault
def archive_with_a_link(mine: Mine) -> None:
    with zipfile.ZipFile(mine.zip(), "a") as archive:
        entry = zipfile.ZipInfo("images/train/z.png")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")


@fault
def archive_with_an_entry_twice(mine: Mine) -> None:
    with zipfile.ZipFile(mine.zip(), "a") as archive:
        archive.writestr("classes.json", (mine.root / "classes.json").read_bytes())


@fault
def damaged_archive(mine: Mine) -> None:
    path = mine.zip()
    data = bytearray(path.read_bytes())
    if mine.random.random() < 0.5:
        del data[len(data) // 2 :]
    else:
        place = data.index(b"\x89PNG") + 60
        data[place : place + 8] = bytes(8)
    path.write_bytes(data)
