"""The code of README and of the documentation runs, and its commands have the options named."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from salts import SALTS, Y
from typer.testing import CliRunner

from crysxpp_mm import CrysXPPRegressor
from crysxpp_mm.cli import app
from crysxpp_mm.data import matminer_tables

ROOT = Path(__file__).parents[1]
WRITTEN = ("*.md", "concepts/*.md", "how-to/*.md")  # the other pages of the site are gathered
PAGES = [
    ROOT / "README.md",
    *sorted(path for pattern in WRITTEN for path in (ROOT / "docs").glob(pattern)),
]
MARK = "<!-- not run: "
BLOCK = re.compile(rf"^({MARK}.+ -->\n)?( *)```python\n(.*?)^ *```", re.DOTALL | re.MULTILINE)
NEEDS = {"cluster.md": "dask.dataframe", "dgl.md": "dgl"}


def blocks(page: Path) -> list[str]:
    """The Python of a page, without the blocks that are marked."""
    found = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [textwrap.dedent(block) for mark, _, block in found if not mark]


def commands(page: Path) -> set[str]:
    found = re.findall(r"crysxpp [a-z-]+ [^`\n#)]+", page.read_text(encoding="utf-8"))
    return {line for line in found if " -" in line}


COMMANDS = sorted({line for page in PAGES for line in commands(page)})


def run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the blocks of a page, one after the other, in an empty folder; returns its names."""
    monkeypatch.chdir(folder)
    table = pd.DataFrame({"structure": SALTS, "K_VRH": 10 * Y})
    monkeypatch.setattr(matminer_tables, "load_table", lambda *_args, **_names: table)
    for option, value in (("max_epochs", 1), ("min_steps", 0)):  # what runs also runs longer
        monkeypatch.setitem(CrysXPPRegressor.__init__.__kwdefaults__, option, value)
    names: dict[str, Any] = {}
    for block in blocks(page):
        exec(compile(block, page.name, "exec"), names)
    return names


def test_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(blocks(PAGES[0])) >= 5
    names = run(PAGES[0], tmp_path, monkeypatch)
    assert (tmp_path / "bulk-modulus.json.gz").exists()
    assert "CrysAE L3 mean 0" in names["df"]


@pytest.mark.parametrize("page", [page for page in PAGES[1:] if blocks(page)], ids=lambda p: p.name)
def test_pages_of_the_site_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.name in NEEDS:
        pytest.importorskip(NEEDS[page.name])
    settings = pytest.importorskip("dask").config if page.name == "cluster.md" else None
    before = settings.get("dataframe.convert-string", None) if settings else None
    try:
        run(page, tmp_path, monkeypatch)
    finally:
        if settings:
            settings.set({"dataframe.convert-string": before})


def test_readme_fits() -> None:
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) <= 170


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_have_the_options_named(line: str) -> None:
    result = CliRunner().invoke(app, [*shlex.split(line)[1:], "--help"])
    assert result.exit_code == 0, result.output
