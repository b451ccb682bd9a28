"""The command that serves the page, as a process."""

import contextlib
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def serve(folder: pathlib.Path, model: pathlib.Path, *flags: object) -> Iterator[str]:
    """Starts the page in a folder; gives its address."""
    command = [sys.executable, "-u", "-m", "segmenter_jax.demo", str(model), *map(str, flags)]
    root = pathlib.Path(__file__).resolve().parents[1]
    environment = os.environ | {"PYTHONPATH": str(root)}
    log = folder / "server.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=out
        )
    try:
        for line in map(bytes.decode, server.stdout):
            if found := re.search(r"http://\S+", line):
                yield found[0].rstrip("/")
                return
        raise AssertionError(log.read_text())
    finally:
        server.terminate()
        server.wait(30)
