"""A segmentation as a piece of a web page: overlay, legend, and what is under the pointer."""

import base64
import html
import io
import json
from collections.abc import Sequence

import numpy as np
from PIL import Image

from segmenter_jax.pictures.overlays import Colors, as_rgb, colorize, palette_image

# Longest side of what is shown, in pixels; downloads have the size of the picture.
_SHOWN_SIDE = 1600

# Numbers that a byte can hold: ids beyond are told by two, and have no palette.
_BYTE = 256

VIEWER_CSS = """
.seg-figure {position: relative; margin: 0; cursor: crosshair; line-height: 0;}
.seg-figure img {width: 100%; display: block;}
.seg-figure .seg-mask {position: absolute; inset: 0; height: 100%;}
.seg-figure .seg-values {display: none;}
.seg-pixel {display: block; min-height: 1.6em; margin: .4em 0; font-variant-numeric: tabular-nums;}
.seg-bar {display: flex; gap: 1.5em; align-items: center; flex-wrap: wrap;}
.seg-legend {display: grid; grid-template-columns: repeat(auto-fill, minmax(11em, 1fr));
  gap: .2em 1.5em; padding: 0; margin: .6em 0; list-style: none;}
.seg-legend li {display: flex; gap: .5em; align-items: center; margin: 0; overflow-wrap: anywhere;}
.seg-legend i {width: 1em; height: 1em; border: 1px solid #5a5a5a; flex: none;}
.seg-legend b {margin-left: auto; font-weight: normal; white-space: nowrap;}
.seg-message {padding: .8em 1em; border-left: 4px solid #b3261e; overflow-wrap: anywhere;}
"""

# Runs once for the element that holds the page's piece, whatever is shown in it later.
VIEWER_JS = """
const canvas = document.createElement('canvas');
const context = canvas.getContext('2d', {willReadFrequently: true});
let drawn = null;
function pixelOf(event) {
  const figure = event.target.closest('.seg-figure');
  if (!figure) return null;
  const box = figure.getBoundingClientRect();
  const across = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 0.999999);
  const down = Math.min(Math.max((event.clientY - box.top) / box.height, 0), 0.999999);
  const {width, height} = figure.dataset;
  return {figure, across, down, x: Math.floor(across * width), y: Math.floor(down * height)};
}
element.addEventListener('mousemove', event => {
  const at = pixelOf(event);
  if (!at) return;
  const values = at.figure.querySelector('.seg-values');
  if (drawn !== values) {
    canvas.width = values.naturalWidth;
    canvas.height = values.naturalHeight;
    context.drawImage(values, 0, 0);
    drawn = values;
  }
  const column = Math.floor(at.across * canvas.width), row = Math.floor(at.down * canvas.height);
  const [low, high, confidence] = context.getImageData(column, row, 1, 1).data;
  const name = JSON.parse(at.figure.dataset.classes)[low + 256 * high];
  element.querySelector('.seg-pixel').textContent =
    `x ${at.x}, y ${at.y}: ${name}, confidence ${(confidence / 255).toFixed(2)}`;
});
element.addEventListener('input', event => {
  if (event.target.matches('.seg-opacity'))
    element.querySelector('.seg-mask').style.opacity = event.target.value / 100;
});
element.addEventListener('click', event => {
  const at = pixelOf(event);
  if (at) trigger('click', {x: at.x, y: at.y});
});
"""


def viewer_html(
    image: np.ndarray,
    ids: np.ndarray,
    confidence: np.ndarray,
    classes: Sequence[str],
    colors: Colors,
    stem: str,
) -> str:
    """A picture under its classes, with opacity, legend, and masks to download.

    It needs `VIEWER_CSS` and `VIEWER_JS`, and refers to no other file.

    Args:
      image: uint8 (H, W, C).
      ids: integers (H, W), all of them below the number of classes.
      confidence: float (H, W), in 0..1.
      classes: one name per class.
      colors: one (red, green, blue) in 0..255 per class.
      stem: how the downloads' names begin.
    """
    height, width = ids.shape
    painted = palette_image(ids, colors) if len(classes) <= _BYTE else None
    painted = painted or Image.fromarray(colorize(ids, colors))
    mask = data_url(painted)
    narrow = Image.fromarray(ids.astype(np.uint8 if len(classes) <= _BYTE else np.uint16))
    shown = Image.fromarray(as_rgb(image))
    shown.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    names = html.escape(json.dumps(list(classes)))
    links = "".join(
        f'<a href="{address}" download="{html.escape(stem)}_{kind}.png">{text}</a>'
        for kind, address, text in (
            ("ids", data_url(narrow), "Download class ids (PNG)"),
            ("colors", mask, "Download colours (PNG)"),
        )
    )
    return (
        f'<div class="seg-figure" data-width="{width}" data-height="{height}" '
        f'data-classes="{names}">'
        f'<img class="seg-picture" src="{data_url(shown, "JPEG")}" alt="picture">'
        f'<img class="seg-mask" style="opacity: 0.5" src="{mask}" alt="classes">'
        f'<img class="seg-values" src="{data_url(_values(ids, confidence, shown.size))}" alt="">'
        '</div><output class="seg-pixel">Point at a pixel; click for attention.</output>'
        '<div class="seg-bar"><label>Opacity <input class="seg-opacity" type="range" min="0" '
        f'max="100" value="50"></label>{links}</div>{_legend(ids, classes, colors)}'
    )


def message_html(text: str) -> str:
    """A sentence where a picture would be."""
    return f'<p class="seg-message" role="alert">{html.escape(text)}</p>' if text else ""


def _legend(ids: np.ndarray, classes: Sequence[str], colors: Colors) -> str:
    """The classes that are there, the largest share first."""
    counts = np.bincount(ids.ravel(), minlength=len(classes))
    rows = (
        f'<li><i style="background: rgb{tuple(map(int, colors[i]))}"></i>'
        f"{html.escape(classes[i])}<b>{100 * counts[i] / ids.size:.1f} %</b></li>"
        for i in np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    )
    return f'<ul class="seg-legend">{"".join(rows)}</ul>'


def _values(ids: np.ndarray, confidence: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """Id and confidence of a pixel as its colour, for a script to read; (width, height)."""
    sure = np.rint(255 * np.clip(confidence, 0, 1))
    planes = np.stack([ids % _BYTE, ids // _BYTE, sure], axis=2).astype(np.uint8)
    return Image.fromarray(planes).resize(size, Image.Resampling.NEAREST)


def data_url(picture: Image.Image, form: str = "PNG") -> str:
    """An address that holds a picture itself, for pages that refer to no other file."""
    content = io.BytesIO()
    picture.save(content, form, quality=90)
    return f"data:image/{form.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"
