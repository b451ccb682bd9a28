"""Any supported checkpoint to a model directory, and back to the reference's layout."""

import argparse
import dataclasses

from etils import epath

from segmenter_jax.checkpoints.model_dir import save_model
from segmenter_jax.conversion import reference
from segmenter_jax.conversion.convert import ConvertOptions, convert
from segmenter_jax.runtime.files import absolute, check_no_pattern
from segmenter_jax.runtime.ownership import sole_owner


def run(arguments: argparse.Namespace) -> None:
    """Writes the directory that the arguments ask for."""
    output = absolute(arguments.output)
    if arguments.to == "model":
        check_no_pattern(output)
    with sole_owner(output, beside=True):
        _convert(arguments, output)


def _convert(arguments: argparse.Namespace, output: epath.Path) -> None:
    if output.exists() and not arguments.overwrite:
        raise ValueError(f"{output}: exists; choose another name or give --overwrite")
    names = [field.name for field in dataclasses.fields(ConvertOptions)]
    options = ConvertOptions(**{name: getattr(arguments, name) for name in names})
    description, params, report = convert(arguments.source, options)
    if arguments.to == "model":
        save_model(output, description, params)
    else:
        report.warnings += reference.save(output, description, params, arguments.to)
    print(report)
    print(f"written: {output}")
