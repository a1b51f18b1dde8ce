"""The benchmarks on small tables: honest folds, complete reports, runs that go on after a stop."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from small_tables import rock_salts, small_tables

from crysxpp_mm.benchmarks import column_choice, columns, data, folds, pages, simple_models, speed
from crysxpp_mm.benchmarks.column_choice import run_choice
from crysxpp_mm.benchmarks.columns import run_columns
from crysxpp_mm.benchmarks.data import (
    DATA_VARIABLE,
    TARGETS,
    data_root,
    load_mp_structures,
    load_tables,
)
from crysxpp_mm.benchmarks.folds import random_columns, summarize
from crysxpp_mm.benchmarks.pages import markdown_table, versions, write_report
from crysxpp_mm.benchmarks.runner import Place, RunTable
from crysxpp_mm.benchmarks.simple_models import (
    ALL,
    FOLDS,
    QUICK,
    RIDGE,
    SVR,
    TREES,
    Candidate,
    candidates_in_words,
    cross_validate,
    predictions,
    split,
    standardized,
)
from crysxpp_mm.benchmarks.statistics import differences_by_fold
from crysxpp_mm.errors import DataError, SettingsError, UnknownModelError
from crysxpp_mm.models.crysae import CrysAE

needs_data = pytest.mark.skipif(
    not os.environ.get(DATA_VARIABLE), reason=f"{DATA_VARIABLE} names no folder with the data"
)

FEW = (RIDGE[0], SVR[4], TREES[0])


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.json.gz"
    CrysAE.random(seed=5, hidden_dim=8, n_convs=2).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with small tables and weights in the form of the released ones."""
    folder = tmp_path / "data"
    folder.mkdir()
    parts = {"linear": "fc_full", "bond_norm": "bn1", "atom_norm": "bn2"}
    tensors = {}
    for name, value in CrysAE.random(hidden_dim=8, n_convs=2).encoder.state_dict().items():
        if name.startswith("convolutions."):
            _, layer, part, entry = name.split(".")
            tensors[f"convs.{layer}.{parts[part]}.{entry}"] = value.numpy()
        else:
            tensors[name] = value.numpy()
    np.savez(folder / "released_crysae_weights.npz", **tensors)
    for module in (columns, column_choice, speed):
        monkeypatch.setattr(module, "load_tables", lambda *_args, **_names: small_tables())
    return folder


def straight_line(n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Columns and a target that depends on the first of them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 6))
    return x, 3 * x[:, 0] + 0.01 * rng.normal(size=n) + 7


# Data.

TARGET = {target.name: target for target in TARGETS}


def test_every_target_has_its_own_name() -> None:
    assert len({target.name for target in TARGETS}) == len(TARGETS)
    assert set(data.EXTRA_TARGETS) <= {target.name for target in TARGETS}


def test_invalid_values_are_not_learned() -> None:
    learned = TARGET["log10 eps_electronic"].transform([0.5, 10.0, 1e6, float("nan")])
    assert_allclose(learned, [np.nan, 1.0, np.nan, np.nan])


def test_a_data_root_must_be_named_and_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    with pytest.raises(DataError, match=f"set {DATA_VARIABLE}"):
        data_root()
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    assert data_root() == tmp_path
    with pytest.raises(DataError, match="absent is not a folder"):
        data_root(tmp_path / "absent")


def test_an_unknown_table_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No benchmark table shelf"):
        load_tables(tmp_path, names=["shelf"])
    with pytest.raises(DataError, match=r"mp_properties\.csv is missing"):
        load_tables(tmp_path, names=["mp2000"])
    with pytest.raises(DataError, match=r"matbench_jdft2d\.json\.gz is missing"):
        load_tables(tmp_path, names=["matbench_jdft2d"])
    with pytest.raises(DataError, match=r"mp_structures\.zip is missing"):
        load_mp_structures(tmp_path, ["mp-1"])


def test_rows_left_out_are_counted() -> None:
    values = pd.DataFrame({"eps_electronic": [2.0, 3.0, 1e7, 0.5]})
    table = data._table("phonon_dielectric_mp", rock_salts(4), values)
    assert len(table) == 4
    assert table.notes[0].startswith("log10 eps_electronic: 2 of 4 rows left out")
    assert "closed gap" in table.notes[0]


@needs_data
def test_a_real_table_loads() -> None:
    table = load_tables(names=["matbench_jdft2d"])["matbench_jdft2d"]
    assert len(table) == len(table.targets) == 636
    assert table.notes == ()


