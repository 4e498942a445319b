"""The notebook on generation runs from top to bottom on any pipeline and clips."""

from pathlib import Path

import nbformat
from datasets import DatasetDict
from nbclient import NotebookClient
from test_evaluation import make_rows
from test_pipeline import make_pipeline

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "generation.ipynb"


def test_it_runs_and_shows_every_direction(tmp_path, monkeypatch):
    make_pipeline().save_pretrained(tmp_path / "model")
    DatasetDict({"validation": make_rows(4)}).save_to_disk(tmp_path / "clips")
    monkeypatch.setenv("NANO4M_MODEL", str(tmp_path / "model"))
    monkeypatch.setenv("NANO4M_CLIPS", str(tmp_path / "clips"))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parent.parent))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "stored without outputs"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    tables = [output.data["text/html"] for output in shown if "text/html" in output.data]
    assert len(tables) == 12 + 4, "every direction, a chain, in-painting, guidance, retrieval"
    assert sum("data:image/png" in table for table in tables) == 15, "all but that of text from nothing"
    assert sum("data:audio/flac" in table for table in tables) > 4
