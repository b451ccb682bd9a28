"""The model card of a model that is handed on: what it is, can do and comes from."""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.conversion.hub import SCHEME, split_address

_PAPER = "https://arxiv.org/abs/2105.05633"

# Totals of a report; those of the second group are measured on demand.
_ALWAYS = {
    "mean_iou": "mean IoU",
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean accuracy",
}
_ON_DEMAND = {"mean_boundary_iou": "mean boundary IoU", "calibration_error": "calibration error"}


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a model card tells.

    Attributes:
      repo: "owner/name" on the hub.
      description: of the model.
      num_params: numbers in its parameters.
      digest: see `checksums.weights_digest`.
      license: fields of the card: `license`, perhaps `license_name` and `license_link`.
      report: of an evaluation of these weights, as `report.json`; None where there is none.
      legend: name of a picture of the classes' colours, beside the card.
      pictures: names of other pictures beside the card.
    """

    repo: str
    description: ModelDescription
    num_params: int
    digest: str
    license: Mapping[str, str]
    report: Mapping[str, Any] | None
    legend: str
    pictures: Sequence[str] = ()

    @property
    def scores(self) -> dict[str, float]:
        """Totals of the evaluation by name; without a report what the provenance says."""
        said = self.report or self.description.provenance
        return {n: said[n] for n in (*_ALWAYS, *_ON_DEMAND) if said.get(n) is not None}

    @property
    def scored_on(self) -> dict[str, Any]:
        """Dataset, split, number of images and protocol of the scores."""
        return self.description.provenance.get("scored_on", {})


def lineage(provenance: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A model's provenance, that of the weights it began with, that of theirs, and so on."""
    found = [provenance]
    while isinstance(before := found[-1].get("init_from", found[-1].get("parent")), Mapping):
        found.append(before)
    return found


def model_card(facts: Facts) -> str:
    """Text of the `README.md` that goes with the weights."""
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(facts), sort_keys=False, allow_unicode=True)}---",
        f"# {facts.repo.rpartition('/')[2]}",
        _what_it_is(facts),
        _usage(facts),
        *(f"![Segmentation]({name})" for name in facts.pictures),
        "## Numbers",
        _numbers(facts),
        "## Classes",
        f"![Colours]({facts.legend})",
        _classes(facts),
        "## How pictures are treated",
        _protocol(facts.description),
        "## Where it comes from",
        _origin(facts),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(facts: Facts) -> dict[str, Any]:
    bases = [_base(step) for step in lineage(facts.description.provenance)]
    base = next(filter(None, bases), None)
    # No `datasets`: the hub takes these for names of its own.
    return {
        **facts.license,
        "library_name": "segmenter_jax",
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", "segmenter", "vision-transformer", "jax", "flax"],
        **({"base_model": base} if base else {}),
        **({"model-index": [_index(facts)]} if facts.scores and facts.scored_on else {}),
    }


def _base(step: Mapping[str, Any]) -> str | None:
    source = str(step.get("source", ""))
    return split_address(source)[0] if source.startswith(SCHEME) else None


def _index(facts: Facts) -> dict[str, Any]:
    on, names = facts.scored_on, _ALWAYS | _ON_DEMAND
    return {
        "name": facts.repo.rpartition("/")[2],
        "results": [
            {
                "task": {"type": "image-segmentation", "name": "Semantic segmentation"},
                "dataset": {"type": on["dataset"], "name": on["dataset"], "split": on["split"]},
                "metrics": [
                    {"type": name, "name": f"{names[name]} (%)", "value": round(100 * value, 2)}
                    for name, value in facts.scores.items()
                ],
            }
        ],
    }


def _what_it_is(facts: Facts) -> str:
    m = facts.description.model
    blocks = _counted(m.decoder_depth, "block")
    decoder = {
        "linear": "a linear decoder",
        "mask": f"a mask transformer of {blocks}",
        "eomt": f"{_counted(m.num_queries, 'query', 'queries')} in its last {blocks} (EoMT)",
    }[m.decoder]
    return (
        f"Semantic segmentation into {_counted(m.num_classes, 'class', 'classes')} with "
        f"[Segmenter]({_PAPER}): a Vision Transformer of {_counted(m.depth, 'block')} (width "
        f"{m.width}, {_counted(m.num_heads, 'head')}, patches of {m.patch_size} x {m.patch_size} "
        f"pixels) and {decoder}; {facts.num_params:,} parameters."
    )