@needs_data
def test_a_crystal_that_is_not_in_the_zip_is_named() -> None:
    (structure,) = load_mp_structures(None, ["mp-30"])
    assert structure.composition.reduced_formula == "Cu"
    with pytest.raises(DataError, match=r"there is no mp-nothing\.cif"):
        load_mp_structures(None, ["mp-nothing"])


# Regressors and folds.


def test_folds_are_disjoint_and_complete() -> None:
    parts = list(split(23, FOLDS, seed=0))
    assert sorted(np.concatenate([test for _, test in parts])) == list(range(23))
    for train, test in parts:
        assert not set(train) & set(test)
        assert len(train) + len(test) == 23


def test_standardization_knows_training_rows_only() -> None:
    train = np.array([[1.0, 5.0], [3.0, 5.0]])
    scaled, other = standardized(train, np.array([[100.0, -9.0]]))
    assert_array_equal(scaled, [[-1, 0], [1, 0]])
    assert_array_equal(other, [[98, 0]])  # a constant column says nothing


@pytest.mark.parametrize("n_columns", [5, 80], ids=["tall", "wide"])
def test_ridge_is_that_of_scikit_learn(n_columns: int) -> None:
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(0)
    x, x_test = rng.normal(size=(40, n_columns)), rng.normal(size=(7, n_columns))
    y = x[:, 0] + rng.normal(size=40)
    guesses = predictions(RIDGE, x, y, x_test)
    for candidate, guess in zip(RIDGE, guesses, strict=True):
        scaled, scaled_test = standardized(x, x_test)
        ridge = Ridge(alpha=candidate.alpha).fit(scaled, (y - y.mean()) / y.std())
        assert_allclose(guess, ridge.predict(scaled_test) * y.std() + y.mean(), atol=1e-8)


def test_svr_is_that_of_scikit_learn() -> None:
    from sklearn import svm

    x, y = straight_line()
    candidate = Candidate(regressor="svr", cost=3.0, gamma=0.4, epsilon=0.01)
    (guess,) = predictions([candidate], x[:40], y[:40], x[40:])
    scaled, scaled_test = standardized(x[:40], x[40:])
    machine = svm.SVR(C=3.0, gamma=0.4 / 6, epsilon=0.01)
    machine.fit(scaled, (y[:40] - y[:40].mean()) / y[:40].std())
    expected = machine.predict(scaled_test) * y[:40].std() + y[:40].mean()
    assert_allclose(guess, expected, atol=1e-2)


def test_what_can_be_learned_is_learned() -> None:
    x, y = straight_line()
    scores = cross_validate(x, y, candidates=FEW)
    assert [score.fold for score in scores] == list(range(FOLDS))
    assert all(score.chosen.regressor == "ridge" for score in scores)
    assert np.mean([score.mae for score in scores]) < 0.5
    assert set(scores[0].by_regressor) == {"ridge", "svr", "trees"}


def test_noise_is_not_learned() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(80, 40)), rng.normal(size=80)
    scores = cross_validate(x, y, candidates=QUICK)
    assert np.mean([score.mae for score in scores]) > 0.9 * np.abs(y - y.mean()).mean()


def test_the_choice_does_not_see_the_fold_that_is_scored() -> None:
    x, y = straight_line()
    honest = cross_validate(x, y, candidates=FEW)[0]
    _, test = next(split(len(y), FOLDS, simple_models.SEED))
    spoiled = y.copy()
    spoiled[test] = y[test] + 1e6
    other = cross_validate(x, spoiled, candidates=FEW)[0]
    assert other.chosen == honest.chosen
    for name, error in honest.by_regressor.items():
        assert abs(other.by_regressor[name] - 1e6) <= error + 1e-6  # the guesses are the same


def test_rows_without_a_target_are_left_out() -> None:
    x, y = straight_line()
    hole = np.concatenate([y, [np.nan] * 5])
    padded = np.concatenate([x, np.full((5, 6), np.nan)])
    assert cross_validate(padded, hole, candidates=RIDGE) == cross_validate(x, y, candidates=RIDGE)


def test_candidates_far_behind_are_dropped_early() -> None:
    x, y = straight_line()
    hopeless = Candidate(regressor="svr", cost=1e-6, gamma=0.4, epsilon=0.01)
    kept = cross_validate(x, y, candidates=[RIDGE[0], hopeless])
    dropped = cross_validate(x, y, candidates=[RIDGE[0], hopeless], margin=0.1)
    assert set(kept[0].by_regressor) == {"ridge", "svr"}
    assert [set(score.by_regressor) for score in dropped] == [{"ridge"}] * FOLDS
    assert [score.mae for score in dropped] == [score.mae for score in kept]


