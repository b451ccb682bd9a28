"""A model as files that are used without this package."""

import argparse
import dataclasses
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Mapping
from typing import Any

import jax
from etils import epath

from segmenter_jax.checkpoints.atomic import abandon, publish, recover, staging
from segmenter_jax.checkpoints.checksums import weights_digest
from segmenter_jax.checkpoints.description import ModelDescription
from segmenter_jax.conversion import onnx_files, stablehlo
from segmenter_jax.data.datasets import DATA_DIR, Dataset, build_dataset
from segmenter_jax.evaluation.exported import Read, differences, losses
from segmenter_jax.evaluation.scoring import check_dataset
from segmenter_jax.inference.fixed_size import FixedFunction, network_function, picture_function
from segmenter_jax.inference.foreign_network import cpu
from segmenter_jax.inference.geometry import InferenceSettings
from segmenter_jax.inference.predictor import Predictor, read_model
from segmenter_jax.runtime.compilation import prepare_compilation
from segmenter_jax.runtime.files import absolute, naming
from segmenter_jax.runtime.host import keep_freed_memory
from segmenter_jax.runtime.ownership import sole_owner
from segmenter_jax.training.workdir import evaluated_on

EXPORT_FILE = "export.json"

# Of a file in both formats.
_MAX_BYTES = 2**31

# Of the largest logit; a float32 file that differs by more is not the model.
_TOLERANCE = 1e-4

_SMALLER: Mapping[str, Callable[[bytes], bytes]] = {
    "float16": onnx_files.halved,
    "int8": onnx_files.quantized,
}


@dataclasses.dataclass(frozen=True)
class _Format:
    """How functions become files, and files functions."""

    suffix: str
    packages: tuple[str, ...]
    write: Callable[[FixedFunction], bytes]
    read: Callable[[bytes], Read]


_FORMATS = {
    "stablehlo": _Format(
        "stablehlo",
        ("jax", "flatbuffers"),
        lambda f: stablehlo.serialize(f.call, f.dtype, f.shape),
        stablehlo.deserialize,
    ),
    "onnx": _Format(
        "onnx",
        ("jax2onnx", "onnx", "onnxruntime"),
        lambda f: onnx_files.serialize(f.call, f.dtype, f.shape, f.argument, f.results),
        onnx_files.deserialize,
    ),
}


def run(arguments: argparse.Namespace) -> None:
    """Writes the folder that the arguments ask for."""
    keep_freed_memory()
    prepare_compilation()
    if arguments.precision != "float32" and arguments.to != "onnx":
        raise ValueError(f"--precision={arguments.precision} is for --to=onnx")
    # What fails fast first.
    made_with = {name: _version(name) for name in _FORMATS[arguments.to].packages}
    output = absolute(arguments.output)
    with sole_owner(output, beside=True):
        recover(output, EXPORT_FILE)
        _check_free(output, arguments.overwrite)
        _export(arguments, output, made_with)


def _version(package: str) -> str:
    onnx_files.of_extra(package)
    return importlib.metadata.version(package)


def _check_free(output: epath.Path, overwrite: bool) -> None:
    if not output.exists():
        return
    if not overwrite:
        raise ValueError(f"{output}: exists; choose another name or give --overwrite")
    if not output.is_dir() or (any(output.iterdir()) and not (output / EXPORT_FILE).exists()):
        raise ValueError(f"{output}: exists and is no export; it is left as it is")


def _export(arguments: argparse.Namespace, output: epath.Path, made_with: dict[str, str]) -> None:
    description, params = read_model(arguments.model)
    if (size := sum(leaf.nbytes for leaf in jax.tree.leaves(params))) >= _MAX_BYTES:
        raise ValueError(
            f"{arguments.model}: {size / 2**30:.1f} GB of weights; files of both formats hold less "
            f"than {_MAX_BYTES / 2**30:.0f} GB"
        )
    smaller = arguments.precision != "float32"
    measured = _dataset(arguments, description) if smaller else None
    predictor, weights = Predictor(description, params, devices=cpu()), weights_digest(params)
    size = arguments.size or (description.window, description.window)
    made = [network_function(description, params), picture_function(description, params, size)]
    chosen, files, functions = _FORMATS[arguments.to], {}, {}
    for f in made:
        files[f.name], functions[f.name] = _write(chosen, f, arguments)
    read = {name: chosen.read(content) for name, content in files.items()}
    report = {"made_with": made_with, "differences": differences(predictor, made, read)}
    if not smaller and (difference := report["differences"]["logits"]) > _TOLERANCE:
        raise ValueError(
            f"{arguments.model}: what was made of it gives other logits, by {difference:.1e} of "
            f"the largest; expected {_TOLERANCE:.0e} at most. Nothing is written"
        )
    if measured:
        report["loss"] = losses(*measured, predictor, read["network"])
    text = _describe(arguments, description, weights, functions, report)
    _publish(output, {functions[name]["file"]: files[name] for name in files}, text)
    _print(output, functions, report)


