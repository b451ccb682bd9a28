"""Functions as ONNX files, by way of jax2onnx."""

import importlib
import logging
import pathlib
import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

# Of the operators: onnxruntime reads it from 1.20 on.
_OPSET = 21

# A dense layer on tokens, in the words of jax2onnx.
_DENSE = b"abc,cd->abd"


def of_extra(name: str) -> Any:
    """A package of the extra `[export]`.

    Raises:
      ImportError: it is not installed; says how it is.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"this export needs {name.split('.')[0]}, which is not here ({error}): "
            "pip install 'segmenter_jax[export]'"
        ) from error


def serialize(
    function: Callable[[jax.Array], dict[str, jax.Array]],
    dtype: str,
    shape: tuple[int | str, ...],
    argument: str,
    results: Sequence[str],
) -> bytes:
    """Bytes of an ONNX file.

    Args:
      function: of one array, to a dictionary of arrays.
      dtype, shape: of its array; a letter stands for any size.
      argument: name of the array.
      results: names of the results, which are in the dictionary.
    """

    def in_order(array: jax.Array) -> tuple[jax.Array, ...]:
        computed = function(array)
        return tuple(computed[name] for name in results)

    to_onnx = of_extra("jax2onnx").to_onnx
    # It warns of its own plugins, and of types that runtimes infer.
    logging.getLogger("onnx_ir").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = to_onnx(
            in_order,
            [jax.ShapeDtypeStruct(shape, np.dtype(dtype))],
            model_name="segmenter_jax",
            opset=_OPSET,
            input_names=[argument],
            output_names=list(results),
        )
    for node in model.graph.node:
        # The same product; runtimes are faster at it, and quantise no other.
        if node.op_type == "Einsum" and node.attribute[0].s == _DENSE:
            node.op_type = "MatMul"
            del node.attribute[:]
    return model.SerializeToString()


def quantized(content: bytes) -> bytes:
    """An ONNX file whose dense layers multiply 8-bit integers.

    Weights are rounded once, each output channel in its own range; activations at run time, each
    array in its own range.
    """
    tools = of_extra("onnxruntime.quantization")

    def quantize(source: pathlib.Path, target: pathlib.Path) -> None:
        # Seven bits of weights: sums of products of eight overflow on CPUs without VNNI.
        tools.quantize_dynamic(
            source, target, op_types_to_quantize=["MatMul"], per_channel=True, reduce_range=True
        )

    return _by_files(quantize, _folded(content))


def halved(content: bytes) -> bytes:
    """An ONNX file whose products of activations with weights, and with each other, are float16.

    All else stays float32: sums of squares of large activations are beyond float16. So do products
    with a constant on the left, which merge windows.
    """
    onnx = of_extra("onnx")
    model = onnx.load_from_string(_folded(content))
    graph, half, single = model.graph, onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    constants = {array.name: array for array in graph.initializer}
    nodes, done = [], set()

    def cast(name: str) -> str:
        smaller = f"{name}_float16"
        if smaller in done:
            return smaller
        done.add(smaller)
        if name in constants:
            array = onnx.numpy_helper.to_array(constants[name]).astype(np.float16)
            graph.initializer.append(onnx.numpy_helper.from_array(array, smaller))
        else:
            nodes.append(onnx.helper.make_node("Cast", [name], [smaller], to=half))
        return smaller

    for node in graph.node:
        product = node.op_type == "MatMul" and node.input[0] not in constants
        if product:
            result = node.output[0]
            node.input[:], node.output[0] = [cast(name) for name in node.input], f"{result}_half"
        nodes.append(node)
        if product:
            nodes.append(onnx.helper.make_node("Cast", [f"{result}_half"], [result], to=single))
    used = {name for node in nodes for name in node.input}
    kept = [array for array in graph.initializer if array.name in used]
    for field, values in ((graph.node, nodes), (graph.initializer, kept)):
        values = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(values)
    return model.SerializeToString()


def _folded(content: bytes) -> bytes:
    """The same with whole weights, where they are computed from constants."""
    tools = of_extra("onnxruntime.quantization.shape_inference")
    return _by_files(
        lambda source, target: tools.quant_pre_process(source, target, skip_symbolic_shape=True),
        content,
    )


def _by_files(step: Callable[[pathlib.Path, pathlib.Path], None], content: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        source, target = pathlib.Path(name) / "source.onnx", pathlib.Path(name) / "target.onnx"
        source.write_bytes(content)
        step(source, target)
        return target.read_bytes()


def deserialize(content: bytes) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """The function of an ONNX file of one input, computed by onnxruntime on the CPU."""
    session = of_extra("onnxruntime").InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    argument = session.get_inputs()[0].name

    def call(array: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {argument: np.asarray(array)}), strict=True))

    return call
