"""Repositories of the Hugging Face hub: read through its own library and cache, and written.

The library does not look at what it received beyond its length. Its cache names every blob after
its content, so each file is checked against its name whenever it is used.
"""

import contextlib
import errno
import hashlib
import os
import pathlib
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import yaml
from tqdm import tqdm

from segmenter_jax.conversion.arrays import SourceError
from segmenter_jax.runtime.errors import first_line, one_line

SCHEME = "hf://"

_ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+?)(?:@(.+))?")
_README = "README.md"

# Of a repository's own folder: weights, what describes them, and whose licence they have.
_FIRST = ("*.safetensors", "*.safetensors.index.json")
_BESIDE = (_README, "model.json", "*config.json", "*.yml")
_ELSE = ("*.npz", "*.pth", "*.bin", "*.bin.index.json")
_BELOW = "*/*"

LICENSE_FIELDS = ("license", "license_name", "license_link")


class _Bar(tqdm):
    """A progress bar where standard error is a terminal."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **({"disable": None} | options))


def split_address(address: str) -> tuple[str, str | None]:
    """Repository and revision of "hf://owner/name" or "hf://owner/name@revision".

    Raises:
      SourceError: it is no such address.
    """
    if (found := _ADDRESS.fullmatch(address)) is None:
        raise SourceError(
            f"{address}: expected {SCHEME}owner/name or {SCHEME}owner/name@revision, a branch, tag "
            "or commit of a repository of models"
        )
    return found[1], found[2]


def snapshot(address: str) -> tuple[pathlib.Path, str]:
    """The files of a repository that are read here, in the cache of the hub's library.

    What is in the cache serves where the hub cannot be reached.

    Args:
      address: see `split_address`.

    Returns:
      A folder, and the address with the commit that the revision stands for now.

    Raises:
      SourceError: the repository cannot be read, or a file is not what the hub says.
    """
    repo, revision = split_address(address)
    library = _library(address)
    with _told(address):
        folder = _download(library, repo, revision, (*_FIRST, *_BESIDE))
        if not _found(folder, _FIRST):
            _download(library, repo, folder.name, _ELSE)
    if not _found(folder, (*_FIRST, *_ELSE)):
        looked_for = ", ".join((*_FIRST, *_ELSE))
        raise SourceError(f"{address}: holds no weights; looked for {looked_for}")
    return folder, f"{SCHEME}{repo}@{folder.name}"


def _download(
    library: ModuleType, repo: str, revision: str | None, patterns: tuple[str, ...]
) -> pathlib.Path:
    folder = library.snapshot_download(
        repo,
        revision=revision,
        allow_patterns=list(patterns),
        ignore_patterns=[_BELOW],
        tqdm_class=_Bar,
    )
    folder = pathlib.Path(folder)
    for file in _found(folder, patterns):
        _check_sum(file)
    return folder


def _found(folder: pathlib.Path, patterns: tuple[str, ...]) -> list[pathlib.Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})


def _check_sum(file: pathlib.Path) -> None:
    """Removes a file that is not what its name in the cache says."""
    if not file.is_symlink():
        return  # On file systems without links the cache does not say.
    blob = pathlib.Path(os.readlink(file)).name
    if len(blob) == 64:
        digest = hashlib.sha256()
    elif len(blob) == 40:
        # As git names files, which are small where the hub keeps them in git itself.
        digest = hashlib.sha1(f"blob {file.stat().st_size}\0".encode())
    else:
        return
    with file.open("rb") as content:
        while block := content.read(2**20):
            digest.update(block)
    if digest.hexdigest() != blob:
        file.resolve().unlink()
        file.unlink()
        raise SourceError(
            f"{file}: the hub says that its {digest.name} is {blob}, found {digest.hexdigest()}; "
            "it was removed: try again to fetch it anew"
        )


def license_of(folder: pathlib.Path) -> dict[str, str]:
    """What the model card in a folder says of the licence; empty where it says nothing."""
    try:
        text = (folder / _README).read_text(encoding="utf-8")
        front = re.match(r"---\n(.*?\n)---\n", text, re.DOTALL)
        said = yaml.safe_load(front[1]) if front else {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    said = said if isinstance(said, dict) else {}
    return {n: said[n] for n in LICENSE_FIELDS if isinstance(said.get(n), str)}


def upload(
    folder: os.PathLike | str, repo: str, *, private: bool, revision: str | None, message: str
) -> str:
    """Uploads a folder as one commit; makes repository and branch where they are missing.

    Args:
      folder: what to upload.
      repo: "owner/name".
      private: nobody else may see the repository; one that is public already is an error.
      revision: branch; None is the main one.
      message: of the commit.

    Returns:
      The address of what was uploaded, with its commit.

    Raises:
      SourceError: the hub refuses, or cannot be reached.
    """
    address = f"{SCHEME}{repo}" + (f"@{revision}" if revision else "")
    split_address(address)
    api = _library(address).HfApi()
    with _told(address):
        api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.model_info(repo).private:
            raise SourceError(f"{address}: is public already; nothing was uploaded")
        if revision:
            api.create_branch(repo, branch=revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo, folder_path=folder, revision=revision, commit_message=message
        )
    return f"{SCHEME}{repo}@{done.oid}"


def _library(address: str) -> ModuleType:
    try:
        import huggingface_hub
    except ImportError:
        raise SourceError(
            f'{address}: needs the hub\'s library: pip install "segmenter_jax[hub]"'
        ) from None
    return huggingface_hub


@contextlib.contextmanager
def _told(address: str) -> Iterator[None]:
    """Makes one line of what the hub's library raises, with what to do about it."""
    from huggingface_hub import constants, errors

    repo, revision = split_address(address)
    try:
        yield
        return
    except SourceError:
        raise
    except errors.GatedRepoError:
        reason = (
            f"is gated: accept its licence at {constants.ENDPOINT}/{repo}, then log in with "
            "`hf auth login` or set HF_TOKEN"
        )
    except errors.RevisionNotFoundError:
        reason = f"the repository has no branch, tag or commit {revision!r}"
    except errors.RepositoryNotFoundError:
        reason = (
            f"there is no repository {repo}, or it is private: then log in with `hf auth login` or "
            "set HF_TOKEN"
        )
    except errors.HfHubHTTPError as error:
        reason = _refusal(error.response.status_code, first_line(error))
    except errors.LocalEntryNotFoundError as error:
        cause = error.__cause__ or error
        if isinstance(cause, errors.HfHubHTTPError):
            said = _refusal(cause.response.status_code, first_line(cause))
        else:
            said = f"the hub cannot be reached ({type(cause).__name__}: {first_line(cause)})"
        reason = f"{said}; what is needed is not in the cache {constants.HF_HUB_CACHE}"
    except ValueError as error:
        reason = one_line(error)
    except Exception as error:  # The library's HTTP client has types of its own.
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        reason = f"{type(error).__name__}: {first_line(error)}"
    raise SourceError(f"{address}: {reason}")


def _refusal(status: int, said: str) -> str:
    if status == 401:
        return "the hub does not accept the token; log in with `hf auth login` or set HF_TOKEN"
    if status == 403:
        return "the token gives no right to do this; `hf auth login` with one that does"
    return f"the hub answers: {said}"
