"""The notebooks run from a clean kernel, and are committed with what they gave."""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = ("01_featurize", "02_fine_tune", "03_explain")
DATA = os.environ.get("CRYSXPP_DATA")


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.get("outputs", [])
    ]


def kinds(notebook: nbformat.NotebookNode) -> list[set[str]]:
    """What each code cell shows: kinds of data, such as a picture or text."""
    return [
        {kind for output in cell.outputs for kind in output.get("data", {output.output_type: ""})}
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


DRAWS = re.compile(r"plot_\w+\(|draw_map\(|\.figure$", re.MULTILINE)
"""What a cell that draws looks like."""


def test_all_notebooks_are_tested() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_notebook_is_committed_with_its_outputs(name: str) -> None:
    notebook = read(name)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))  # one run, from top to bottom
    figures = [
        "image/png" in shown
        for cell, shown in zip(
            (cell for cell in notebook.cells if cell.cell_type == "code"),
            kinds(notebook),
            strict=True,
        )
        if DRAWS.search(cell.source)
    ]
    assert figures
    assert all(figures)
    for output in outputs(notebook):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
        assert not re.search(r"(/home|/root|/work|/tmp|/Users|[A-Z]:\\)", str(output.get("text")))
    first = "".join(cell.source for cell in notebook.cells[:2])
    assert "pip install" in first
    if "load_table" in "".join(cell.source for cell in notebook.cells):
        assert any("MATMINER_DATA" in cell.source for cell in notebook.cells)


@pytest.mark.skipif(not DATA, reason="CRYSXPP_DATA names no folder with the data")
@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs_from_a_clean_kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MATMINER_DATA", str(Path(str(DATA)).resolve() / "matminer"))
    notebook = read(name)
    committed = kinds(notebook)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    assert kinds(notebook) == committed
    assert not [o.text for o in outputs(notebook) if o.get("name") == "stderr"]
