"""The notebooks on tokenization run from beginning to end, in small mode, and are stored without their outputs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("tokenization_*.ipynb"))
LARGEST_OUTPUT = 100_000  # characters of all stored outputs of a notebook
SHOWN = {"image": "image/png", "audio": "text/html", "text": "text/markdown"}


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """Where the notebooks write; the data are made by the first one that runs."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_headless(path, output, monkeypatch):
    monkeypatch.setenv("NANO4M_SMALL", "1")
    monkeypatch.setenv("NANO4M_OUTPUT", str(output))
    notebook = nbformat.read(path, as_version=4)
    stored = sum(len(str(cell.get("outputs", ""))) for cell in notebook.cells)
    assert stored < LARGEST_OUTPUT, "clear the outputs before committing"

    NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(FOLDER)}}).execute()

    shown = [output.data for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    kinds = {kind for data in shown for kind in data}
    assert SHOWN[path.stem.rpartition("_")[2]] in kinds
    table = next(data["text/markdown"] for data in shown if "measure" in data.get("text/markdown", ""))
    strategies = [line for line in "".join(cell.source for cell in notebook.cells).splitlines() if line[:5] == '    "']
    assert len(strategies) >= 4
    assert all(line.split('"')[1] in table for line in strategies), "each strategy is a column of the table"
    assert "learnability, nats per token" in table and "tokens per clip" in table