def test_columns_that_cannot_be_scored_are_refused() -> None:
    x, y = straight_line()
    with pytest.raises(DataError, match="59 rows of columns and 60 targets"):
        cross_validate(x[1:], y)
    with pytest.raises(DataError, match="9 rows have a target"):
        cross_validate(x[:9], y[:9])
    x[3, 0] = np.inf
    with pytest.raises(DataError, match="known row 3 are NaN"):
        cross_validate(x, y)


# Summaries.


def folds_of(ours: list[float], theirs: dict[int, list[float]]) -> pd.DataFrame:
    """Errors of one target, fold by fold; the control's by its seeds."""
    rows = [("ours", None, fold, mae) for fold, mae in enumerate(ours)]
    rows += [
        ("control", seed, fold, mae)
        for seed, values in theirs.items()
        for fold, mae in enumerate(values)
    ]
    frame = pd.DataFrame(rows, columns=["kind", "seed", "fold", "mae"])
    frame = frame.assign(
        target="band gap", n_rows=10, n_columns=3, chosen="ridge", ridge=frame["mae"]
    )
    return frame.assign(svr=np.nan, trees=np.nan)


def test_seeds_are_averaged_before_the_spread_over_folds() -> None:
    folds = folds_of([1.0] * 5, {0: [1, 2, 3, 4, 5], 1: [3, 4, 5, 6, 7]})
    control = summarize(folds).set_index("kind").loc["control"]
    assert control["mae"] == 4
    assert control["std"] == pytest.approx(np.std([2, 3, 4, 5, 6]))
    assert control["std_seeds"] == 1
    assert control["chosen"] == "ridge 10"
    assert control["unit"] == "eV"
    assert np.isnan(control["svr"])


@pytest.mark.parametrize(
    ("shift", "verdict"),
    [([-1, -1, -1, -1, -2], "better"), ([1, 1, 1, 1, 2], "worse"), ([-1, 1, -1, 1, 0], "equal")],
)
def test_a_verdict_needs_more_than_the_standard_error(shift: list[int], verdict: str) -> None:
    base = np.array([10.0, 20, 30, 40, 50])
    folds = folds_of(list(base + shift), {0: list(base - 1), 1: list(base + 1)})
    found = differences_by_fold(folds, ours="ours", controls=["control"])
    (row,) = found.to_dict("records")
    assert row["verdict"] == verdict
    assert row["difference"] == pytest.approx(np.mean(shift))
    assert row["standard_error"] == pytest.approx(np.std(shift, ddof=1) * np.sqrt(1 / 5 + 1 / 4))
    assert row["folds_better"] == sum(value < 0 for value in shift)


# The whole benchmark of columns.


