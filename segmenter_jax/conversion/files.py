"""Safe, lazy reading of the files that hold foreign weights.

The kind of file is recognised by its content. Nothing is unpickled but what PyTorch's weights-only
reader accepts, names and shapes are known before any array is read, and a file cannot claim much
more memory than its own size.
"""

import math
import os
import pathlib
import pickle
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from segmenter_jax.conversion.arrays import ZIP_ERRORS, Content, LazyArray, SourceError, Values
from segmenter_jax.runtime.errors import first_line

# An array may not claim more bytes than this many times the whole file (compressed zeros would).
MAX_EXPANSION = 20
MIN_LIMIT_BYTES = 64 * 2**20
MAX_ARRAYS = 100_000

# Of dictionaries in a PyTorch file.
_MAX_DEPTH = 4

_SAFETENSORS_DTYPES = {
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
}

# Flax's own msgpack type of arrays, the axes and levels that one may have, and the names that are
# as deep as a tree of parameters in a training state may begin.
_FLAX_ARRAY = 1
_MAX_AXES = 32
_MAX_LEVELS = 32
_GROUP_LEVELS = 2


def read_groups(path: os.PathLike | str) -> Content:
    """Opens a `.npz`, `.safetensors`, PyTorch or Flax file, whatever its name.

    Returns:
      Groups of arrays, and what else may be among them, by the path of the group in the file, "" at
      the top; and the values at the top that hold no arrays.

    Raises:
      SourceError: not such a file, or one that is damaged or refused.
    """
    path = pathlib.Path(path)
    try:
        groups, extra = _reader(path)(path)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror or error}") from error
    _check_limits(path, groups)
    return groups, extra


def _reader(path: pathlib.Path) -> Callable[[pathlib.Path], Content]:
    if path.stat().st_size == 0:
        raise SourceError(f"{path}: the file is empty")
    with path.open("rb") as file:
        head = file.read(9)
    if head[:2] == b"PK":
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
        except ZIP_ERRORS as error:
            raise SourceError(f"{path}: damaged or truncated archive: {error}") from None
        if any(name.endswith("/data.pkl") for name in names):
            return _read_torch
        if any(name.endswith(".npy") for name in names):
            return _read_npz
        raise SourceError(f"{path}: an archive that is neither .npz nor a PyTorch file")
    if len(head) == 9 and head[8:] == b"{":
        return _read_safetensors
    if head[:1] == b"\x80":
        return _read_torch
    # Dictionaries of up to 15 values, or more.
    if 0x81 <= head[0] <= 0x8F or head[0] in (0xDE, 0xDF):
        return _read_flax
    raise SourceError(
        f"{path}: not a weights file; expected the content of a .npz, .safetensors, PyTorch or "
        "Flax file"
    )


def _check_limits(path: pathlib.Path, groups: dict[str, Values]) -> None:
    arrays = [v for group in groups.values() for v in group.values() if isinstance(v, LazyArray)]
    if not arrays:
        raise SourceError(f"{path}: holds no arrays")
    if len(arrays) > MAX_ARRAYS:
        raise SourceError(f"{path}: holds {len(arrays)} arrays, at most {MAX_ARRAYS} allowed")
    limit = max(MIN_LIMIT_BYTES, MAX_EXPANSION * path.stat().st_size)
    # float32 is what they become.
    claimed = sum(4 * math.prod(array.shape) for array in arrays)
    if claimed > limit:
        raise SourceError(
            f"{path}: its arrays claim {claimed} bytes, more than the {limit} allowed for its size"
        )


def _read_npz(path: pathlib.Path) -> Content:
    arrays = {}
    # Stays open for the arrays to be read: finding its members is what takes long.
    archive = zipfile.ZipFile(path)
    for member in archive.namelist():
        if not member.endswith(".npy"):
            raise SourceError(f"{path}: unexpected member {member!r}")
        try:
            with archive.open(member) as file:
                shape, dtype = _npy_header(file)
        except (*ZIP_ERRORS, ValueError) as error:
            raise SourceError(
                f"{path}: array {member[:-4]} is damaged: {first_line(error)}"
            ) from None
        if dtype.hasobject:
            raise SourceError(
                f"{path}: array {member[:-4]} holds Python objects, which are never loaded"
            )
        # NumPy writes bfloat16 as raw two-byte values.
        if dtype == np.dtype("V2"):
            dtype = np.dtype(ml_dtypes.bfloat16)
        known = dtype if dtype.kind == "f" or dtype == ml_dtypes.bfloat16 else None
        arrays[member[:-4]] = LazyArray(shape, known, _npz_loader(archive, member, dtype))
    return {"": arrays}, {}


def _npy_header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"unknown array version {version}")
    shape, _, dtype = readers[version](file)
    return shape, dtype


