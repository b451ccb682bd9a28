"""Printing where the terminal has no letters for what is printed."""

import argparse
import io
import sys

import pytest

from segmenter_jax.runtime.command import run_command


@pytest.mark.parametrize("fails", [False, True])
def test_text_that_a_terminal_cannot_show_appears_as_escapes(monkeypatch, fails):
    streams = {name: io.TextIOWrapper(io.BytesIO(), "cp1252") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)

    def command(arguments):
        print("Straße, 道路, na\udcefve")
        if fails:
            raise ValueError("道路: no such file")

    assert run_command(argparse.ArgumentParser("x"), command, []) == fails
    printed = {}
    for name, stream in streams.items():
        stream.flush()
        printed[name] = stream.buffer.getvalue().decode("cp1252").strip()
    assert printed["stdout"] == r"Straße, \u9053\u8def, na\udcefve"
    assert printed["stderr"] == (r"x: error: \u9053\u8def: no such file" if fails else "")
