"""The command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import make_copper, make_nacl, make_silicon
from pymatgen.core import Lattice, Structure
from typer.testing import CliRunner

from crysxpp_mm import CrysAE, CrysAEFeaturizer, __version__, cli
from crysxpp_mm.cli import app
from crysxpp_mm.data import sources
from crysxpp_mm.data.store import GraphStore, build_store
from crysxpp_mm.errors import SettingsError
from crysxpp_mm.featurizers import resident

COMMANDS = (
    "demo",
    "featurize",
    "graphs",
    "pretrain",
    "train",
    "predict",
    "explain",
    "models",
    "benchmark speed",
    "benchmark columns",
)
SETTINGS = {"hidden_dim": 8, "n_convs": 1, "batch_size": 4, "max_epochs": 1}


def run(*arguments: object, code: int = 0) -> Any:
    """Run a command in this process and check how it ends."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


def fails(*arguments: object) -> str:
    """The one line of an error of input."""
    result = run(*arguments, code=1)
    assert re.fullmatch(r"error: .+\n", result.stderr.splitlines(keepends=True)[-1])
    assert "Traceback" not in result.output
    return result.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of random weights."""
    path = tmp_path_factory.mktemp("model") / "random.json.gz"
    CrysAE.random(seed=0, hidden_dim=8).save(path)
    return str(path)


@pytest.fixture(scope="module")
def _cifs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cifs")
    make_nacl().to(filename=str(folder / "nacl.cif"))
    make_copper().to(filename=str(folder / "copper.cif"))
    return folder


@pytest.fixture
def cifs(_cifs: Path, tmp_path: Path) -> Path:
    """A folder with copper.cif and nacl.cif."""
    return Path(shutil.copytree(_cifs, tmp_path / "cifs"))


@pytest.fixture
def bad(cifs: Path) -> Path:
    """The same folder with a file that is no structure and one without features."""
    (cifs / "bad.cif").write_text("nonsense")
    Structure(Lattice.cubic(4), ["Lr"], [[0, 0, 0]]).to(filename=str(cifs / "lr.cif"))
    return cifs


def columns_of(model: str, *structures: Structure) -> np.ndarray:
    return CrysAEFeaturizer(model=model).structure_embeddings(structures)


# The frame.


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_parses(command):
    text = run(*command.split(), "--help").output
    assert "Example" in text
    examples = re.findall(rf"^ *crysxpp ({command}.*)$", text, re.MULTILINE)
    assert examples
    for example in examples:
        options = re.findall(r"--[\w-]+", example)
        assert set(options) <= set(re.findall(r"--[\w-]+", text.split("Options:")[1]))


def test_help_lists_the_commands_and_version_is_told():
    text = run("--help").output
    assert all(command.split()[0] in text for command in COMMANDS)
    assert run("--version").output == f"crysxpp {__version__}\n"


def test_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from crysxpp_mm.cli import app\n"
        "assert CliRunner().invoke(app, ['featurize', '--help']).exit_code == 0\n"
        "print([m for m in ('torch', 'matminer', 'pandas', 'pymatgen') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_wrong_usage_ends_with_2():
    for arguments in (["nothing"], ["featurize"], ["featurize", "x", "--wrong"], ["pretrain", "x"]):
        assert "Traceback" not in run(*arguments, code=2).output


def test_error_of_input_is_one_line_and_debug_shows_where(cifs, tmp_path):
    (cifs / "bad.cif").write_text("non\nsense")
    arguments = ("graphs", cifs, "--out", tmp_path / "a.graphs")
    assert "error: bad.cif: cannot be read as a structure" in fails(*arguments)
    for position in (0, len(arguments)):
        debug = [*arguments[:position], "--debug", *arguments[position:]]
        result = CliRunner().invoke(app, [str(argument) for argument in debug])
        assert type(result.exception).__name__ == "DataError"


def test_system_error_is_one_line(cifs, model, tmp_path):
    (tmp_path / "file").write_text("")
    assert "file" in fails("featurize", cifs, "--model", model, "--out", tmp_path / "file/a.csv")


def test_interrupt_ends_with_130(cifs, tmp_path, monkeypatch):
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("crysxpp_mm.data.store.build_store", interrupt)
    assert run("graphs", cifs, code=130).stderr == "stopped.\n"


def test_closed_pipe_is_no_error_of_input(monkeypatch):
    def closed() -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("crysxpp_mm.shipped.list_models", closed)
    assert "error" not in run("models", code=1).stderr


# featurize


def test_folder_becomes_a_table(cifs, model, tmp_path, nacl, copper):
    out = tmp_path / "new" / "columns.csv"
    result = run("featurize", cifs, "--model", model, "--out", out)
    assert "2 structures featurized, none failed." in result.stdout
    assert f"Wrote {out}: 2 rows, 98 columns." in result.stdout
    assert "2/2" in result.stderr
    table = pd.read_csv(out)
    assert list(table["name"]) == ["copper", "nacl"]
    assert list(table["file"]) == ["copper.cif", "nacl.cif"]
    expected = columns_of(model, copper, nacl)
    np.testing.assert_allclose(table.iloc[:, 2:], expected, rtol=1e-4, atol=1e-5)
    assert list(table.columns[2:]) == CrysAEFeaturizer(model=model).feature_labels()
    assert sorted(path.name for path in out.parent.iterdir()) == ["columns.csv"]


def test_table_keeps_its_columns_and_numbers_are_exact(model, tmp_path, nacl, copper):
    frame = pd.DataFrame(
        {
            "crystal": [nacl.to(fmt="cif"), copper.to(fmt="cif")],
            "id": ["a,b", "ü"],
            "y": [0.1, None],
        }
    )
    frame.to_csv(tmp_path / "in.csv", index=False)
    read = [Structure.from_str(text, fmt="cif") for text in frame["crystal"]]
    expected = columns_of(model, *read)
    for out in ("a.csv", "a.csv.gz", "a.json.gz"):
        path = tmp_path / out
        run(
            "featurize", tmp_path / "in.csv", "--column", "crystal", "--model", model, "--out", path
        )
        table = pd.read_json(path, orient="split") if "json" in out else pd.read_csv(path)
        assert list(table.columns[:2]) == ["id", "y"]
        assert list(table["id"]) == ["a,b", "ü"]
        assert np.isnan(table["y"][1])
        assert table.iloc[:, 2:].to_numpy().astype(np.float32).tolist() == expected.tolist()


def test_names_of_digits_are_kept_and_processes_change_nothing(cifs, model, tmp_path):
    (cifs / "in.csv").write_text("structure,id,n\nnacl.cif,007,1\ncopper.cif,12,\n")
    for name, workers in (("a.csv", 0), ("b.csv", 1)):
        options = ("--model", model, "--out", tmp_path / name, "--num-workers", workers)
        run("featurize", cifs / "in.csv", *options)
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in lines] == [
        ["structure", "id"],
        ["nacl.cif", "007"],
        ["copper.cif", "12"],
    ]
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def test_same_command_gives_the_same_bytes(cifs, model, tmp_path):
    for name in ("csv.gz", "json.gz"):
        for turn in "ab":
            run("featurize", cifs, "--model", model, "--out", tmp_path / f"{turn}.{name}")
        assert (tmp_path / f"a.{name}").read_bytes() == (tmp_path / f"b.{name}").read_bytes()


def test_index_and_nested_cells_of_a_table_are_kept(model, tmp_path, nacl):
    d = nacl.as_dict()
    frame = pd.DataFrame({"structure": [d], "first": [d], "tensor": [[1, 2]]}, index=["mp-1"])
    frame.to_json(tmp_path / "in.json", orient="split")
    for out in ("a.csv", "a.json.gz"):
        run("featurize", tmp_path / "in.json", "--model", model, "--out", tmp_path / out)
    table = pd.read_csv(tmp_path / "a.csv", index_col=0)
    assert list(table.index) == ["mp-1"]
    assert json.loads(table["tensor"].iloc[0]) == [1, 2]
    run(
        *("featurize", tmp_path / "a.csv", "--column", "first", "--model", model),
        *("--out", tmp_path / "b.csv"),
        code=1,  # the columns are there already
    )
    again = pd.read_json(tmp_path / "a.json.gz", orient="split")
    assert list(again.index) == ["mp-1"]
    assert Structure.from_dict(again["first"].iloc[0]) == nacl


def test_failures_are_named_or_kept(bad, model, tmp_path):
    arguments = ("featurize", bad, "--model", model, "--out", tmp_path / "a.csv")
    assert "error: bad.cif: cannot be read as a structure" in fails(*arguments)
    assert not (tmp_path / "a.csv").exists()
    result = run(*arguments, "--ignore-errors")
    assert "2 of 4 structures failed." in result.stdout
    assert "  lr.cif: Lr1: site 0 holds Lr" in result.stdout
    table = pd.read_csv(tmp_path / "a.csv", index_col="name")
    assert list(table.index) == ["bad", "copper", "lr", "nacl"]
    assert table["error"].isna().tolist() == [False, True, False, True]
    assert table.loc[["bad", "lr"]].drop(columns=["error", "file"]).isna().all(axis=None)
    assert table.loc[["copper", "nacl"]].drop(columns="error").notna().all(axis=None)


def test_doubts_are_kept_on_demand_and_said(cifs, model, tmp_path):
    text = (cifs / "nacl.cif").read_text()
    (cifs / "nacl.cif").write_text(text.replace("'Na1 Cl1'", "'Na1 Cl1 H2'"))
    arguments = ("featurize", cifs, "--model", model, "--out", tmp_path / "a.csv")
    assert "error: nacl.cif: the formula of the file (Na1 Cl1 H2) has H" in fails(*arguments)
    result = run(*arguments, "--keep-doubts")
    assert "1 of them with a note on their file, in the column 'note'." in result.stdout
    table = pd.read_csv(tmp_path / "a.csv", index_col="name")
    assert "has H" in table.loc["nacl", "note"]
    assert pd.isna(table.loc["copper", "note"])
    assert table.drop(columns="note").notna().all(axis=None)
    stored = ("graphs", cifs, "--out", tmp_path / "a.graphs")
    assert "has H" in fails(*stored)
    assert "1 crystals with a note on their file" in run(*stored, "--keep-doubts").stdout


def test_taken_columns_are_found_before_the_work(cifs, model, tmp_path, monkeypatch):
    def work(*_: object, **__: object) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr(CrysAEFeaturizer, "featurize_many", work)
    for name in ("error", "note"):
        frame = pd.DataFrame({"structure": [make_copper().to(fmt="cif")], name: [1]})
        frame.to_csv(tmp_path / "in.csv", index=False)
        arguments = ("featurize", tmp_path / "in.csv", "--model", model, "--ignore-errors")
        assert f"has a column '{name}' already" in fails(*arguments, "--out", tmp_path / "o.csv")


def test_only_failures_write_nothing(cifs, model, tmp_path):
    for path in cifs.iterdir():
        path.write_text("nonsense")
    arguments = (
        "featurize",
        cifs,
        "--model",
        model,
        "--ignore-errors",
        "--out",
        tmp_path / "a.csv",
    )
    assert "no structure could be featurized; copper.cif: cannot be" in fails(*arguments)
    assert not (tmp_path / "a.csv").exists()


def test_many_failures_are_cut_short(cifs, model, tmp_path):
    for number in range(15):
        (cifs / f"x{number:02}.cif").write_text("nonsense")
    out = tmp_path / "a.csv"
    result = run("featurize", cifs, "--model", model, "--ignore-errors", "--out", out)
    assert "x09.cif" in result.stdout
    assert "x10.cif" not in result.stdout
    assert "... and 5 more, in the column 'error'." in result.stdout


def test_blocks_change_nothing(bad, model, tmp_path, monkeypatch):
    for name, size in (("a.csv", 256), ("b.csv", 1)):
        monkeypatch.setattr(sources, "BLOCK", size)
        run("featurize", bad, "--model", model, "--ignore-errors", "--out", tmp_path / name)
    a, b = pd.read_csv(tmp_path / "a.csv"), pd.read_csv(tmp_path / "b.csv")
    pd.testing.assert_frame_equal(a, b, rtol=1e-5)


def test_output_and_columns_are_checked_first(cifs, model, tmp_path):
    assert "must end in .csv, .csv.gz, .json.gz" in fails("featurize", cifs, "--out", "a.parquet")
    (tmp_path / "dir.csv").mkdir()
    assert "is a folder" in fails("featurize", cifs, "--out", tmp_path / "dir.csv")
    frame = pd.DataFrame({"structure": [make_copper().to(fmt="cif")], "error": [1]})
    frame.to_csv(tmp_path / "in.csv", index=False)
    arguments = ("featurize", tmp_path / "in.csv", "--model", model, "--out", tmp_path / "out.csv")
    assert "has a column 'error' already" in fails(*arguments, "--ignore-errors")
    run(*arguments)


def test_sources_and_models_that_are_not_there(cifs, tmp_path):
    assert "none.csv: there is no such file or folder" in fails("featurize", "none.csv")
    text = fails("featurize", "elastic_tensor")
    assert "is no file or folder here, and matminer has no data set" in text
    assert "elastic_tensor_2015" in text
    assert "no model file" in fails("featurize", cifs, "--model", "./none.json.gz")


def test_matminer_table_by_its_name(model, tmp_path, nacl, copper):
    from matminer.utils.io import store_dataframe_as_json

    name, other = "elastic_tensor_2015", "jarvis_dft_2d"
    frame = pd.DataFrame({"structure": [nacl, copper], "structure initial": [copper, nacl]})
    for table in (name, other):
        store_dataframe_as_json(frame, str(tmp_path / f"{table}.json.gz"), "gz", pbar=False)
    options = ("--data-home", tmp_path, "--model", model, "--out")
    run("featurize", name, *options, tmp_path / "a.csv")
    initial = ("--column", "structure initial")
    run("featurize", other, *options, tmp_path / "b.csv", *initial)
    a, b = pd.read_csv(tmp_path / "a.csv"), pd.read_csv(tmp_path / "b.csv")
    assert Structure.from_dict(json.loads(a["structure initial"][0])) == copper
    # Columns of random weights reach 100, so single precision rounds them by 1e-5.
    np.testing.assert_allclose(a.iloc[::-1, 1:], b.iloc[:, 1:], rtol=1e-5, atol=1e-5)
    store_dataframe_as_json(
        frame.rename(columns={"structure": "final"}),
        str(tmp_path / f"{name}.json.gz"),
        "gz",
        pbar=False,
    )
    text = fails("featurize", name, *options, tmp_path / "c.csv")
    assert "several columns hold structures: 'final', 'structure initial'" in text


# graphs


def test_graphs_are_those_of_build_store(bad, tmp_path):
    out, other = tmp_path / "a.graphs", tmp_path / "b.graphs"
    result = run("graphs", bad, "--out", out, "--ignore-errors")
    store = build_store(bad, other, ignore_errors=True, pbar=False)
    assert out.read_bytes() == other.read_bytes()
    assert "2 crystals with 3 atoms" in result.stdout
    assert "2 left out" in result.stdout
    assert "  bad.cif: cannot be read" in result.stdout
    assert store.data_hash in result.stdout
    assert "error: bad.cif" in fails("graphs", bad, "--out", out)


# pretrain


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "small.json"
    path.write_text(json.dumps({**SETTINGS, "validation_fraction": 0.25}))
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Eight crystals as one JSON table."""
    crystals = [crystal.as_dict() for crystal in (make_copper(), make_silicon())] * 4
    (tmp_path / "table.json").write_text(json.dumps(crystals))
    return tmp_path / "table.json"


