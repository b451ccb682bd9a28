"""Numbers and pictures as a web page that needs nothing but itself."""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from segmenter_jax.pictures.overlays import Colors
from segmenter_jax.pictures.viewer import data_url

# Longest side of a picture on a page, in pixels.
_SHOWN_SIDE = 1600

# More classes than these get no numbers in the cells of their matrix; smaller shares get no text.
_MAX_NUMBERED_CLASSES = 40
_SMALLEST_PERCENT = 0.05

# Of 100 %, right and wrong; smaller shares are nearer to white.
_RIGHT, _WRONG = (0, 90, 150), (200, 70, 0)

_CSS = """
body {font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto;
  padding: 1.5em 2em 4em; max-width: 1240px;}
h1 {font-size: 1.7em; margin: 0;} h2 {font-size: 1.25em; margin: 2.2em 0 .6em;
  padding-bottom: .2em; border-bottom: 1px solid #ccc;} h3 {font-size: 1em; margin: 0 0 .3em;}
p {margin: .4em 0;} .note {color: #555;}
nav {margin: .8em 0; display: flex; gap: .3em 1.2em; flex-wrap: wrap;} a {color: #005a96;}
.tiles {display: flex; gap: 1em; flex-wrap: wrap; margin: 1.2em 0 .8em;}
.tiles div {border: 1px solid #ccc; border-radius: 6px; padding: .5em 1.1em; min-width: 7.5em;}
.tiles b {display: block; font-size: 1.6em; font-weight: 600;} .tiles span {color: #555;}
table {border-collapse: collapse; font-variant-numeric: tabular-nums;}
th, td {text-align: left; vertical-align: top; padding: .15em .8em .15em 0;}
th {font-weight: 600;} td.number, th.number {text-align: right;}
.sortable {width: 100%;} .sortable thead th {cursor: pointer; border-bottom: 1px solid #999;}
.sortable td {border-bottom: 1px solid #eee; vertical-align: middle;}
.swatch {display: inline-block; width: .9em; height: .9em; border: 1px solid #5a5a5a;
  margin-right: .5em; vertical-align: -1px;}
.bar {background: #e8eef3; width: 100%; min-width: 12em;} .bar i {display: block; height: .9em;
  background: #005a96;}
.scroll {overflow: auto; max-height: 86vh; border: 1px solid #ccc;}
.matrix {border-collapse: separate; border-spacing: 1px; line-height: 1.1;}
.matrix th, .matrix td {padding: 0; font-size: 13px; font-weight: normal; white-space: nowrap;}
.matrix td {min-width: 3.4em; height: 2.2em; text-align: center; vertical-align: middle;}
.matrix td.light {color: #fff;}
.matrix thead th {position: sticky; top: 0; background: #fff; vertical-align: bottom;}
.matrix tbody th, .matrix thead span {overflow: hidden; text-overflow: ellipsis;}
.matrix thead span {writing-mode: vertical-rl; transform: rotate(180deg); padding: .4em 0;
  max-height: 13em;}
.matrix tbody th {position: sticky; left: 0; background: #fff; padding: 0 .6em; text-align: right;
  vertical-align: middle; max-width: 13em;}
.matrix thead th:first-child {left: 0; z-index: 1; padding: .6em; color: #555;}
.dense.matrix td {min-width: 13px; height: 13px;} .dense.matrix th {font-size: 11px;}
.dense tbody tr:hover th, .dense td:hover {background: #ff0 !important;}
figure {margin: 0 0 1.2em;} figure img {max-width: 100%; display: block;}
figcaption {color: #555; overflow-wrap: anywhere;}
.legend {display: flex; flex-wrap: wrap; gap: .1em 1.4em; padding: 0; margin: .4em 0 1em;
  list-style: none;}
.groups {columns: 3 21em; column-gap: 2em;} .groups > div {break-inside: avoid;
  margin-bottom: 1em;}
.facts td {overflow-wrap: anywhere;} .facts th {font-weight: normal; color: #555;
  white-space: nowrap;}
pre {background: #f4f4f4; padding: .8em 1em; overflow: auto; font-size: 12.5px; margin: .4em 0;}
"""

# Sorts a table by the column that was clicked, and the other way round at the next click.
_JS = """
for (const head of document.querySelectorAll('.sortable thead th')) {
  head.addEventListener('click', () => {
    const body = head.closest('table').tBodies[0], column = head.cellIndex;
    const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const compare = (a, b) => isNaN(key(a)) || isNaN(key(b))
      ? key(a).localeCompare(key(b)) : key(a) - key(b);
    const turn = head.dataset.order = head.dataset.order === '1' ? '-1' : '1';
    body.append(...[...body.rows].sort((a, b) => turn * compare(a, b)));
  });
}
"""


def page_html(title: str, lead: str, sections: Mapping[str, str]) -> str:
    """A whole page.

    Args:
      title: of the page, as text.
      lead: HTML below it.
      sections: HTML by the text of its heading; empty ones are left out.
    """
    shown = {name: body for name, body in sections.items() if body}
    anchors = {name: name.lower().replace(" ", "-") for name in shown}
    links = "".join(f'<a href="#{anchors[name]}">{html.escape(name)}</a>' for name in shown)
    parts = "".join(
        f'<section id="{anchors[name]}"><h2>{html.escape(name)}</h2>{body}</section>\n'
        for name, body in shown.items()
    )
    name = html.escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{name}</title><style>{_CSS}</style></head>\n<body><h1>{name}</h1>{lead}"
        f"<nav>{links}</nav>\n{parts}<script>{_JS}</script></body></html>\n"
    )


def note_html(text: str) -> str:
    """A remark."""
    return f'<p class="note">{html.escape(text)}</p>'