def _usage(facts: Facts) -> str:
    return f"""\
```python
import segmenter_jax  # pip install "segmenter_jax[hub]"

seg = segmenter_jax.load("{SCHEME}{facts.repo}")
mask = seg.predict("photo.jpg")  # (H, W) class ids at the picture's own size
seg.overlay("photo.jpg").save("overlay.png")
```"""


def _numbers(facts: Facts) -> str:
    if not facts.scores:
        return "Nothing was measured with these weights in this form."
    names, on = _ALWAYS | _ON_DEMAND, facts.scored_on
    measured = [f"| {names[name]} | {100 * value:.2f} |" for name, value in facts.scores.items()]
    missing = [name for key, name in _ON_DEMAND.items() if key not in facts.scores]
    protocol = on.get("protocol") or (facts.report or {}).get("protocol", "not known")
    if "scales 1, flip no" in protocol:
        missing.append("several scales and flips")
    missing += [f"pictures of other kinds than those of {on.get('dataset', 'this split')}", "speed"]
    where = (
        f"On split `{on['split']}` of `{on['dataset']}`, {_counted(on['num_images'], 'picture')}"
        if on
        else "On the split that its run was evaluated on"
    )
    lines = [
        f"{where}, at the labels' own sizes ({protocol}):",
        "\n".join(["| | % |", "| --- | --- |", *measured]),
        "Classes that occur in neither labels nor predictions are left out of the means. The best "
        "of the evaluations of a run is kept, by this same split, so the numbers flatter it.",
    ]
    if facts.report is None:
        missing.insert(0, "single classes (the run's report is of another step)")
    return "\n\n".join([*lines, f"Not measured: {', '.join(missing)}."])


def _classes(facts: Facts) -> str:
    d = facts.description
    columns = {"iou": "IoU (%)", "accuracy": "accuracy (%)", "pixel_share": "share of pixels (%)"}
    rows = (facts.report or {}).get("classes")
    lines = [("id", "class", "colour", *(columns.values() if rows else ()))]
    lines.append(("---",) * len(lines[0]))
    for i, (name, color) in enumerate(zip(d.classes, d.colors, strict=True)):
        values = [rows[i][column] for column in columns] if rows else []
        cells = ["" if value is None else f"{100 * value:.2f}" for value in values]
        lines.append((str(i), _text(name), "`#{:02x}{:02x}{:02x}`".format(*color), *cells))
    return _table(lines)


def _protocol(d: ModelDescription) -> str:
    size = (
        "kept at their own size"
        if d.base_size is None
        else f"scaled into {d.base_size} pixels for the short side, at most "
        f"{d.aspect_bound * d.base_size:.0f} for the long one"
    )
    return (
        f"Pictures of {_counted(d.model.in_channels, 'channel')} are {size}, normalised with mean "
        f"{_list(d.mean)} and standard deviation {_list(d.std)} of values in 0..1, and cut into "
        f"windows of {d.window} pixels every {d.stride}, whose logits are averaged. All of this "
        f"stands in `model.json` and is done by `load`. Labels of value {d.ignore_label} count "
        "nowhere."
    )


def _origin(facts: Facts) -> str:
    lines = [f"- SHA-256 of names and values of the weights: `{facts.digest}`"]
    for step in lineage(facts.description.provenance):
        if step.get("dataset"):
            steps = f", {step['step']} steps" if "step" in step else ""
            start = "random" if step.get("init_from") is None else "those that follow"
            lines.append(f"- Trained on `{step['dataset']}`{steps}; first weights: {start}")
        if "source" in step:
            source = step["source"]
            # Where it lay on somebody's machine says nothing.
            shown = source if "://" in source else os.path.basename(source)
            lines.append(
                f"- From `{shown}`, read as {step['format']}; licence "
                f"{step.get('license', 'not told')}; SHA-256 of its files `{step['sha256']}`"
            )
            if options := step.get("options"):
                lines.append(f"- Read with the options `{json.dumps(options)}`")
    lines.append(
        "- The data have licences of their own, which may limit what the weights are used for; "
        "nothing is known here of data that earlier weights were trained on beyond what is said "
        "above"
    )
    return "\n".join(lines)


def _table(rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _text(text: str) -> str:
    """Text that Markdown takes as it is."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]()<>#|~&!" else c for c in " ".join(text.split()))


def _list(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
