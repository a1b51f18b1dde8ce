"""The README's code runs, block after block, and its commands have the options that it names."""

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

from crysxpp_mm.cli import app
from crysxpp_mm.data import matminer_tables

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"^( *)```python\n(.*?)^ *```", README, re.DOTALL | re.MULTILINE)
COMMANDS = sorted({line for line in re.findall(r"crysxpp [a-z-]+ [^`\n]+", README) if " -" in line})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_code_runs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dask = pytest.importorskip("dask")
    frame = pytest.importorskip("dask.dataframe")
    table = pd.DataFrame({"structure": SALTS, "K_VRH": 10 * Y})
    monkeypatch.setattr(matminer_tables, "load_table", lambda *_args, **_names: table)
    before = dask.config.get("dataframe.convert-string", None)
    with dask.config.set({"dataframe.convert-string": False}):
        rows = frame.from_pandas(table[["structure"]], npartitions=2)
    names: dict[str, Any] = {"dask": dask, "frame": rows}
    assert len(PYTHON) >= 5
    try:
        for _, block in PYTHON:
            exec(compile(textwrap.dedent(block), "README.md", "exec"), names)
        last = textwrap.dedent(PYTHON[-1][1]).splitlines()[-1]
        assert "CrysAE L3 mean 0" in eval(last, names).compute(scheduler="synchronous")
    finally:
        dask.config.set({"dataframe.convert-string": before})
    assert (here / "m.json.gz").exists()
    assert "CrysAE L3 mean 0" in names["df"]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_have_the_options_named(line: str) -> None:
    result = CliRunner().invoke(app, [*shlex.split(line)[1:], "--help"])
    assert result.exit_code == 0, result.output
