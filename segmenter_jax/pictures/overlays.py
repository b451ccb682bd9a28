"""Pictures of segmentations: overlays and legends."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colors = Sequence[tuple[int, int, int]]

_FONT_SIZE = 15
_ROW_HEIGHT = 24
_SWATCH = 16
_MARGIN = 8


def colorize(ids: np.ndarray, colors: Colors) -> np.ndarray:
    """Paints every class in its colour.

    Args:
      ids: integers (H, W); values beyond the colours are painted black.
      colors: one (red, green, blue) in 0..255 per class.

    Returns:
      uint8 (H, W, 3).
    """
    table = np.zeros((len(colors) + 1, 3), np.uint8)
    table[:-1] = colors
    return table[np.minimum(ids, len(colors))]


def as_rgb(image: np.ndarray) -> np.ndarray:
    """What to show of an image (H, W, C): its first three channels, or the only one as grey."""
    return image[..., :3] if image.shape[2] >= 3 else np.repeat(image[..., :1], 3, axis=2)


def overlay(image: np.ndarray, ids: np.ndarray, colors: Colors, alpha: float = 0.5) -> np.ndarray:
    """Blends class colours over an image; pixels of no class keep the image.

    Args:
      image: uint8 (H, W, C); the first three channels are shown, or the only one as grey.
      ids: integers (H, W).
      colors: one (red, green, blue) in 0..255 per class; an id beyond them is no class.
      alpha: weight of the colours, 0..1.

    Returns:
      uint8 (H, W, 3).

    Raises:
      ValueError: the sizes differ, or alpha is outside 0..1.
    """
    if image.shape[:2] != ids.shape:
        raise ValueError(f"image {image.shape[:2]} and ids {ids.shape} differ in size")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in 0..1, got {alpha}")
    base = as_rgb(image)
    blended = base * np.float32(1 - alpha) + colorize(ids, colors) * np.float32(alpha)
    is_class = (ids < len(colors))[..., None]
    return np.where(is_class, np.rint(blended).astype(np.uint8), base)


def palette_image(ids: np.ndarray, colors: Colors) -> Image.Image:
    """Class ids uint8 (H, W) as a picture that holds the ids and shows the colours."""
    picture = Image.fromarray(ids.astype(np.uint8), mode="L")
    picture.putpalette(np.asarray(colors[:256], np.uint8).tobytes())
    return picture


def grey_image(values: np.ndarray, largest: float = 1.0) -> Image.Image:
    """Values (H, W) in 0..`largest` as a grey picture, black to white."""
    return Image.fromarray(np.rint(np.clip(values / largest, 0, 1) * 255).astype(np.uint8))


def legend(
    present: Sequence[int], classes: Sequence[str], colors: Colors, columns: int = 1
) -> Image.Image:
    """A picture that names colours.

    Args:
      present: class ids to show, in this order.
      classes: one name per class.
      colors: one (red, green, blue) in 0..255 per class.
      columns: columns to fill, top to bottom.

    Returns:
      An RGB picture, dark text on white.
    """
    font = ImageFont.load_default(_FONT_SIZE)
    names = [classes[i] for i in present]
    text_width = max((int(font.getlength(name)) for name in names), default=0)
    column_width = _SWATCH + text_width + 3 * _MARGIN
    rows = max(-(-len(names) // columns), 1)
    size = (columns * column_width, rows * _ROW_HEIGHT + _MARGIN)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for n, (class_id, name) in enumerate(zip(present, names, strict=True)):
        left = n // rows * column_width + _MARGIN
        top = n % rows * _ROW_HEIGHT + _MARGIN
        box = (left, top, left + _SWATCH, top + _SWATCH)
        draw.rectangle(box, fill=tuple(colors[class_id]), outline=(90, 90, 90))
        position = (left + _SWATCH + _MARGIN, top + _SWATCH // 2)
        draw.text(position, name, fill=(20, 20, 20), font=font, anchor="lm")
    return picture