def _npz_loader(archive: zipfile.ZipFile, member: str, dtype: np.dtype) -> Callable[[], np.ndarray]:
    def load() -> np.ndarray:
        with archive.open(member) as file:
            values = np.lib.format.read_array(file, allow_pickle=False)
            # The checksum is verified only when the end of the member is reached.
            if file.read(1):
                raise ValueError("trailing bytes")
        return values if values.dtype == dtype else values.view(dtype)

    return load


def _read_safetensors(path: pathlib.Path) -> Content:
    import safetensors

    def loader(name: str) -> Callable[[], np.ndarray]:
        def load() -> np.ndarray:
            with safetensors.safe_open(path, "numpy") as file:
                return file.get_tensor(name)

        return load

    arrays = {}
    try:
        with safetensors.safe_open(path, "numpy") as file:
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                part = file.get_slice(name)
                dtype = _SAFETENSORS_DTYPES.get(part.get_dtype())
                arrays[name] = LazyArray(
                    tuple(part.get_shape()), dtype and np.dtype(dtype), loader(name)
                )
    except safetensors.SafetensorError as error:
        raise SourceError(f"{path}: damaged .safetensors file: {first_line(error)}") from None
    return {"": arrays}, {}


def _read_torch(path: pathlib.Path) -> Content:
    try:
        import torch
    except ImportError:
        raise SourceError(
            f"{path}: reading PyTorch files needs PyTorch: pip install torch"
        ) from None
    stored = zipfile.is_zipfile(path)
    if stored:
        with zipfile.ZipFile(path) as archive:
            if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
                raise SourceError(f"{path}: compressed members, which PyTorch never writes")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=stored)
    except pickle.UnpicklingError:
        raise SourceError(
            f"{path}: holds Python objects besides weights, which are never loaded; where it "
            "is trusted, save its state dict alone with torch.save and convert that"
        ) from None
    except Exception as error:  # PyTorch raises many types for a damaged file.
        raise SourceError(f"{path}: damaged PyTorch file: {first_line(error)}") from None
    return _torch_arrays(path, content)


def _torch_arrays(path: pathlib.Path, content: Any) -> Content:
    import torch

    if not isinstance(content, dict):
        raise SourceError(f"{path}: holds a {type(content).__name__}, expected a state dict")

    def is_tensor(value: Any) -> bool:
        return isinstance(value, torch.Tensor) and value.layout == torch.strided

    def lazy(tensor: Any) -> LazyArray:
        kind = np.dtype(np.float32) if tensor.is_floating_point() else None
        return LazyArray(
            tuple(tensor.shape), kind, lambda: tensor.detach().float().contiguous().numpy()
        )

    groups: dict[str, Values] = {}

    def walk(keys: tuple[str, ...], values: dict[Any, Any]) -> None:
        if any(map(is_tensor, values.values())):
            groups[".".join(keys)] = {
                str(name): lazy(v) if is_tensor(v) else v for name, v in values.items()
            }
        for name, value in values.items():
            if isinstance(value, dict) and len(keys) < _MAX_DEPTH:
                walk((*keys, str(name)), value)

    walk((), content)
    return groups, {name: value for name, value in content.items() if str(name) not in groups}


def _read_flax(path: pathlib.Path) -> Content:
    # Comes with Flax, whose own reader sets no limits.
    import msgpack

    limits = {"max_array_len": _MAX_AXES, "max_map_len": MAX_ARRAYS}

    def value(kind: int, content: bytes) -> LazyArray | None:
        if kind != _FLAX_ARRAY:
            return None
        shape, name, values = msgpack.unpackb(content, raw=True, **limits)
        dtype = np.dtype(ml_dtypes.bfloat16 if name == b"bfloat16" else name.decode())
        shape = tuple(map(int, shape))
        if math.prod(shape) * dtype.itemsize != len(values):
            raise ValueError(f"{len(values)} bytes for shape {shape} of {dtype}")
        known = dtype if dtype.kind == "f" or name == b"bfloat16" else None
        return LazyArray(shape, known, lambda: np.frombuffer(values, dtype).reshape(shape))

    try:
        tree = msgpack.unpackb(
            path.read_bytes(), ext_hook=value, raw=False, strict_map_key=False, **limits
        )
        groups: dict[str, Values] = {}
        _flax_groups(tree, (), groups)
    except (ValueError, TypeError, AttributeError) as error:
        raise SourceError(f"{path}: damaged Flax file: {first_line(error)}") from None
    return groups, {}


def _flax_groups(tree: Any, keys: tuple[str, ...], groups: dict[str, Values]) -> dict[str, Any]:
    """Arrays below a node of a tree, by their path from it; nodes near the root become groups."""
    if len(keys) > _MAX_LEVELS:
        raise ValueError(f"more than {_MAX_LEVELS} levels")
    arrays: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, LazyArray):
            arrays[str(name)] = value
        elif isinstance(value, dict):
            below = _flax_groups(value, (*keys, str(name)), groups)
            arrays |= {f"{name}/{rest}": array for rest, array in below.items()}
    if arrays and len(keys) <= _GROUP_LEVELS:
        groups[".".join(keys)] = arrays
    return arrays
