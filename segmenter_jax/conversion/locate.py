"""What a source of weights is: a model directory, a file of another project, or one to fetch."""

import difflib
import os
import pathlib
import types
from collections.abc import Mapping
from typing import NamedTuple

from etils import epath

from segmenter_jax.checkpoints.model_dir import find_model_dir, resolve_model_dir
from segmenter_jax.conversion import hub
from segmenter_jax.conversion.arrays import SourceError
from segmenter_jax.conversion.download import cached, copied, in_cache
from segmenter_jax.conversion.published import PUBLISHED, gated, licence
from segmenter_jax.runtime.console import logger
from segmenter_jax.runtime.errors import first_line
from segmenter_jax.runtime.files import is_local

# The public bucket "vit_models", over https.
_BUCKET = "gs://vit_models/"
_BUCKET_URL = "https://storage.googleapis.com/vit_models/"

# Of published names.
_EXAMPLES = ("augreg/L_16", "dinov2_S/14")

# Where a folder has files of several rows, those of the first are its weights.
_WEIGHTS = (
    ("*.safetensors.index.json",),
    ("*.npz", "*.pth", "*.safetensors"),
    ("*.index.json",),
    ("*.bin",),
    ("*.msgpack", "checkpoint_*"),
)


class Place(NamedTuple):
    """Where a source is.

    Attributes:
      path: a model directory of this package, or a local file of weights.
      is_model: whether it is a model directory.
      source: what was asked for, where that is another place than `path`.
      license: `license`, and what else the place that it comes from says of it.
    """

    path: epath.Path
    is_model: bool
    source: str | None = None
    license: Mapping[str, str] = types.MappingProxyType({})


def locate(source: os.PathLike | str) -> Place:
    """Finds a source of weights; fetches what is not on this machine.

    Args:
      source: a model directory or workdir, local or remote; a local file of weights, or a folder
        with one; a name of `published.PUBLISHED`; an https:// address; a repository of the Hugging
        Face hub, hf://owner/name or hf://owner/name@revision; or a remote file that `etils.epath`
        reads, such as gs://.

    Raises:
      ValueError: nothing is there, or it cannot be fetched.
    """
    if (url := web_address(source)) is not None:
        name = os.fspath(source)
        said = {"license": "apache-2.0"} if url.startswith(_BUCKET_URL) else {}
        if name in PUBLISHED:
            # As the hub spells it.
            said = {"license": licence(name).partition(",")[0].lower().replace(" ", "-")}
            if not in_cache(url):
                logger.warning("fetching %s, whose licence is %s: %s", name, licence(name), url)
        return Place(epath.Path(cached(url)), is_model=False, source=url, license=said)
    if os.fspath(source).startswith(hub.SCHEME):
        folder, address = hub.snapshot(os.fspath(source))
        return _locate_local(folder)._replace(source=address)
    if not is_local(source):
        return _locate_remote(os.fspath(source))
    return _locate_local(source)


def _locate_local(source: os.PathLike | str) -> Place:
    if (folder := find_model_dir(source)) is not None:
        return Place(folder, is_model=True, license=hub.license_of(folder))
    # Links stay: what describes a file lies beside the link, not beside the blob of a cache.
    path = epath.Path(source).expanduser()
    if path.is_dir():
        return Place(_only_file(path), is_model=False, license=hub.license_of(path))
    if not path.exists():
        if why := gated(os.fspath(source)):
            raise SourceError(f"{source}: does not exist, and {why}")
        near = difflib.get_close_matches(os.fspath(source), PUBLISHED, n=4) or _EXAMPLES
        raise SourceError(
            f"{source}: does not exist, and is no published name such as {', '.join(near)}"
        )
    return Place(path, is_model=False)


def web_address(source: os.PathLike | str) -> str | None:
    """The https:// address of a source; None for one that is read in another way."""
    text = os.fspath(source)
    if text in PUBLISHED and not pathlib.Path(text).exists():
        return PUBLISHED[text]
    if text.startswith(_BUCKET):
        return _BUCKET_URL + text.removeprefix(_BUCKET)
    return text if text.startswith("https://") else None


def is_fetched(source: os.PathLike | str) -> bool:
    """Whether a source is an address on the web or the hub, which is no path on any machine."""
    return web_address(source) is not None or os.fspath(source).startswith(hub.SCHEME)


def _locate_remote(text: str) -> Place:
    try:
        if (folder := find_model_dir(text)) is not None:
            return Place(folder, is_model=True)
        remote = epath.Path(text)
        found = "a directory" if remote.is_dir() else "a file" if remote.exists() else "nothing"
        path = copied(remote) if found == "a file" else None
    except Exception as error:  # Each kind of storage raises its own types.
        raise SourceError(f"{text}: cannot be read: {first_line(error)}") from error
    if path is None:
        raise SourceError(f"{text}: found {found}, expected a model directory or a weights file")
    return Place(epath.Path(path), is_model=False)


def _only_file(folder: epath.Path) -> epath.Path:
    kinds = [sorted(f for p in patterns for f in folder.glob(p)) for patterns in _WEIGHTS]
    files = next(filter(None, kinds), [])
    if not files:
        # Says what a model would have been.
        resolve_model_dir(folder)
    if len(files) != 1:
        raise SourceError(
            f"{folder}: expected one file of weights, found {[file.name for file in files]}; name "
            "the file instead"
        )
    return files[0]