def test_pretraining_runs_resumes_and_leaves_a_model(table, settings, tmp_path):
    out = tmp_path / "run"
    command = ("pretrain", table, "--config", settings, "--out", out, "--description", "eight")
    first = run(*command)
    assert "1 epochs done, the best loss" in first.stdout
    assert "Reconstruction of 2 crystals that were held out" in first.stdout
    assert "bond length mae" in first.stdout
    kept = CrysAE.load(out / "model.json.gz")
    assert kept.metadata["description"] == "eight"
    assert kept.metadata["data_hash"] == GraphStore.load(out / "data.graphs").data_hash
    assert kept.settings["hidden_dim"] == 8
    again = run(*command)
    assert "Using " in again.stdout
    assert "built before" in again.stdout
    (line,) = (line for line in again.stdout.splitlines() if "crysxpp featurize" in line)
    arguments = line.split()[1:]
    arguments[1] = str(table)
    arguments[-1] = str(tmp_path / "columns.csv")
    run(*arguments)

    store = tmp_path / "run" / "data.graphs"
    run("pretrain", store, "--config", settings, "--out", tmp_path / "other")
    assert not (tmp_path / "other" / "data.graphs").exists()
    assert "holds another run (differing: description)" in fails(*command[:-1], "nine")
    table.write_text(json.dumps(json.loads(table.read_text())[:4]))
    assert "was built from other crystals" in fails(*command)


