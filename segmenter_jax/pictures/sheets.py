"""Contact sheets: many small pictures with captions on one."""

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_FONT_SIZE = 14
_CAPTION_HEIGHT = 24
_GAP = 8


@dataclasses.dataclass(frozen=True, eq=False)
class SheetEntry:
    """One place of a contact sheet: pictures uint8 (H, W, 3) side by side, and what they are."""

    pictures: Sequence[np.ndarray]
    caption: str


def thumbnail(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture uint8 (H, W, 3) scaled so that its longer side is `side` pixels."""
    scale = side / max(picture.shape[:2])
    size = tuple(max(round(n * scale), 1) for n in picture.shape[1::-1])
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def contact_sheet(entries: Sequence[SheetEntry], columns: int, width: int = 240) -> Image.Image:
    """Arranges pictures in rows, each scaled into a square box above its caption.

    Args:
      entries: what to show, row by row; at least one, with equally many pictures each.
      columns: entries in a row.
      width: side of a picture's box, in pixels.

    Returns:
      An RGB picture, dark text on white.
    """
    font = ImageFont.load_default(_FONT_SIZE)
    columns = min(columns, len(entries))
    parts = len(entries[0].pictures)
    boxes = [[Image.fromarray(thumbnail(p, width)) for p in entry.pictures] for entry in entries]
    rows = [range(i, min(i + columns, len(entries))) for i in range(0, len(entries), columns)]
    heights = [max(p.height for i in row for p in boxes[i]) + _CAPTION_HEIGHT for row in rows]
    cell = parts * (width + 2) + _GAP
    sheet = Image.new(
        "RGB", (columns * cell + _GAP, sum(heights) + _GAP * (len(rows) + 1)), "white"
    )
    draw = ImageDraw.Draw(sheet)
    top = _GAP
    for row, height in zip(rows, heights, strict=True):
        for column, i in enumerate(row):
            left = _GAP + column * cell
            for n, picture in enumerate(boxes[i]):
                sheet.paste(picture, (left + n * (width + 2), top))
            bottom = top + max(p.height for p in boxes[i])
            caption = _shorten(entries[i].caption, font, cell - _GAP)
            position = (left, bottom + _CAPTION_HEIGHT // 2)
            draw.text(position, caption, fill=(20, 20, 20), font=font, anchor="lm")
        top += height + _GAP
    return sheet


def stack(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below each other, flush left on white."""
    size = (max(p.width for p in pictures), sum(p.height for p in pictures))
    whole = Image.new("RGB", size, "white")
    top = 0
    for picture in pictures:
        whole.paste(picture, (0, top))
        top += picture.height
    return whole


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Cuts the beginning off a text that is too wide: names differ at their ends."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength("..." + text) > width:
        text = text[1:]
    return "..." + text