def test_columns_are_compared_reported_and_not_computed_twice(
    root: Path, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    calls: list[int] = []

    def counted(*args: object, **options: object) -> list[simple_models.FoldScore]:
        calls.append(1)
        return cross_validate(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(folds, "cross_validate", counted)
    monkeypatch.setattr(simple_models, "N_TREES", 5)
    monkeypatch.setattr(column_choice, "CHOICES", dict(list(column_choice.CHOICES.items())[-2:]))
    lines: list[str] = []

    def run(**options: object) -> pd.DataFrame:
        calls.clear()
        place = Place(root=root, out=out, say=lines.append)
        table = run_columns(place, models=[model_file], seeds=(0, 1), **options)  # type: ignore[arg-type]
        run_choice(place, model=model_file)
        return table

    table = run(candidates=FEW)
    n_targets, n_kinds = 3, 6  # the model, two seeds, Magpie, the released network twice
    assert len(calls) == n_targets * (n_kinds + 2)
    assert list(table["kind"].unique()) == [
        *("small", "random weights", "Magpie", "released, all layers", "released, last layer")
    ]
    assert table.set_index(["target", "kind"])["n_columns"]["band gap"].to_dict() == {
        "small": 72,
        "random weights": 72,
        "Magpie": 132,
        "released, all layers": 72,
        "released, last layer": 8,
    }
    assert (table[table["target"] == "exfoliation energy"]["n_rows"] < 24).all()
    assert len(pd.read_csv(out / "columns_folds.csv")) == n_targets * n_kinds * FOLDS
    assert_allclose(pd.read_csv(out / "columns.csv")["mae"], table["mae"])
    assert len(pd.read_csv(out / "columns_differences.csv")) == n_targets * 2
    page = (out / "columns.md").read_text()
    for text in ("seed 0", "5 shuffled folds", "mp2000: invented.", versions(), columns.COMMAND):
        assert text in page
    assert str(tmp_path) not in page
    assert any(line.startswith("band gap: random weights 1: ") for line in lines)
    choice = pd.read_csv(out / "column_choice.csv")
    assert set(choice["n_columns"]) == {48, 72}
    assert "mean ratio to all layers, mean, std, max" in (out / "column_choice.md").read_text()

    assert_allclose(run(candidates=FEW)["mae"], table["mae"], rtol=1e-12)
    assert calls == []

    rows = pd.read_csv(out / "columns_folds.csv")  # a run that was stopped
    rows[rows["kind"] != "Magpie"].to_csv(out / "columns_folds.csv", index=False)
    assert_allclose(run(candidates=FEW)["mae"], table["mae"], rtol=1e-12)
    assert len(calls) == n_targets

    run(candidates=FEW[:1])  # other settings
    assert len(calls) == n_targets * n_kinds

    (out / "columns_folds.csv").write_text("")
    run(candidates=FEW[:1])
    assert len(calls) == n_targets * n_kinds
    (out / "columns_folds.csv").write_text("what,is\nthis,file\n")
    assert set(run(candidates=FEW[:1], rows=20)["n_rows"]) == {15, 20}


def test_random_weights_are_calibrated_and_differ_by_seed() -> None:
    structures = rock_salts(16)
    like = CrysAE.random(hidden_dim=8, n_convs=2)
    first, again, other = (
        random_columns(structures, like=like, seed=seed, calibration=structures)
        for seed in (0, 0, 1)
    )
    assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.01


def test_a_benchmark_without_content_is_refused(root: Path, model_file: Path) -> None:
    for name in ("seeds", "candidates"):
        with pytest.raises(SettingsError, match=f"{name} must not be empty"):
            run_columns(Place(root=root), models=[model_file], **{name: ()})  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"at least one model.*got none"):
        run_columns(Place(root=root), models=[])
    with pytest.raises(SettingsError, match="none twice, got small, small"):
        run_columns(Place(root=root), models=[model_file, model_file])
    with pytest.raises(UnknownModelError, match="no model file"):
        run_columns(Place(root=root), models=[root / "absent.json.gz"])
    with pytest.raises(UnknownModelError, match="no model file"):
        run_choice(Place(root=root), model=root / "absent.json.gz")
    (root / "released_crysae_weights.npz").unlink()
    with pytest.raises(DataError, match=r"released_crysae_weights\.npz is missing"):
        run_columns(Place(root=root), models=[model_file])


def test_shipped_models_are_compared_the_default_first(monkeypatch: pytest.MonkeyPatch) -> None:
    names = pd.DataFrame(
        {
            "name": ["another", "crysae-mp-paper", "crysae-mp-v1", "a-predictor"],
            "kind": ["CrysAE", "CrysAE", "CrysAE", "CrysXPPRegressor"],
        }
    )
    monkeypatch.setattr("crysxpp_mm.shipped.list_models", lambda: names)
    assert columns.shipped_models() == ["crysae-mp-v1", "another", "crysae-mp-paper"]


def test_the_grid_holds_each_candidate_once() -> None:
    assert len(set(ALL)) == len(ALL)
    assert set(QUICK) <= set(ALL)
    assert "extra trees" in candidates_in_words(ALL)
    assert candidates_in_words(TREES) == "extra trees (100)"


# Reports.


def test_a_table_in_markdown() -> None:
    frame = pd.DataFrame({"name": ["a|b", "c"], "value": [1.23456, np.nan], "n": [3, 4]})
    assert markdown_table(frame).splitlines() == [
        "| name | value | n |",
        "| --- | --- | --- |",
        "| a\\|b | 1.235 | 3 |",
        "| c |  | 4 |",
    ]


def test_versions_are_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    line = versions()
    assert "\n" not in line
    for name in ("crysxpp_mm", "Python", "torch", "matminer", "scikit-learn", "numpy"):
        assert f"{name} " in line
    monkeypatch.setattr(pages, "LISTED", ("no-such-package",))
    assert versions().endswith("no-such-package absent")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("crysae-mp-v1", "crysae-mp-v1"),
        ("runs/mine.json.gz", "mine"),
        (Path("runs/v2/model.json.gz"), "v2"),
        ("model.json", "model"),
    ],
)
def test_a_model_is_named_without_its_path(model: str | Path, name: str) -> None:
    assert pages.model_name(model) == name


