"""The ruler of columns: same rows for all kinds, kept as found, peers checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_copper, make_nacl
from numpy.testing import assert_allclose
from small_tables import rock_salts, small_tables

from crysxpp_mm.benchmarks import ruler
from crysxpp_mm.benchmarks.ruler import (
    RulerKind,
    control_kinds,
    model_kinds,
    peer_columns,
    quick_ruler,
    run_ruler,
    structure_columns,
)
from crysxpp_mm.benchmarks.simple_models import FOLDS, RIDGE, TREES
from crysxpp_mm.errors import DataError, SettingsError
from crysxpp_mm.models.crysae import CrysAE

FEW = (RIDGE[2], RIDGE[6], *TREES)
TARGETS = ("exfoliation energy", "band gap")


def volumes(table) -> np.ndarray:
    return np.array([[crystal.volume, len(crystal)] for crystal in table.structures])


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.json.gz"
    CrysAE.random(seed=0, hidden_dim=4, n_convs=1).save(path)
    return path


def test_what_was_measured_is_not_measured_again(tmp_path, monkeypatch):
    calls = []
    real = ruler.cross_validate

    def counted(*args, **options):
        calls.append(options["seed"])
        return real(*args, **options)

    monkeypatch.setattr(ruler, "cross_validate", counted)
    kinds = [
        RulerKind(name="volume", columns=volumes),
        RulerKind(name="one table", columns=lambda t: volumes(t) + 1, tables=("mp2000",)),
    ]

    def run() -> pd.DataFrame:
        return run_ruler(
            kinds, small_tables(), tmp_path, targets=TARGETS, candidates=FEW, say=lambda _: None
        )

    first = run()
    assert calls == [18012019] * 3
    assert list(zip(first["target"], first["kind"], strict=True)) == [
        ("exfoliation energy", "volume"),
        ("band gap", "volume"),
        ("band gap", "one table"),
    ]
    assert (first["mae"] <= first[["ridge", "trees"]].max(axis=1)).all()
    assert first["mae"].iloc[1] < 0.1  # the root of the volume, 8 to 10, is in the columns
    again = run()
    assert len(calls) == 3
    assert_allclose(again["mae"], first["mae"])
    assert len(pd.read_csv(tmp_path / "ruler_folds.csv")) == 3 * FOLDS
    page = (tmp_path / "ruler.md").read_text()
    assert "seed 18012019" in page
    assert "one table" in page


def test_unknown_targets_and_no_model_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="no target 'hardness'; there are exfoliation energy"):
        run_ruler([], small_tables(), tmp_path, targets=["hardness"])
    with pytest.raises(SettingsError, match="at least one model"):
        quick_ruler([], out=tmp_path)


def test_a_model_is_measured_beside_the_controls(tmp_path, monkeypatch, model_file):
    root = tmp_path / "data"
    (root / "peers").mkdir(parents=True)
    means = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float16)
    np.savez(
        root / "peers/mp2000-chgnet-0.4.2.npz",
        columns=means,
        names=["L0 mean 0", "L0 std 0", "L1 mean 0"],
    )
    monkeypatch.setattr(ruler, "load_tables", lambda root, names: small_tables())
    table = quick_ruler(
        [model_file],
        root,
        out=tmp_path / "out",
        targets=["band gap"],
        candidates=FEW,
        say=lambda _: None,
    )
    assert list(table["kind"]) == ["small", "small, means", "Magpie", "random weights 0", "CHGNet"]
    folds = pd.read_csv(tmp_path / "out/ruler_folds.csv").drop_duplicates("kind")
    assert folds.set_index("kind")["n_columns"].to_dict() == {
        "small": 24,
        "small, means": 8,
        "Magpie": 132,
        "random weights 0": 24,
        "CHGNet": 2,
    }
    names = [kind.name for kind in model_kinds([model_file])]
    assert names == ["small", "small, means"]
    kinds = control_kinds(root, like=model_file, seeds=(0, 1))
    assert [kind.name for kind in kinds][2:4] == ["random weights 0", "random weights 1"]

    whole = small_tables()["mp2000"]
    short = type(whole)(name="mp2000", structures=whole.structures[:5], targets=whole.targets[:5])
    with pytest.raises(DataError, match="has 24 rows, the table has 5"):
        peer_columns(short, folder=root / "peers", ending="chgnet-0.4.2")


def test_columns_of_structures_are_numbers_of_every_crystal():
    columns = structure_columns([make_nacl(), make_copper(), *rock_salts(2)])
    assert columns.shape == (4, 9)
    assert np.isfinite(columns).all()
    assert columns[0, 0] == pytest.approx(float(make_nacl().density))
    assert not np.array_equal(columns[0], columns[1])
