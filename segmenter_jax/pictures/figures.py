"""Figures with axes: attention maps, training curves, scores of classes.

Matplotlib is imported when a figure is made.
"""

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from segmenter_jax.pictures.overlays import as_rgb

# Okabe and Ito's colours, told apart with any kind of colour vision; line styles differ as well.
_LINE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LINE_STYLES = ("-", "--", "-.", ":")

# Scalars of a run worth a panel: name in `metrics.jsonl`, and in words.
_PANELS = {
    "train/loss": "loss",
    "train/learning_rate": "learning rate",
    "train/grad_norm": "norm of the gradients",
    "eval/mean_iou": "mean IoU, evaluation split",
    "eval/pixel_accuracy": "pixel accuracy, evaluation split",
    "eval/mean_accuracy": "mean accuracy, evaluation split",
}

# More classes than these get no names, or no numbers in the cells.
_MAX_NAMED_CLASSES = 200
_MAX_NUMBERED_CLASSES = 20


def _new_figure(width: float, height: float) -> Any:
    """A Matplotlib figure of a size in inches, apart from the state of `pyplot`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures need Matplotlib: pip install matplotlib") from error
    return Figure(figsize=(width, height), layout="constrained")


def _short(names: Sequence[str]) -> list[str]:
    """Names of classes that leave room for what is drawn beside them."""
    return [textwrap.shorten(name, 30, placeholder="...") for name in names]


def _render(figure: Any, dpi: int = 110) -> Image.Image:
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=dpi, facecolor="white")
    return Image.open(data).convert("RGB")


def attention_figure(
    image: np.ndarray,
    maps: Mapping[str, np.ndarray],
    patch_size: int,
    title: str,
    patch: tuple[int, int] | None = None,
) -> Image.Image:
    """Heat maps over a picture, each on its own scale from 0.

    Args:
      image: uint8 (h, w, C).
      maps: float (rows, columns) by name, one value for each patch; at least one.
      patch_size: side of a patch, in pixels.
      title: above all.
      patch: (row, column) of a patch to mark.

    Returns:
      An RGB picture: the image, then a panel for each map.
    """
    height, width = image.shape[:2]
    count = len(maps) + 1
    columns = min(count, 4 if count % 4 in (0, 3) or count % 3 else 3)
    rows = -(-count // columns)
    panel = 3.2
    figure = _new_figure(panel * columns, rows * (panel * height / width + 0.35) + 1.0)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    grid = next(iter(maps.values())).shape
    extent = (-0.5, grid[1] * patch_size - 0.5, grid[0] * patch_size - 0.5, -0.5)
    for axis in axes:
        axis.set_axis_off()
    axes[0].imshow(as_rgb(image))
    axes[0].set_title("picture", fontsize=12)
    for axis, (name, values) in zip(axes[1:], maps.items(), strict=False):
        axis.imshow(as_rgb(image).mean(axis=2), cmap="gray", vmin=0, vmax=255)
        scaled = values / max(values.max(), np.finfo(np.float32).tiny)
        shown = axis.imshow(scaled, cmap="viridis", alpha=0.7, extent=extent, vmin=0, vmax=1)
        axis.set_title(f"{name}, up to {values.max():.2g}", fontsize=12)
    bar = figure.colorbar(shown, ax=axes, location="bottom", shrink=0.4, aspect=30, pad=0.03)
    bar.set_ticks([0, 1], labels=["0", "largest of the panel"], fontsize=10)
    for axis in axes[:count]:
        # The last patches may lie in the padding.
        axis.set_xlim(-0.5, width - 0.5)
        axis.set_ylim(height - 0.5, -0.5)
        if patch is not None:
            _mark_patch(axis, patch, patch_size)
    figure.suptitle(title, fontsize=13)
    return _render(figure)


def _mark_patch(axis: Any, patch: tuple[int, int], patch_size: int) -> None:
    from matplotlib.patches import Rectangle

    corner = patch[1] * patch_size - 0.5, patch[0] * patch_size - 0.5
    for color, width in (("black", 3.5), ("white", 1.5)):
        axis.add_patch(
            Rectangle(corner, patch_size, patch_size, fill=False, edgecolor=color, linewidth=width)
        )


def curves_figure(runs: Mapping[str, Mapping[str, tuple[list[int], list[float]]]]) -> Image.Image:
    """Training and evaluations against steps, several runs in each panel.

    Args:
      runs: steps and values of every scalar, see `run_log.read_metrics`, by the name to show.

    Returns:
      An RGB picture.
    """
    shown = {n: label for n, label in _PANELS.items() if any(n in run for run in runs.values())}
    columns = min(len(shown), 3)
    rows = -(-len(shown) // columns)
    figure = _new_figure(4.4 * columns, 3.3 * rows)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    last = max(steps[-1] for run in runs.values() for steps, _ in run.values())
    for axis, (scalar, label) in zip(axes, shown.items(), strict=False):
        for n, (name, run) in enumerate(runs.items()):
            if scalar in run:
                axis.plot(
                    *run[scalar],
                    label=name,
                    color=_LINE_COLORS[n % len(_LINE_COLORS)],
                    linestyle=_LINE_STYLES[n % len(_LINE_STYLES)],
                    marker="o" if len(run[scalar][0]) < 15 else None,
                    markersize=4,
                    linewidth=1.6,
                )
        axis.set_title(label, fontsize=12)
        axis.set_xlabel("step", fontsize=11)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=10)
        axis.locator_params(axis="x", integer=True)
        axis.set_xlim(0, 1.03 * last)
        axis.set_ylim(0, 1.05 * axis.dataLim.ymax)
    axes[0].legend(fontsize=10)
    return _render(figure)


def confusion_figure(matrix: np.ndarray, classes: Sequence[str], title: str) -> Image.Image:
    """Confusion matrix in percent of each class's pixels.

    Args:
      matrix: integers (K, K), row = label, column = prediction.
      classes: K names.
      title: above the figure.

    Returns:
      An RGB picture; rows of classes without pixels are left white.
    """
    count = len(classes)
    with np.errstate(invalid="ignore"):
        percent = 100 * np.true_divide(matrix, matrix.sum(axis=1, keepdims=True))
    # What names of so many classes need.
    side = max(4.0, 0.42 * min(count, 40), 0.17 * count)
    figure = _new_figure(side + 2.5, side + 1.5)
    axis = figure.subplots()
    shown = axis.imshow(percent, cmap="cividis", vmin=0, vmax=100)
    font = 10 if count <= 40 else 8
    if count <= _MAX_NAMED_CLASSES:
        axis.set_xticks(range(count), _short(classes), rotation=90, fontsize=font)
        axis.set_yticks(range(count), _short(classes), fontsize=font)
    if count <= _MAX_NUMBERED_CLASSES:
        for (row, column), value in np.ndenumerate(percent):
            if np.isfinite(value):
                color = "black" if value > 55 else "white"
                axis.text(
                    column, row, f"{value:.0f}", ha="center", va="center", color=color, fontsize=9
                )
    axis.set_xlabel("prediction", fontsize=12)
    axis.set_ylabel("label", fontsize=12)
    axis.set_title(title, fontsize=11)
    figure.colorbar(shown, ax=axis, shrink=0.8, label="% of the label's pixels")
    return _render(figure)


def classes_figure(iou: Mapping[str, np.ndarray], classes: Sequence[str]) -> Image.Image:
    """Bars of the IoU of each class by several models, the largest gains of the last one on top.

    Args:
      iou: float (K,) by the name of the model, NaN where a class has none; at least one.
      classes: K names.

    Returns:
      An RGB picture; beside a class, how many points the last model is above the first.
    """
    first, last = np.array([*iou.values()])[[0, -1]] * 100
    gain = last - first if len(iou) > 1 else last
    order = np.argsort(np.where(np.isnan(gain), -np.inf, gain), kind="stable")
    height = 0.8 / len(iou)
    figure = _new_figure(8.0, 1.2 + 0.17 * (1 + len(iou)) * len(classes))
    axis = figure.subplots()
    for n, (name, values) in enumerate(iou.items()):
        places = np.arange(len(classes)) + 0.4 - (n + 0.5) * height
        color = _LINE_COLORS[n % len(_LINE_COLORS)]
        label = f"{name}, mean {100 * np.nanmean(values):.1f}"
        axis.barh(places, 100 * np.asarray(values)[order], height, color=color, label=label)
    for place, i in enumerate(order):
        if len(iou) > 1 and np.isfinite(gain[i]):
            axis.text(101, place, f"{gain[i]:+.1f}", va="center", fontsize=9)
    axis.set_yticks(range(len(classes)), _short([classes[i] for i in order]), fontsize=9)
    axis.set(xlim=(0, 100), ylim=(-0.6, len(classes) - 0.4))
    axis.set_xlabel("IoU, %", fontsize=11)
    axis.grid(alpha=0.3, axis="x")
    figure.legend(fontsize=10, loc="outside upper center")
    return _render(figure)


def calibration_figure(
    confidence: np.ndarray, accuracy: np.ndarray, share: np.ndarray, title: str
) -> Image.Image:
    """Reliability diagram: accuracy against confidence, with each bin's share of the pixels.

    Args:
      confidence, accuracy: means of each bin, NaN where it is empty; (bins,).
      share: of the pixels, (bins,).
      title: above the figure.

    Returns:
      An RGB picture.
    """
    figure = _new_figure(4.8, 4.4)
    axis = figure.subplots()
    edges = np.linspace(0, 1, len(share) + 1)
    axis.bar(edges[:-1], share, 1 / len(share), align="edge", color="#BBBBBB", label="pixels")
    axis.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle=":", label="calibrated")
    filled = np.isfinite(confidence)
    axis.plot(
        confidence[filled], accuracy[filled], color=_LINE_COLORS[0], marker="o", label="model"
    )
    axis.set(xlim=(0, 1), ylim=(0, 1))
    axis.set_xlabel("confidence", fontsize=11)
    axis.set_ylabel("accuracy; share of the pixels", fontsize=11)
    axis.set_title(title, fontsize=11)
    axis.legend(fontsize=10, loc="upper left")
    axis.grid(alpha=0.3)
    return _render(figure)