def test_pretraining_without_held_out_crystals(table, tmp_path):
    settings = tmp_path / "all.yaml"
    settings.write_text("\n".join(f"{k}: {v}" for k, v in SETTINGS.items()))
    with settings.open("a") as file:
        file.write("\nvalidation_fraction: 0\n")
    out = run("pretrain", table, "--config", settings, "--out", tmp_path / "run").stdout
    assert "Reconstruction" not in out


def test_pretraining_ends_when_its_minutes_are_over_and_goes_on(table, tmp_path):
    settings = tmp_path / "longer.yaml"
    longer = {**SETTINGS, "max_epochs": 3}
    settings.write_text("\n".join(f"{k}: {v}" for k, v in longer.items()))
    command = ("pretrain", table, "--config", settings, "--out", tmp_path / "run")
    assert "\n1 epochs done" in run(*command, "--max-minutes", "1e-9").stdout
    assert "\n3 epochs done" in run(*command).stdout
    assert "must be positive" in fails(*command, "--max-minutes", "0")


def test_pretraining_names_what_is_wrong(table, settings, tmp_path):
    out = ("--out", tmp_path / "run")
    settings.write_text('{"hidden": 3}')
    assert "has unknown settings: hidden" in fails("pretrain", table, "--config", settings, *out)
    assert "cannot be read" in fails("pretrain", table, "--config", tmp_path / "none.yaml", *out)
    assert "there is no such file" in fails("pretrain", tmp_path / "none.graphs", *out)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("stop", "code", "text"),
    [
        (FloatingPointError("the loss is not finite; lower learning_rate."), 1, "error: the loss"),
        (KeyboardInterrupt(), 130, "The same command goes on from the last checkpoint."),
        (SystemExit(3), 3, ""),
    ],
)
def test_pretraining_that_stops(table, tmp_path, monkeypatch, stop, code, text):
    def pretrain(*arguments: object, **options: object) -> None:
        raise stop

    monkeypatch.setattr("crysxpp_mm.training.pretrain.pretrain", pretrain)
    result = run("pretrain", table, "--out", tmp_path / "run", code=code)
    assert text in result.stderr