def tiles_html(numbers: Mapping[str, str]) -> str:
    """The few numbers to see first, by name."""
    tiles = "".join(
        f"<div><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>"
        for name, value in numbers.items()
    )
    return f'<div class="tiles">{tiles}</div>'


def facts_html(value: Any) -> str:
    """JSON values: objects as tables of their fields, lists of texts line by line."""
    if isinstance(value, Mapping):
        rows = (
            f"<tr><th>{html.escape(str(name))}</th><td>{facts_html(inner)}</td></tr>"
            for name, inner in value.items()
        )
        return f'<table class="facts">{"".join(rows)}</table>'
    if isinstance(value, list) and value and all(isinstance(x, str) for x in value):
        return f"<pre>{html.escape(chr(10).join(value))}</pre>"
    return html.escape(value if isinstance(value, str) else json.dumps(value))


def groups_html(settings: Mapping[str, Any]) -> str:
    """A config: its groups beside each other, what is in none of them first."""
    groups = {name: group for name, group in settings.items() if isinstance(group, Mapping)}
    alone = {name: value for name, value in settings.items() if name not in groups}
    parts = ({"": alone} if alone else {}) | groups
    blocks = (
        f"<div>{f'<h3>{html.escape(name)}</h3>' * bool(name)}{facts_html(group)}</div>"
        for name, group in parts.items()
    )
    return f'<div class="groups">{"".join(blocks)}</div>'


def picture_html(picture: Image.Image, caption: str, form: str = "JPEG") -> str:
    """A picture with its name; a large one is scaled down."""
    shown = picture.convert("RGB")
    shown.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    name = html.escape(caption)
    return (
        f'<figure><img src="{data_url(shown, form)}" alt="{name}">'
        f"<figcaption>{name}</figcaption></figure>"
    )


def legend_html(classes: Sequence[str], colors: Colors) -> str:
    """The colours of all classes."""
    items = (
        f"<li>{_swatch(color)}{html.escape(name)}</li>"
        for name, color in zip(classes, colors, strict=True)
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _swatch(color: Sequence[int]) -> str:
    return f'<i class="swatch" style="background: rgb{tuple(map(int, color))}"></i>'


def classes_html(rows: Sequence[Mapping[str, Any]], matrix: np.ndarray, colors: Colors) -> str:
    """The table of classes, with a bar for each IoU and what a class is most taken for.

    Args:
      rows: "class", "iou", "accuracy" and "pixel_share" of each class; NaN where there is none.
      matrix: integers (K, K), row = label, column = prediction.
      colors: one (red, green, blue) in 0..255 per class, or none at all.
    """
    percent = _row_percent(matrix)
    np.fill_diagonal(percent, 0)
    lines = []
    for i, row in enumerate(rows):
        swatch = _swatch(colors[i]) if colors else ""
        bar = (
            f'<div class="bar"><i style="width: {100 * np.nan_to_num(row["iou"]):.1f}%"></i></div>'
        )
        most = int(percent[i].argmax())
        taken = f"{rows[most]['class']}, {percent[i, most]:.1f} %" if percent[i, most] else ""
        numbers = "".join(_number(row[name]) for name in ("iou", "accuracy", "pixel_share"))
        lines.append(
            f"<tr><td>{swatch}{html.escape(row['class'])}</td><td "
            f'data-value="{np.nan_to_num(row["iou"], nan=-1):.6f}">{bar}</td>{numbers}'
            f'<td data-value="{percent[i, most]:.4f}">{html.escape(taken)}</td></tr>'
        )
    return (
        '<table class="sortable"><thead><tr><th>class</th><th>IoU</th><th class="number">%</th>'
        '<th class="number">accuracy %</th><th class="number">pixels %</th>'
        f"<th>most taken for</th></tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )


def _number(share: float) -> str:
    text = "-" if np.isnan(share) else f"{100 * share:.2f}"
    return f'<td class="number" data-value="{np.nan_to_num(share, nan=-1):.6f}">{text}</td>'


def _row_percent(matrix: np.ndarray) -> np.ndarray:
    """Percent of each row's sum; zeros in a row without pixels."""
    return 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)


def confusion_html(matrix: np.ndarray, classes: Sequence[str]) -> str:
    """A confusion matrix in percent of each class's pixels; names stay in sight of any cell.

    Args:
      matrix: integers (K, K), row = label, column = prediction.
      classes: K names.
    """
    percent, dense = _row_percent(matrix), len(classes) > _MAX_NUMBERED_CLASSES
    names = [html.escape(name) for name in classes]
    head = "".join(f"<th><span>{name}</span></th>" for name in names)
    lines = []
    for row, name in enumerate(names):
        cells = (
            _cell(percent[row, column], row == column, f"{name} as {other}", dense)
            for column, other in enumerate(names)
        )
        lines.append(f"<tr><th>{name}</th>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table class="matrix{" dense" * dense}"><thead><tr>'
        f"<th>label \\ prediction</th>{head}</tr></thead>\n<tbody>"
        + "\n".join(lines)
        + "</tbody></table></div>"
    )


def _cell(percent: float, right: bool, name: str, dense: bool) -> str:
    if percent < _SMALLEST_PERCENT:
        return "<td></td>"
    # Shares of a few percent are to be seen, so colours grow with the root.
    weight = np.sqrt(percent / 100)
    color = "".join(f"{round(255 + weight * (c - 255)):02x}" for c in (_RIGHT if right else _WRONG))
    text = "" if dense else f"{percent:.0f}" if percent >= 0.5 else "·"
    light = ' class="light"' if weight > 0.6 and text else ""
    return f'<td{light} style="background:#{color}" title="{name}: {percent:.1f} %">{text}</td>'