def test_a_report_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "new" / "folder"
    frame = pd.DataFrame({"x": [1, 2]})
    write_report(out, "page", tables={"numbers": frame}, text="# Page\n")
    assert sorted(path.name for path in out.iterdir()) == ["numbers.csv", "page.md"]
    assert (out / "numbers.csv").read_text() == "x\n1\n2\n"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_report(out, "page", tables={}, text="half")
    assert (out / "page.md").read_text() == "# Page\n"
    assert len(list(out.iterdir())) == 2


def test_a_report_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is no name for a file"):
        write_report(tmp_path, "../page", tables={}, text="")
    with pytest.raises(DataError, match="is no name for a file"):
        write_report(tmp_path, "page", tables={"": pd.DataFrame()}, text="")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot take the results"):
        write_report(tmp_path / "file", "page", tables={}, text="")


def test_results_go_to_the_checkout_or_to_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "crysxpp_mm" / "benchmarks" / "pages.py"
    monkeypatch.setattr(pages, "__file__", str(module))
    assert pages.default_folder() == Path()
    for name in ("setup.py", "pyproject.toml"):
        (tmp_path / name).write_text("")
    assert pages.default_folder() == module.parent / "results"


# Speed.


def test_a_goal_is_reached_or_not() -> None:
    def measure(value: float, goal: str) -> bool | None:
        return speed.Measure(part="", measure="", value=value, unit="", goal=goal).reached

    assert measure(2.0, ">= 2") is True
    assert measure(1.9, ">= 2") is False
    assert measure(1.9, "<= 2") is True
    assert measure(1.9, "") is None


def test_work_is_interleaved() -> None:
    order: list[str] = []
    times = speed.interleaved([lambda: order.append("a"), lambda: order.append("b")], rounds=2)
    assert order == ["a", "b", "a", "b"]
    assert [len(rounds) for rounds in times] == [2, 2]


@pytest.mark.parametrize("n_atoms", [8, 16, 250])
def test_silicon_cells_have_about_the_size_that_is_asked_for(n_atoms: int) -> None:
    assert len(speed.silicon_cell(n_atoms)) == pytest.approx(n_atoms, rel=0.3)


def test_memory_is_counted_from_the_start_of_the_measurement() -> None:
    block = np.ones(40_000_000)
    del block
    before = speed._restart_peak()
    block = np.ones(20_000_000)
    growth = speed._peak_megabytes() - before
    assert block[-1] == 1
    assert growth == pytest.approx(160, abs=40)


def test_the_speed_benchmark_writes_every_measure(
    root: Path, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed.measure_atoms, "__defaults__", ((16, 64),))
    out = tmp_path / "out"
    lines: list[str] = []
    place = Place(root=root, out=out, say=lines.append)
    table = speed.run_speed(place, model=str(model_file), scale=0.001)
    assert len(lines) == len(table) + 1
    assert np.isfinite(table["value"]).all()
    goals = table[table["goal"] != ""]
    assert len(goals) == 10
    assert goals["reached"].isin([True, False]).all()
    assert list(pd.read_csv(out / "speed.csv").columns) == [
        *("part", "measure", "value", "unit", "goal", "reached")
    ]
    page = (out / "speed.md").read_text()
    assert "growth of the peak" in page
    assert "Model small; " in page
    assert versions() in page


def test_runs_are_found_again_and_a_foreign_file_is_none(tmp_path):
    path = tmp_path / "made" / "runs.csv"
    table = RunTable(path, columns=["mae"])
    assert table.find("a") == []
    first = table.add("a", [{"mae": 0.25, "note": None}])
    table.add("00", [{"mae": 1.0, "note": "x"}, {"mae": 2.0, "note": "y"}])
    again = RunTable(path, columns=["mae"])
    assert first == [{"mae": 0.25, "note": None, "key": "a"}]
    assert [row["mae"] for row in again.find("00")] == [1.0, 2.0]
    assert again.find("a")[0]["mae"] == 0.25
    assert RunTable(path, columns=["mae", "seconds"]).rows == []
    path.write_bytes(b"")
    assert RunTable(path, columns=["mae"]).rows == []