# The rest.


def test_models_are_printed(monkeypatch):
    rows = {"name": ["a"], "kind": ["CrysAE"], "description": ["of tests"], "path": ["/x"]}
    monkeypatch.setattr("crysxpp_mm.shipped.list_models", lambda: pd.DataFrame(rows))
    text = run("models").stdout
    assert "of tests" in text
    assert "/x" not in text


def test_installation_without_models_says_so(cifs, monkeypatch, tmp_path):
    resident._loaded.cache_clear()  # another test may have loaded a model
    monkeypatch.setattr("crysxpp_mm.shipped.importlib.resources.files", lambda name: tmp_path)
    monkeypatch.setattr("crysxpp_mm.shipped.__file__", str(tmp_path / "a" / "b.py"))
    for command in (("models",), ("demo", "--out", tmp_path / "demo"), ("featurize", cifs)):
        assert "has no pretrained models; install crysxpp_mm from" in fails(*command)
    assert not (tmp_path / "demo").exists()


def test_demo_is_run(monkeypatch, tmp_path):
    calls: list[tuple] = []
    monkeypatch.setattr("crysxpp_mm.demo.run_demo", lambda *a, **k: calls.append((a, k)))
    run("demo", "--out", tmp_path / "x", "--model", "m")
    ((arguments, options),) = calls
    assert arguments == (tmp_path / "x",)
    assert options["model"] == "m"


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("speed", {"speed.run_speed": {"model": "m"}}),
        (
            "columns",
            {
                "columns.run_columns": {"models": ["m"], "tables": {}},
                "column_choice.run_choice": {"model": "m", "tables": {}},
            },
        ),
    ],
)
def test_benchmarks_are_run(monkeypatch, tmp_path, name, runs):
    calls: list[tuple] = []
    for path in runs:
        monkeypatch.setattr(
            f"crysxpp_mm.benchmarks.{path}",
            lambda *a, path=path, **k: calls.append((path, a, k)),
        )
    monkeypatch.setattr("crysxpp_mm.benchmarks.data.load_tables", lambda *_: {})
    run("benchmark", name, "--data", tmp_path, "--out", tmp_path / "out", "--model", "m")
    assert [path for path, _, _ in calls] == list(runs)
    for path, (place,), options in calls:
        assert (place.root, place.out) == (tmp_path, tmp_path / "out")
        assert options.items() >= runs[path].items()


def test_benchmark_without_data_says_what_to_do(monkeypatch):
    monkeypatch.delenv("CRYSXPP_DATA", raising=False)
    assert "give one with --data or set CRYSXPP_DATA" in fails("benchmark", "speed")


def test_reason_is_the_message_of_a_traceback():
    try:
        try:
            raise KeyError("inner: x")
        except KeyError as error:
            raise SettingsError("outer: two\nlines") from error
    except SettingsError:
        import traceback

        text = traceback.format_exc()
    assert cli.messages.reason(text) == "outer: two lines"
    assert cli.messages.reason("KeyboardInterrupt") == "KeyboardInterrupt"


def test_command_is_installed():
    command = Path(sys.executable).with_name("crysxpp")
    if not command.exists():
        pytest.skip("the package is not installed, so there is no crysxpp command")
    environment = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(
        [str(command), "graphs", "none.csv"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 1
    assert done.stderr == "error: none.csv: there is no such file or folder.\n"
