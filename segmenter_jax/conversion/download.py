"""Files from elsewhere, in a cache.

A file appears when it is complete; its SHA-256 is then written to `NAME.sha256` beside it and
checked on every later use, for which no network is needed.
"""

import contextlib
import errno
import fcntl
import hashlib
import http.client
import os
import pathlib
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from etils import epath
from tqdm import tqdm

from segmenter_jax.conversion.arrays import SourceError
from segmenter_jax.runtime.errors import first_line
from segmenter_jax.runtime.files import write_whole

_BLOCK = 2**20
_TIMEOUT_SECONDS = 30.0

# Of the disk; every other error is one of the connection.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cache_dir() -> pathlib.Path:
    """Folder of downloaded weights: `$SEGMENTER_JAX_CACHE`, or one in the user's cache."""
    if folder := os.environ.get("SEGMENTER_JAX_CACHE"):
        return pathlib.Path(folder).expanduser()
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(root).expanduser() / "segmenter_jax" / "weights"


def in_cache(url: str) -> bool:
    """Whether the file of an address is in the cache."""
    return _place(url).exists()


def cached(url: str) -> pathlib.Path:
    """The file of an address in the cache, downloaded if it is not there yet.

    Raises:
      SourceError: it cannot be downloaded, or has changed in the cache.
    """
    path = _place(url)
    with _lock(path):
        if not path.exists():
            try:
                download(url, path)
            except SourceError as error:
                raise SourceError(f"{error}; or fetch {url} and put it at {path}") from None
        digest, record = sha256_of([path]), path.with_name(path.name + ".sha256")
        if not record.exists():
            with write_whole(record) as part:
                part.write_text(digest + "\n")
        elif record.read_text().strip() != digest:
            raise SourceError(
                f"{path}: has changed since it was put into the cache (its SHA-256 is not that of "
                f"{record.name}); delete both to fetch it again"
            )
    return path


def copied(remote: epath.Path) -> pathlib.Path:
    """A copy of a remote file in the cache, made anew: the file may change under the same name."""
    path = _place(os.fspath(remote))
    with _lock(path), write_whole(path) as part:
        remote.copy(part, overwrite=True)
    return path


def download(url: str, path: os.PathLike | str, attempts: int = 4) -> None:
    """Downloads a file, whole or not at all.

    Args:
      url: its address.
      path: where it goes.
      attempts: how often to go on after the connection failed.

    Raises:
      SourceError: the server refused, or the connection failed too often.
    """
    version, reason = "", ""
    with write_whole(path) as part, part.open("wb") as file:
        for attempt in range(attempts):
            time.sleep(0.2 * 2**attempt if attempt else 0)
            try:
                # The server sends the whole file if it is no longer the one that was begun.
                resume = {"Range": f"bytes={file.tell()}-", "If-Range": version} if version else {}
                request = urllib.request.Request(url, headers=resume)
                with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
                    headers = response.headers
                    version = headers.get("ETag") or headers.get("Last-Modified") or ""
                    _receive(response, file)
                return
            except urllib.error.HTTPError as error:
                error.close()
                reason = f"the server answers {error.code} {error.reason}"
                if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and version:
                    version = ""  # From the start.
                elif error.code < 500:
                    break
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.errno in _FULL:
                    raise
                reason = first_line(error)
        raise SourceError(f"cannot download {url}: {reason}")


def _receive(response: http.client.HTTPResponse, file: BinaryIO) -> None:
    """Writes what is sent; raises OSError if the connection ends too early."""
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        file.seek(0)
        file.truncate()
    have, length = file.tell(), response.headers.get("Content-Length")
    total = None if length is None else have + int(length)
    name = response.url.rpartition("/")[2][:60]
    # None: no bar where standard error is no terminal.
    with tqdm.wrapattr(
        response, "read", total=total, initial=have, desc=name, disable=None
    ) as body:
        shutil.copyfileobj(body, file, _BLOCK)
    if total is not None and file.tell() != total:
        raise OSError(f"the connection ended after {file.tell()} of {total} bytes")


def sha256_of(files: Iterable[os.PathLike]) -> str:
    """SHA-256 of the content of files, one after the other."""
    digest = hashlib.sha256()
    for path in files:
        with epath.Path(path).open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def _place(address: str) -> pathlib.Path:
    parts = urllib.parse.urlsplit(address)
    name = re.sub(r"[^\w./-]", "_", parts.netloc + parts.path).replace("..", "_")
    return cache_dir() / name


@contextlib.contextmanager
def _lock(path: pathlib.Path) -> Iterator[None]:
    """Only one process downloads a file; the others wait and find it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
