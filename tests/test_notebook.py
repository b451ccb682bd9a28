"""The Colab notebook, every cell from top to bottom, offline."""

import json
import pathlib

import pytest

from tests.tiny_runs import environment

# So that its training takes seconds here.
SUBSTITUTES = {
    "config.total_steps = 100 if": "config.total_steps = 12 if",
    "config.optimizer.warmup_steps = 20": "config.optimizer.warmup_steps = 4",
    "config.log.every_steps = 10": "config.log.every_steps = 4",
    "config.model.width, config.model.num_heads = 96, 3": (
        "config.model.width, config.model.num_heads, config.model.depth = 64, 2, 2"
    ),
}

NOTEBOOK = pathlib.Path(__file__).parents[1] / "notebooks" / "segmenter_colab.ipynb"


def test_notebook_is_stored_without_results():
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_every_cell_runs(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    # No network: the proxy does not answer, and the cache of weights is empty.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("SEGMENTER_JAX_CACHE", str(tmp_path / "weights"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("XLA_FLAGS", environment()["XLA_FLAGS"])
    text = NOTEBOOK.read_text()
    for old, new in SUBSTITUTES.items():
        assert old in text
        text = text.replace(old, new)
    notebook = nbformat.reads(text, as_version=4)
    # Elsewhere than in a clone.
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    nbformat.write(notebook, tmp_path / "executed.ipynb")

    outputs = [o for cell in notebook.cells for o in cell.get("outputs", ())]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 9
    text = "".join(o.get("text", "") for o in outputs)
    assert "from scratch: cannot download" in text
    assert "window 96, stride 64" in text
