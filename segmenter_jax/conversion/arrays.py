"""Safe, lazy reading of the files that hold foreign weights.

The kind of file is recognised by its content. Nothing is unpickled but what PyTorch's weights-only
reader accepts, names and shapes are known before any array is read, and a file cannot claim much
more memory than its own size.
"""

import dataclasses
import math
import os
import pathlib
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from segmenter_jax.runtime.errors import first_line

# An array may not claim more bytes than this many times the whole file (compressed zeros would).
MAX_EXPANSION = 20
MIN_LIMIT_BYTES = 64 * 2**20
MAX_ARRAYS = 100_000

# Of dictionaries in a PyTorch file.
_MAX_DEPTH = 4

# What a damaged archive raises; RuntimeError stands for an encrypted one.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
)

_SAFETENSORS_DTYPES = {
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
}


class SourceError(ValueError):
    """A source of weights is missing, damaged, hostile or not understood; the message names it."""


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array in a file: its shape and type, and how to read it.

    `dtype` is None for what is no floating-point array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype | None
    load: Callable[[], np.ndarray]


Values = Mapping[str, Any]
# See `read_groups`.
Content = tuple[dict[str, Values], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class ArrayFile:
    """One set of weights in a file.

    Attributes:
      path: of the file.
      arrays: by name, without what stands before all of the names.
      extra: top-level values of a PyTorch file that hold no arrays.
      others: names of the other sets of weights in the file.
      outside: shapes of arrays beside the set in its group.
    """

    path: pathlib.Path
    arrays: dict[str, LazyArray]
    extra: dict[str, Any]
    others: tuple[str, ...] = ()
    outside: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

    def sidecar(self, name: str) -> pathlib.Path | None:
        """A file beside this one: STEM.name, which is this one's alone, else name; None if absent.

        Args:
          name: for example "config.json".
        """
        stem = self.path.stem
        candidates = (self.path.with_name(f"{stem}.{name}"), self.path.with_name(name))
        return next((path for path in candidates if path.exists()), None)

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """Shape of an array that must be there and have `rank` axes, none empty."""
        if name not in self.arrays:
            raise SourceError(f"{self.path}: array {name} is missing")
        shape = self.arrays[name].shape
        if len(shape) != rank or min(shape, default=1) < 1:
            raise SourceError(f"{self.path}: array {name} has shape {shape}, expected {rank} axes")
        return shape

    def read(self, name: str) -> np.ndarray:
        """Reads one array as float32.

        Raises:
          SourceError: unreadable, not floating point, or not finite.
        """
        where, array = f"{self.path}: array {name}", self.arrays[name]
        if array.dtype is None:
            raise SourceError(f"{where} is not floating point")
        try:
            values = array.load()
        except (*_ZIP_ERRORS, OSError, ValueError) as error:
            raise SourceError(f"{where} is damaged: {first_line(error)}") from error
        if tuple(values.shape) != array.shape:
            raise SourceError(f"{where} has shape {values.shape}, not {array.shape}")
        with np.errstate(over="ignore"):
            values = np.asarray(values, np.float32)
        if count := np.count_nonzero(~np.isfinite(values)):
            raise SourceError(f"{where} holds {count} values that are not finite")
        return values


def read_groups(path: os.PathLike | str) -> Content:
    """Opens a `.npz`, `.safetensors` or PyTorch file, whatever its name.

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
        except _ZIP_ERRORS as error:
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
    raise SourceError(
        f"{path}: not a weights file; expected the content of a .npz, .safetensors or PyTorch file"
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
        except (*_ZIP_ERRORS, ValueError) as error:
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
