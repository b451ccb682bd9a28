"""Object stores on the loopback address, which the real clients talk to."""

import contextlib
import os
import pathlib
import uuid
from collections.abc import Iterator

import fsspec
import pytest

from segmenter_jax.data.bucket_listing import iter_objects
from segmenter_jax.runtime import buckets
from segmenter_jax.runtime.files import is_local, read_bytes

_S3 = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}

# The second has to be set before the client is imported: the server has no gRPC, by which clients
# ask which kind of bucket one is.
_GS = {"FSSPEC_GS_TOKEN": "anon", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}


@contextlib.contextmanager
def _s3_server() -> Iterator[dict[str, str]]:
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    finally:
        server.stop()


@contextlib.contextmanager
def _gs_server() -> Iterator[dict[str, str]]:
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    pytest.importorskip("gcsfs")
    server = emulator.create_server("127.0.0.1", 0, in_memory=True)
    server.start()
    try:
        yield {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{server._api._httpd.server_port}"}
    finally:
        server.stop()


_SERVERS = {"s3": (_S3, _s3_server), "gs": (_GS, _gs_server)}


@contextlib.contextmanager
def object_store(scheme: str) -> Iterator[str]:
    """Runs a store; yields the address of an empty bucket for this process and those it starts."""
    settings, run = _SERVERS[scheme]
    with _environment(settings), run() as address, _environment(address):
        fsspec.config.set_conf_env(fsspec.config.conf)
        fsspec.get_filesystem_class(scheme).clear_instance_cache()
        buckets._store_of.cache_clear()
        # Some servers of one process hold the same.
        name = f"bucket-{uuid.uuid4().hex}"
        fsspec.filesystem(scheme, use_listings_cache=False).mkdir(name)
        yield f"{scheme}://{name}"
    buckets._store_of.cache_clear()


def names_in(root: pathlib.Path) -> list[str]:
    """Files or objects below a folder by what follows its name, but for records and locks."""
    if is_local(root):
        found = [p.relative_to(root).as_posix() for p in root.rglob("*") if p.is_file()]
    else:
        found = [name for name, _ in iter_objects(root, None)]
    return [
        name
        for name in sorted(found)
        if not name.endswith((".jsonl", ".lock")) and ".incomplete." not in name
    ]


def contents(root: pathlib.Path) -> dict[str, bytes]:
    """What these hold."""
    return {name: read_bytes(root / name) for name in names_in(root)}


@contextlib.contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
