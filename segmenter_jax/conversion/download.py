"""Published weights by name, downloaded once into a cache.

A download goes to `NAME.part`, continues there after an interruption, and gets its final name only
when it is complete; its SHA-256 is then written to `NAME.sha256` and checked on every later use.
"""

import contextlib
import fcntl
import hashlib
import http.client
import os
import pathlib
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from segmenter_jax.conversion.arrays import CheckpointError
from segmenter_jax.runtime.errors import first_line

# The public bucket "vit_models", over https.
_BUCKET = "gs://vit_models/"
_BUCKET_URL = "https://storage.googleapis.com/vit_models/"

# ViTs of "How to train your ViT?", pretrained on ImageNet-21k and fine-tuned on ImageNet.
_AUGREG = {
    "Ti_16": "aug_none-wd_0.03-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_384",
    "S_16": "aug_light1-wd_0.03-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.03-res_384",
    "B_16": "aug_medium1-wd_0.1-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.01-res_384",
    "B_8": "aug_medium1-wd_0.1-do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.01-res_224",
    "L_16": "aug_medium1-wd_0.1-do_0.1-sd_0.1--imagenet2012-steps_20k-lr_0.01-res_384",
}
PUBLISHED = {
    f"augreg/{name}": f"{_BUCKET_URL}augreg/{name}-i21k-300ep-lr_0.001-{rest}.npz"
    for name, rest in _AUGREG.items()
}

_BLOCK = 2**20
_ATTEMPTS = 4
_TIMEOUT_SECONDS = 30.0


class DownloadError(CheckpointError):
    """A file could not be downloaded. The message says where it is and where to put it."""


def cache_dir() -> pathlib.Path:
    """Folder of downloaded weights: `$SEGMENTER_JAX_CACHE`, or one in the user's cache."""
    if folder := os.environ.get("SEGMENTER_JAX_CACHE"):
        return pathlib.Path(folder).expanduser()
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(root).expanduser() / "segmenter_jax" / "weights"


def resolve_source(source: os.PathLike | str) -> pathlib.Path:
    """Local path of a source of weights; downloads it first if need be.

    Args:
      source: a local path; a published name, "augreg/" and one of Ti_16, S_16, B_16, B_8, L_16; an
        https:// address; or a remote path that `etils.epath` reads, such as gs://.

    Raises:
      ValueError: nothing is there, or it cannot be downloaded.
    """
    text = os.fspath(source)
    path = pathlib.Path(text).expanduser()
    if "://" not in text and path.exists():
        return path
    if text in PUBLISHED:
        return cached(PUBLISHED[text])
    if text.startswith(_BUCKET):
        return cached(_BUCKET_URL + text.removeprefix(_BUCKET))
    if text.startswith("https://"):
        return cached(text)
    if "://" in text:
        return _copy_remote(text)
    raise CheckpointError(
        f"{text}: no such file or directory, and no published name; those are "
        f"{', '.join(PUBLISHED)}"
    )


def cached(url: str) -> pathlib.Path:
    """The file of an address in the cache, downloaded if it is not there yet.

    Raises:
      DownloadError: it cannot be downloaded, or has changed in the cache.
    """
    parts = urllib.parse.urlsplit(url)
    name = re.sub(r"[^\w./-]", "_", parts.netloc + parts.path)
    path = cache_dir() / name.replace("..", "_")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path):
        if not path.exists():
            try:
                download(url, path)
            except DownloadError as error:
                raise DownloadError(f"{error}; or fetch {url} and put it at {path}") from None
        _check_recorded(path)
    return path


def download(url: str, path: pathlib.Path, attempts: int = _ATTEMPTS) -> None:
    """Downloads a file, whole or not at all, continuing an earlier attempt.

    Args:
      url: its address.
      path: where it goes; `path` with ".part" holds what has arrived.
      attempts: how often to go on after an interruption.

    Raises:
      DownloadError: the server refused, or the connection failed too often.
    """
    part = path.with_name(path.name + ".part")
    reason = "nothing tried"
    for attempt in range(attempts):
        if attempt:
            time.sleep(0.2 * 2**attempt)
        try:
            _continue(url, part)
            break
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"the server answers {error.code} {error.reason}"
            if error.code == 416:
                # Nothing is left to send after what is here: begin again.
                part.unlink(missing_ok=True)
            elif error.code < 500:
                raise DownloadError(f"cannot download {url}: {reason}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = first_line(error)
    else:
        raise DownloadError(f"cannot download {url}: {reason}")
    os.replace(part, path)
    _version_file(part).unlink(missing_ok=True)


def _continue(url: str, part: pathlib.Path) -> None:
    """Fetches what is missing of a file; raises OSError if the connection ends too early."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url)
    version = _version_file(part).read_text() if _version_file(part).exists() else ""
    if have and version:
        # The server sends the whole file instead if it is no longer the one that was begun.
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", version)
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink()
            raise OSError("the server continued at another place")
        start = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        _version_file(part).write_text(_version(response.headers))
        with part.open("ab" if resumed else "wb") as file:
            for block in _blocks(response, url, start, total):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
    if total is not None and size != total:
        if size > total:
            part.unlink()
        raise OSError(f"the connection ended after {size} of {total} bytes")


def _blocks(response: Any, url: str, start: int, total: int | None) -> Iterator[bytes]:
    done, shown = start, 0.0
    name = url.rpartition("/")[2]
    visible = sys.stderr.isatty()
    while block := response.read(_BLOCK):
        done += len(block)
        yield block
        if visible and (time.monotonic() - shown > 0.2 or done == total):
            shown = time.monotonic()
            share = f"{100 * done / total:3.0f} % of {total / 1e6:.0f} MB" if total else ""
            print(f"\r{name[:60]} {done / 1e6:.0f} MB {share}", end="", file=sys.stderr, flush=True)
    if visible:
        print(file=sys.stderr)


def _version(headers: Any) -> str:
    return headers.get("ETag") or headers.get("Last-Modified") or ""


def _version_file(part: pathlib.Path) -> pathlib.Path:
    return part.with_name(part.name + ".version")


def _check_recorded(path: pathlib.Path) -> None:
    digest = sha256_of([path])
    record = path.with_name(path.name + ".sha256")
    if not record.exists():
        record.write_text(digest + "\n")
    elif record.read_text().strip() != digest:
        raise DownloadError(
            f"{path}: has changed since it was put into the cache (its SHA-256 is not that of "
            f"{record.name}); delete both to fetch it again"
        )


def sha256_of(files: Iterable[os.PathLike]) -> str:
    """SHA-256 of the content of files, one after the other."""
    digest = hashlib.sha256()
    for path in files:
        with epath.Path(path).open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[None]:
    """Only one process downloads a file; the others wait and find it."""
    with path.with_name(path.name + ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _copy_remote(text: str) -> pathlib.Path:
    try:
        remote = epath.Path(text)
        if not remote.exists():
            raise CheckpointError(f"{text}: no such file")
        if remote.is_dir():
            raise CheckpointError(f"{text}: a remote directory; copy it here first")
        name = re.sub(r"[^\w./-]", "_", text.replace("://", "/")).replace("..", "_")
        path = cache_dir() / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        # No lasting copy is trusted: the remote file may change under the same name.
        remote.copy(part, overwrite=True)
        os.replace(part, path)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{text}: cannot be read: {first_line(error)}") from error
    return path