def _publish(output: epath.Path, files: Mapping[str, bytes], text: str) -> None:
    try:
        staging(output).mkdir(parents=True)
        for name, content in files.items():
            with naming(output / name, staging(output) / name):
                (staging(output) / name).write_bytes(content)
        publish(output, EXPORT_FILE, text)
    except BaseException:
        abandon(output, EXPORT_FILE)
        raise


def _dataset(arguments: argparse.Namespace, description: ModelDescription) -> tuple[Dataset, str]:
    """What the loss is measured on: a dataset, and the name of one of its splits."""
    run = evaluated_on(arguments.model, arguments.dataset) or {}
    name = arguments.dataset or run.get("dataset", "shapes")
    data_dir = arguments.data_dir or run.get("data_dir", DATA_DIR)
    split = arguments.split or run.get("split", "validation")
    dataset = build_dataset(name, data_dir)
    check_dataset(dataset, description)
    dataset.source(split)
    return dataset, split


def _write(
    chosen: _Format, function: FixedFunction, arguments: argparse.Namespace
) -> tuple[bytes, dict[str, Any]]:
    """Content of a function's file, and what is said about it."""
    content = chosen.write(function)
    if arguments.precision in _SMALLER:
        content = _SMALLER[arguments.precision](content)
    dimensions = jax.export.symbolic_shape(", ".join(map(str, function.shape)))
    argument = jax.ShapeDtypeStruct(dimensions, function.dtype)
    return content, {
        "file": f"{function.name}.{chosen.suffix}",
        "sha256": hashlib.sha256(content).hexdigest(),
        "inputs": {function.argument: _array(argument)},
        "outputs": {
            name: _array(array) for name, array in jax.eval_shape(function.call, argument).items()
        },
    }


def _array(array: jax.ShapeDtypeStruct) -> dict[str, Any]:
    shape = [n if isinstance(n, int) else str(n) for n in array.shape]
    return {"dtype": str(array.dtype), "shape": shape}


def _describe(
    arguments: argparse.Namespace,
    description: ModelDescription,
    weights: str,
    functions: dict[str, Any],
    report: dict[str, Any],
) -> str:
    """Text of `EXPORT_FILE`."""
    d, settings = description, InferenceSettings.of(description)
    return (
        json.dumps(
            {
                "to": arguments.to,
                "precision": arguments.precision,
                "classes": d.classes,
                "colors": d.colors,
                "ignore_label": d.ignore_label,
                "protocol": settings.protocol(),
                "window": settings.window,
                "stride": settings.stride,
                "base_size": settings.base_size,
                "normalization": {"inside": True, "mean": d.mean, "std": d.std},
                "functions": functions,
                "weights_sha256": weights,
                "provenance": d.provenance,
            }
            | report,
            indent=2,
        )
        + "\n"
    )


def _print(output: epath.Path, functions: dict[str, Any], report: dict[str, Any]) -> None:
    for function in functions.values():
        arrays = (
            ", ".join(
                f"{name} {a['dtype']} ({', '.join(map(str, a['shape']))})" for name, a in side
            )
            for side in (function["inputs"].items(), function["outputs"].items())
        )
        size = (output / function["file"]).stat().length / 1e6
        print(f"{function['file']}  {size:.1f} MB  {' -> '.join(arrays)}")
    found = report["differences"]
    print(
        f"against the model: logits differ by {found['logits']:.1e} of the largest, ids in "
        f"{100 * found['ids']:.3f} % of the pixels of a picture of noise"
    )
    if loss := report.get("loss"):
        was, now = (100 * loss[name] for name in ("mean_iou_of_the_model", "mean_iou"))
        print(
            f"mean IoU on {loss['dataset']}: {was:.2f} % by the model, {now:.2f} % by these files, "
            f"a loss of {was - now:.2f} points"
        )
    print(f"written: {output}")
