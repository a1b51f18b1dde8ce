"""The commands that learn from labels: train, predict, explain."""

from __future__ import annotations

import errno
import json
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_copper, make_nacl, make_perovskite, make_silicon
from pymatgen.core import Lattice, Structure
from test_cli import fails, run

from crysxpp_mm import CrysAE, CrysXPPClassifier, CrysXPPRegressor, load_model
from crysxpp_mm.cli import learning
from crysxpp_mm.data import sources
from crysxpp_mm.data.store import build_store

CRYSTALS = {
    "007": make_copper,
    "008": make_nacl,
    "12": make_silicon,
    "mp-1.5": make_perovskite,
}
LABELS = pd.DataFrame(
    {
        "id": ["12", "007", "mp-1.5", "008", "99"],
        "K": [100.0, 140.0, None, 24.0, 1.0],
        "gap": ["0.6", "0.0", "3.2", "NaN", "5"],
        "kind": ["element", "element", "salt", "salt", "salt"],
        "number": [1, 1, 2, 2, 2],
        "all": ["one"] * 5,
    }
)


@pytest.fixture(scope="module", autouse=True)
def _few_steps() -> Iterator[None]:
    """Few labels are otherwise shown for 600 steps."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in (CrysXPPRegressor, CrysXPPClassifier):
            defaults = kind.__init__.__kwdefaults__
            patch.setitem(defaults, "min_steps", 0)
            patch.setitem(defaults, "readout_dim", 4)
        yield


@pytest.fixture(scope="module")
def crysae(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small encoder of random weights in a file."""
    path = tmp_path_factory.mktemp("crysae") / "tiny.json.gz"
    CrysAE.random(seed=0, hidden_dim=4, n_convs=1).save(path)
    return str(path)


@pytest.fixture(scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "cifs").mkdir()
    for name, make in CRYSTALS.items():
        make().to(filename=str(folder / "cifs" / f"{name}.cif"))
    LABELS.to_csv(folder / "labels.csv", index=False)
    table = LABELS[LABELS["id"].isin(list(CRYSTALS))]
    table.assign(structure=[f"cifs/{name}.cif" for name in table["id"]]).to_csv(
        folder / "table.csv", index=False
    )
    return folder


@pytest.fixture
def data(_folder: Path, tmp_path: Path) -> Path:
    """A folder with cifs/, labels.csv and table.csv."""
    return Path(shutil.copytree(_folder, tmp_path / "data"))


@pytest.fixture(scope="module")
def ensemble(_folder: Path, crysae: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two networks for two targets."""
    out = tmp_path_factory.mktemp("ensemble") / "model.json.gz"
    options = ("--target", "K", "--target", "gap", "--transform", "K=log10", "--unit", "K=GPa")
    more = ("--n-members", 2, "--max-epochs", 2, "--pretrained", crysae, "--out", out)
    run("train", _folder / "table.csv", *options, *more)
    return out


@pytest.fixture(scope="module")
def classifier(_folder: Path, crysae: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("classifier") / "model.json.gz"
    options = ("--target", "kind", "--classify", "--max-epochs", 2, "--pretrained", crysae)
    run("train", _folder / "table.csv", *options, "--out", out)
    return out


def small(*more: object) -> tuple[object, ...]:
    return ("--pretrained", "none", "--max-epochs", 1, *more)


def add_lawrencium(folder: Path) -> None:
    """A crystal without a graph, with labels."""
    Structure(Lattice.cubic(4), ["Lr"], [[0, 0, 0]]).to(filename=str(folder / "cifs" / "99.cif"))


# train


def test_training_on_a_table_is_that_of_the_estimator(data, crysae, tmp_path):
    out = tmp_path / "new" / "m.json.gz"
    options = ("--target", "K", "--transform", "log10", "--unit", "GPa", "--max-epochs", 2)
    result = run(
        *("train", data / "table.csv", *options, "--pretrained", crysae, "--seed", 3),
        *("--out", out),
    )
    assert "4 crystals, 3 of them with a label of K." in result.stdout
    assert "learned from 3 crystals in 2 epochs, number 2 is kept." in result.stdout
    assert f"Wrote {out}." in result.stdout
    model = load_model(out)
    assert isinstance(model, CrysXPPRegressor)
    assert (model.target_names_, model.units_, model.seed) == (["K"], ["GPa"], 3)
    assert model.n_train_ == 3
    assert model.left_out_.to_dict("list") == {
        "row": ["cifs/mp-1.5.cif"],
        "reason": ["no label"],
    }
    assert model.metadata_ == {"source": "table.csv"}
    same = CrysXPPRegressor(
        pretrained=crysae, transform="log10", units="GPa", max_epochs=2, seed=3, pbar=False
    )
    crystals = [Structure.from_file(data / "cifs" / f"{name}.cif") for name in ("12", "007", "008")]
    same.fit(crystals, [100.0, 140.0, 24.0])
    np.testing.assert_allclose(model.predict(crystals), same.predict(crystals), rtol=1e-4)
    assert str(tmp_path) not in json.dumps(model.metadata_)


def test_further_settings_come_from_a_file(data, tmp_path):
    config, out = tmp_path / "settings.yaml", tmp_path / "k.json.gz"
    config.write_text("batch_size: 2\nreadout_dim: 3\nloss: mse\n")
    table = data / "table.csv"
    run("train", table, "--target", "K", *small("--config", config, "--out", out))
    model = load_model(out)
    assert (model.batch_size, model.readout_dim, model.loss) == (2, 3, "mse")
    structures = [
        Structure.from_file(data / "cifs" / f"{name}.cif") for name in ("12", "007", "008")
    ]
    settings = {"batch_size": 2, "readout_dim": 3, "loss": "mse", "max_epochs": 1}
    same = CrysXPPRegressor(**settings, pretrained=None, accelerator="cpu", pbar=False)
    same.fit(structures, [100.0, 140.0, 24.0])
    np.testing.assert_allclose(model.predict(structures), same.predict(structures), rtol=1e-5)

    classify = ("--target", "kind", "--classify", "--out", tmp_path / "kind.json.gz")
    config.write_text("batch_size: 2\nclass_weight: balanced\n")
    run("train", table, *classify, *small("--config", config))
    assert load_model(tmp_path / "kind.json.gz").class_weight == "balanced"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize: 2", "has unknown settings: batchsize; there are batch_size, element_channel,"),
        ("class_weight: balanced", "has unknown settings: class_weight"),
        ("max_epochs: 2", "give max_epochs by the option --max-epochs"),
        ("units: GPa", "give units by the option --unit"),
        ("- batch_size", "must map names of settings to values"),
        ("batch_size: [", "cannot be read as YAML or JSON"),
        ("batch_size: none", "batch_size must be a whole number"),
    ],
)
def test_further_settings_that_make_no_sense_are_named(data, text, message, tmp_path):
    config = tmp_path / "settings.yaml"
    config.write_text(text)
    told = fails("train", data / "table.csv", "--target", "K", *small("--config", config))
    assert message in told


def test_labels_are_matched_by_name_and_what_does_not_match_is_told(data, tmp_path):
    make_copper().to(filename=str(data / "cifs" / "alone.cif"))
    options = ("--labels", data / "labels.csv", "--target", "gap", "--out", tmp_path / "a.json.gz")
    text = run("train", data / "cifs", *options, *small()).stdout
    assert f"1 crystals of {data / 'cifs'} have no row in {data / 'labels.csv'} (alone)." in text
    assert f"1 rows of {data / 'labels.csv'} have no crystal in {data / 'cifs'} (99)." in text
    assert "5 crystals, 3 of them with a label of gap." in text
    by_name = load_model(tmp_path / "a.json.gz")
    assert by_name.left_out_["row"].tolist() == ["008.cif", "alone.cif"]
    # A zip and a graph store give the same model.
    (data / "cifs" / "alone.cif").unlink()
    shutil.make_archive(str(data / "crystals"), "zip", data / "cifs")
    build_store(data / "cifs", data / "crystals.graphs", pbar=False)
    for source in ("crystals.zip", "crystals.graphs"):
        run("train", data / source, "--id-column", "id", *options, *small())
        again = load_model(tmp_path / "a.json.gz")
        assert again.data_hash_ == by_name.data_hash_


def test_labels_of_a_json_table_are_matched_too(data, tmp_path):
    LABELS.to_json(data / "labels.json", orient="records")
    options = ("--labels", data / "labels.json", "--id-column", "id", "--target", "K")
    text = run("train", data / "cifs", *options, *small("--out", tmp_path / "a.json")).stdout
    assert "3 of them with a label of K" in text


def test_classes_are_learned(classifier):
    model = load_model(classifier)
    assert isinstance(model, CrysXPPClassifier)
    assert model.classes_.tolist() == ["element", "salt"]
    assert model.target_names_ == ["kind"]


def test_held_out_crystals_are_read_once_and_kept_apart(data, tmp_path):
    out = tmp_path / "m.json.gz"
    options = ("--target", "gap", "--target", "K", "--test-fraction", 0.5, "--out", out)
    options += ("--seed", 1)
    text = run("train", data / "table.csv", *options, *small("--unit", "gap=eV")).stdout
    assert "learned from 2 crystals" in text
    assert "Test on 2 crystals that were held out:" in text
    test = load_model(out).metadata_["test"]
    assert (test["n"], test["fraction"], test["seed"]) == (2, 0.5, 1)
    assert len(test["crystals"]) == 2
    mae = re.search(r"gap: MAE (\S+) eV", text)
    assert mae is not None
    assert float(mae.group(1)) == pytest.approx(test["mae"]["gap"], rel=1e-3)
    frame = pd.read_csv(data / "table.csv", dtype=str)
    model, rows = load_model(out), frame.set_index("structure").loc[test["crystals"]]
    crystals = [CRYSTALS[name]() for name in rows["id"]]
    truth = rows["gap"].to_numpy(dtype=float)
    known = ~np.isnan(truth)
    errors = np.abs(model.predict(crystals)[:, 0] - truth)[known]
    assert errors.mean() == pytest.approx(test["mae"]["gap"], rel=0.05)


def test_held_out_classes(data, tmp_path):
    options = ("--target", "number", "--classify", "--test-fraction", 0.3, "--seed", 5)
    text = run(
        *("train", data / "table.csv", *options, *small("--out", tmp_path / "m.json.gz"))
    ).stdout
    found = re.search(r"accuracy (\d\.\d+)", text)
    assert found is not None
    test = load_model(tmp_path / "m.json.gz").metadata_["test"]
    assert test["accuracy"] == pytest.approx(float(found.group(1)), abs=1e-3)


def test_a_target_without_held_out_labels_is_told(data, tmp_path):
    frame = pd.read_csv(data / "table.csv", dtype=str)
    order = np.random.default_rng([0, 3]).permutation(4)
    frame.loc[order[0], "K"] = None
    frame.loc[order[1:], "K"] = "5"
    frame.loc[order[1], "K"] = "6"
    frame["gap"] = ["1", "2", "3", "4"]
    frame.to_csv(data / "table.csv", index=False)
    options = ("--target", "K", "--target", "gap", "--test-fraction", 0.25)
    text = run(
        *("train", data / "table.csv", *options, *small("--out", tmp_path / "m.json.gz"))
    ).stdout
    assert "  K: no label\n" in text
    assert re.search(r"  gap: MAE \S+ \(1 labels\)\n", text)


def test_the_best_epoch_of_many_labels_is_told(tmp_path):
    rows = [
        {"structure": make_copper().scale_lattice(10 + i / 20).as_dict(), "y": i / 20}
        for i in range(200)
    ]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    out = ("--out", tmp_path / "m.json.gz", "--validation-fraction", 0.2)
    text = run("train", tmp_path / "t.json", "--target", "y", *small(*out)).stdout
    assert re.search(r"200 crystals in 1 epochs, number 1 is kept \(validation loss \d", text)


def test_training_goes_on_after_an_interruption(data, tmp_path, monkeypatch):
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "m.json.gz"
    command = ("train", data / "table.csv", "--target", "K", *small("--out", out))
    with monkeypatch.context() as patch:
        patch.setattr("crysxpp_mm.estimators.CrysXPPRegressor.fit", stop)
        assert "Nothing is kept; with --checkpoint-dir" in run(*command, code=130).stderr
        kept = (*command, "--checkpoint-dir", tmp_path / "runs")
        assert "goes on from the last checkpoint." in run(*kept, code=130).stderr
    assert not out.exists()
    run(*kept)
    assert list((tmp_path / "runs").glob("run-*/last.ckpt"))
    first = load_model(out)
    run(*kept)  # the finished run is read back
    assert load_model(out).predict([make_copper()]) == first.predict([make_copper()])


def test_sigterm_is_no_success(data, tmp_path):
    """Batch systems send it; what waits for the model must not go on without it."""
    out = tmp_path / "m.json.gz"
    command = ("train", data / "table.csv", "--target", "K", "--pretrained", "none", "--out", out)
    more = ("--checkpoint-dir", tmp_path / "runs", "--max-epochs", 100_000)
    child = subprocess.Popen(
        [sys.executable, "-c", "from crysxpp_mm.cli import app; app()", *map(str, command + more)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        for _ in range(600):
            if child.poll() is not None or list((tmp_path / "runs").glob("run-*/last.ckpt")):
                break
            time.sleep(0.1)
        child.terminate()
        _, text = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 143
    assert "The same command goes on from the last checkpoint." in text
    assert not out.exists()


def test_a_model_is_kept_if_nobody_listens(data, tmp_path, monkeypatch):
    def closed(text: str = "", **options: object) -> None:
        if text.startswith("learned from"):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("crysxpp_mm.cli.train.typer.echo", closed)
    out = tmp_path / "m.json.gz"
    run("train", data / "table.csv", "--target", "K", *small("--out", out), code=1)
    assert load_model(out).n_train_ == 3


def test_an_output_that_cannot_be_written_is_told_first(data, ensemble):
    table = data / "table.csv"
    for command in (
        ("train", table, "--target", "K", *small("--out", table / "m.json.gz")),
        ("predict", table, "--model", ensemble, "--out", table / "p.csv"),
        ("featurize", table, "--out", table / "p.csv"),
        ("graphs", table, "--out", table / "c.graphs"),
        ("explain", table, "--model", ensemble, "--out", table / "why"),
    ):
        assert "cannot be written: Not a directory" in fails(*command)


def test_groups_and_targets_may_be_the_ids(data, tmp_path):
    labels = ("--labels", data / "labels.csv", "--target", "K", "--groups", "id")
    out = tmp_path / "m.json.gz"
    run("train", data / "cifs", *labels, *small("--out", out))
    assert load_model(out).n_train_ == 3


def test_crystals_and_labels_that_fail_are_named_or_left_out(data, tmp_path):
    add_lawrencium(data)
    out = tmp_path / "m.json.gz"
    command = ("train", data / "cifs", "--labels", data / "labels.csv", *small("--out", out))
    log = ("--target", "gap", "--transform", "log10")
    assert "error: 007.cif: gap is 0, but log10 takes positive numbers." in fails(*command, *log)
    assert "error: 99.cif: Lr1: site 0 holds Lr" in fails(*command, "--target", "K")
    assert not out.exists()
    text = run(*command, *log, "--ignore-errors").stdout
    assert "2 left out:\n  007.cif: gap is 0" in text
    left_out = load_model(out).left_out_.set_index("row")["reason"]
    assert left_out["008.cif"] == "no label"
    assert "positive numbers" in left_out["007.cif"]
    assert "holds Lr" in left_out["99.cif"]


def test_groups_are_not_divided(data, tmp_path):
    out = tmp_path / "m.json.gz"
    command = ("train", data / "cifs", "--labels", data / "labels.csv", "--target", "number")
    for seed in range(3):
        options = small("--test-fraction", 0.25, "--seed", seed, "--out", out)
        run(*command, "--groups", "kind", *options)
        facts = load_model(out).metadata_
        held_out = sorted(facts["test"]["crystals"])
        assert held_out in (
            ["007.cif", "12.cif"],
            ["008.cif", "mp-1.5.cif"],
        )
        assert facts["groups"] == "kind"
    run(*command, *options)
    assert "groups" not in load_model(out).metadata_
    assert load_model(out).metadata_["test"]["n"] == 1


def test_warnings_are_one_line(data, tmp_path):
    frame = pd.read_csv(data / "table.csv", dtype=str).assign(K="5")
    frame.to_csv(data / "table.csv", index=False)
    command = ("train", data / "table.csv", "--target", "K", *small("--out", tmp_path / "m.json"))
    with pytest.warns(UserWarning, match="all labels of 'K' are equal"):
        run(*command)
    before = warnings.formatwarning
    with learning.short_warnings():
        assert warnings.formatwarning("a\nb", UserWarning, "file.py", 3) == "warning: a b\n"
    assert warnings.formatwarning is before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "nothing"], "has no column 'nothing'; it has id, K, gap, kind, number"),
        (["--target", "kind"], "cifs/12.cif: kind is 'element', which is no number; correct it"),
        (["--target", "gap", "--classify"], ""),
        (["--target", "kind", "--classify", "--unit", "eV"], "--transform and --unit are for numb"),
        (["--target", "kind", "--target", "K", "--classify"], "--classify takes one --target"),
        (["--target", "K", "--unit", "G=GPa"], "--unit G=GPa: there is no --target 'G'."),
        (["--target", "K", "--unit", "a", "--unit", "b"], "--unit says two things of 'K'"),
        (["--target", "K", "--transform", "cube"], "unknown transform 'cube'"),
        (["--target", "K", "--labels", "x.csv"], "is a table, and the targets are columns of it"),
        (["--target", "K", "--id-column", "id"], "is a table, and the targets are columns of it"),
        (["--target", "K", "--out", "m.pkl"], "the name must end in .json.gz or .json"),
        (["--target", "K", "--pretrained", "none.json.gz"], "there is no model file"),
        (["--target", "K", "--groups", "K"], "--groups K is a --target; name another column."),
        (["--target", "K", "--groups", "family"], "has no column 'family'"),
        (
            ["--target", "K", "--groups", "gap"],
            "cifs/008.cif: gap is empty; with --groups every",
        ),
        (["--target", "K", "--groups", "all", "--test-fraction", 0.2], "all rows are of one group"),
    ],
)
def test_training_names_what_is_wrong(data, options, message, tmp_path):
    command = ("train", data / "table.csv", *small("--out", tmp_path / "m.json.gz"), *options)
    if message:
        assert message in fails(*command)
        assert not (tmp_path / "m.json.gz").exists()
    else:
        run(*command)  # texts of numbers are classes as well


def test_labels_that_do_not_fit_are_named(data, tmp_path):
    out = small("--out", tmp_path / "m.json.gz", "--target", "K")
    assert "holds crystals without labels; name a table" in fails("train", data / "cifs", *out)
    labels = ("train", data / "cifs", *out, "--labels")
    assert "there is no such CSV or JSON table" in fails(*labels, data / "none.csv")
    assert "has no column 'name'" in fails(*labels, data / "labels.csv", "--id-column", "name")
    assert "is an id in 'K' of" in fails(*labels, data / "labels.csv", "--id-column", "K")
    pd.concat([LABELS, LABELS]).to_csv(data / "twice.csv", index=False)
    assert "has the id '12' twice in 'id'" in fails(*labels, data / "twice.csv")
    (data / "one.json").write_text(json.dumps(make_copper().as_dict()))
    assert "holds one structure, not a table of labels" in fails(*labels, data / "one.json")
    LABELS.assign(K=None).to_csv(data / "empty.csv", index=False)
    assert "no crystal has a label of K" in fails(*labels, data / "empty.csv")
    (data / "cifs" / "more").mkdir()
    shutil.copy(data / "cifs" / "12.cif", data / "cifs" / "more")
    assert "two crystals with the id '12'" in fails(*labels, data / "labels.csv")


def test_labels_that_are_no_numbers_or_no_classes(data, tmp_path):
    frame = pd.read_csv(data / "table.csv", dtype=str)
    out = small("--out", tmp_path / "m.json.gz", "--target", "K")
    frame.assign(K="inf").to_csv(data / "table.csv", index=False)
    assert "cifs/12.cif: K is inf, which is no number" in fails("train", data / "table.csv", *out)
    frame.assign(K="1.5").to_csv(data / "table.csv", index=False)
    text = fails("train", data / "table.csv", *out, "--classify")
    assert "cifs/12.cif: K is 1.5; classes are texts, whole numbers or booleans" in text


def test_other_models_are_no_encoder(data, ensemble, tmp_path):
    command = ("train", data / "table.csv", "--target", "K", "--out", tmp_path / "m.json.gz")
    assert "an encoder comes from a CrysAE, got a CrysXPPRegressor" in fails(
        *command, "--pretrained", ensemble
    )
    (tmp_path / "m.json").mkdir()
    assert "is a folder" in fails(*command, "--out", tmp_path / "m.json")


def test_loss_that_is_not_finite(data, tmp_path, monkeypatch):
    def explode(*arguments: object, **options: object) -> None:
        raise FloatingPointError("the loss is not finite; lower learning_rate.")

    monkeypatch.setattr("crysxpp_mm.estimators.CrysXPPRegressor.fit", explode)
    command = ("train", data / "table.csv", "--target", "K", *small("--out", tmp_path / "m.json"))
    assert "error: the loss is not finite" in fails(*command)


# predict


def test_predictions_are_those_of_the_model(data, ensemble, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BLOCK", 3)
    out = tmp_path / "new" / "p.csv"
    options = ("--model", ensemble, "--std", "--domain", "--out", out)
    result = run("predict", data / "table.csv", *options)
    assert "4 crystals predicted, none failed." in result.stdout
    assert "is not repeated" not in result.stdout  # paths are
    assert "4/4" in result.stderr
    table = pd.read_csv(out, dtype={"id": str})
    assert table["id"].tolist() == ["12", "007", "mp-1.5", "008"]  # names stay as they are
    model = load_model(ensemble)
    crystals = [CRYSTALS[name]() for name in table["id"]]
    values, spread = model.predict(crystals, return_std=True)
    for number, name in enumerate(("K", "gap")):
        np.testing.assert_allclose(table[f"{name} predicted"], values[:, number], rtol=1e-3)
        np.testing.assert_allclose(table[f"{name} std"], spread[:, number], rtol=1e-2)
    assert set(model.domain(crystals).columns) <= set(table.columns)


def test_folder_and_store_are_predicted(data, ensemble, tmp_path):
    build_store(data / "cifs", data / "c.graphs", pbar=False)
    for source in ("cifs", "c.graphs"):
        out = tmp_path / f"{source}.json.gz"
        run("predict", data / source, "--model", ensemble, "--out", out)
    a, b = (pd.read_json(tmp_path / f"{s}.json.gz", orient="split") for s in ("cifs", "c.graphs"))
    assert a["name"].tolist() == ["007", "008", "12", "mp-1.5"]
    pd.testing.assert_frame_equal(a, b, rtol=1e-5)


def test_classes_and_probabilities_are_predicted(data, classifier, tmp_path):
    add_lawrencium(data)
    out = tmp_path / "p.csv"
    run("predict", data / "cifs", "--model", classifier, "--ignore-errors", "--out", out)
    table = pd.read_csv(out, index_col="name")
    good = table.drop("99")
    total = good["probability of element"] + good["probability of salt"]
    assert total.tolist() == pytest.approx([1.0] * 4)
    best = np.where(good["probability of element"] > 0.5, "element", "salt")
    assert good["kind predicted"].tolist() == best.tolist()
    assert table.loc["99"].drop(["error", "file"]).isna().all()
    assert "Lr" in table.loc["99", "error"]
    text = fails("predict", data / "cifs", "--model", classifier, "--std")
    assert "predicts classes; --std is for numbers" in text
    options = ("--interval", 0.5, "--domain", "--out", tmp_path / "sets.csv")
    assert "has no calibration crystals" in fails(
        "predict", data / "cifs", "--model", classifier, *options
    )
    model = load_model(classifier)
    crystals = [CRYSTALS[name]() for name in sorted(CRYSTALS)]
    model.calibrate(crystals, model.predict(crystals)).save(tmp_path / "calibrated.json.gz")
    options = ("--model", tmp_path / "calibrated.json.gz", "--ignore-errors", *options)
    run("predict", data / "cifs", *options)
    table = pd.read_csv(tmp_path / "sets.csv", index_col="name").drop(index="99")
    expected = model.predict_set(crystals, confidence=0.5)
    for name in ("element", "salt"):
        assert table[f"{name} in set"].tolist() == expected[name].tolist()
    assert table["in_domain"].tolist() == expected["in_domain"].tolist()


def test_whole_numbers_of_classes_stay_so(data, crysae, tmp_path):
    add_lawrencium(data)
    model = tmp_path / "m.json.gz"
    options = ("--target", "number", "--classify", "--max-epochs", 1, "--pretrained", crysae)
    run("train", data / "table.csv", *options, "--out", model)
    out = tmp_path / "p.csv"
    run("predict", data / "cifs", "--model", model, "--ignore-errors", "--out", out)
    cells = pd.read_csv(out, dtype=str)["number predicted"].dropna()
    assert set(cells) <= {"1", "2"}


def test_failures_are_named_or_kept(data, ensemble, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "BLOCK", 1)  # a block without any prediction too
    add_lawrencium(data)
    (data / "cifs" / "aaa.cif").write_text("nonsense")
    out = tmp_path / "p.csv"
    command = ("predict", data / "cifs", "--model", ensemble, "--out", out)
    assert "error: 99.cif: Lr1: site 0 holds Lr" in fails(*command)
    assert not out.exists()
    text = run(*command, "--ignore-errors").stdout
    assert "2 of 6 crystals failed." in text
    assert "  aaa.cif: cannot be read as a structure" in text
    table = pd.read_csv(out, index_col="name")
    assert table["error"].notna().tolist() == [False, False, False, True, True, False]
    assert table["K predicted"].isna().tolist() == table["error"].notna().tolist()
    for path in (data / "cifs").iterdir():
        path.write_text("nonsense")
    assert "nothing could be predicted; 007.cif: cannot be" in fails(*command, "--ignore-errors")


def test_intervals_are_those_of_the_model(data, ensemble, tmp_path):
    out = tmp_path / "p.csv"
    command = ("predict", data / "cifs", "--interval", 0.5, "--out", out, "--model")
    assert "has no calibration crystals, which --interval needs" in fails(*command, ensemble)
    crystals = [CRYSTALS[name]() for name in sorted(CRYSTALS)]
    labels = pd.DataFrame({"K": [1.0, 2.0, 3.0, 4.0], "gap": [0.0, 1.0, 2.0, 3.0]})
    model = load_model(ensemble).calibrate(crystals, labels)
    model.save(tmp_path / "calibrated.json.gz")
    run(*command, tmp_path / "calibrated.json.gz")
    table = pd.read_csv(out)
    expected = model.predict_interval(crystals, confidence=0.5)
    for name in ("K", "gap"):
        for end in ("lower", "upper"):
            np.testing.assert_allclose(table[f"{name} {end}"], expected[name, end], rtol=1e-3)
    assert table["in_domain"].tolist() == expected["K", "in_domain"].tolist()


def test_interval_of_one_target(tmp_path):
    rows = [
        {"structure": make_copper().scale_lattice(10 + i / 20).as_dict(), "y": i / 20}
        for i in range(200)
    ]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    model, out = tmp_path / "m.json.gz", tmp_path / "p.csv"
    run("train", tmp_path / "t.json", "--target", "y", *small("--out", model))
    run("predict", tmp_path / "t.json", "--model", model, "--interval", 0.9, "--out", out)
    table = pd.read_csv(out)
    loaded = load_model(model)
    expected = loaded.predict_interval([row["structure"] for row in rows])
    assert loaded.domain([rows[7]["structure"]])["nearest_1"].tolist() == ["7"]
    for mine, theirs in (("predicted", "prediction"), ("lower", "lower"), ("upper", "upper")):
        np.testing.assert_allclose(table[f"y {mine}"], expected[theirs], rtol=1e-3, atol=1e-3)


def test_prediction_names_what_is_wrong(data, ensemble, crysae, tmp_path):
    command = ("predict", data / "cifs", "--out", tmp_path / "p.csv", "--model")
    assert "is a CrysAE, which predicts no property" in fails(*command, crysae)
    assert "--interval must lie between 0 and 1, got 90." in fails(
        *command, ensemble, "--interval", 90
    )
    CrysXPPRegressor(pretrained=None).save(tmp_path / "unfitted.json.gz")
    assert "that has learned nothing yet" in fails(*command, tmp_path / "unfitted.json.gz")
    assert "there is no such file or folder" in fails(
        "predict", "none/", "--model", ensemble, "--out", tmp_path / "p.csv"
    )
    single = tmp_path / "single.json.gz"
    run("train", data / "table.csv", "--target", "K", *small("--out", single))
    assert "is one network; --std needs an ensemble" in fails(*command, single, "--std")
    frame = pd.read_csv(data / "table.csv").assign(**{"K predicted": 1})
    frame.to_csv(data / "table.csv", index=False)
    assert "has a column 'K predicted' already" in fails(
        *("predict", data / "table.csv", "--model", ensemble, "--out", tmp_path / "p.csv")
    )


def test_store_of_another_rule_is_refused(data, ensemble, tmp_path):
    from crysxpp_mm import CrystalGraphConverter

    path = data / "other.graphs"
    build_store(data / "cifs", path, converter=CrystalGraphConverter(cutoff=5.0), pbar=False)
    text = fails("predict", path, "--model", ensemble, "--out", tmp_path / "p.csv")
    assert "the model needs" in text
    assert "give the structures themselves" in text


# explain


def test_explanation_of_a_file(data, ensemble, tmp_path):
    out = tmp_path / "why"
    command = ("explain", data / "cifs" / "mp-1.5.cif", "--model", ensemble, "--out", out)
    text = run(*command, "--contributions", "--target", "gap").stdout
    assert "1 crystal explained." in text
    names = ["contributions", "weights"]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*(f"mp-1.5.cif.{name}.png" for name in names), *(f"{name}.csv" for name in names)]
    )
    model = load_model(ensemble)
    weights = pd.read_csv(out / "weights.csv", keep_default_na=False, na_values=[""])
    expected = model.explain(make_perovskite())
    found = weights.pivot_table(index="element", columns="property", values="weight", sort=False)
    pd.testing.assert_frame_equal(found[expected.columns], expected, check_names=False)
    assert weights.loc[0, ["crystal", "element", "property", "bin"]].tolist() == [
        *("mp-1.5.cif", "Sr", "group", "2")
    ]
    added = pd.read_csv(out / "contributions.csv")
    assert added["species"].tolist() == ["Sr", "Ti", "O", "O", "O"]
    gap = added["prediction"] - added["baseline"]
    assert added["sum"].sum() == pytest.approx(gap[0], abs=1e-5)
    assert (added["unit"].isna() & (added["target"] == "gap")).all()


def test_explanation_of_a_table(data, ensemble, tmp_path):
    frame = pd.read_csv(data / "table.csv", dtype=str)
    frame.loc[1, "structure"] = "none.cif"
    frame.to_csv(data / "table.csv", index=False)
    out = tmp_path / "why"
    command = ("explain", data / "table.csv", "--model", ensemble, "--plots", 2, "--out", out)
    assert "none.cif: there is no such file. (--ignore-errors" in fails(*command)
    assert not out.exists()
    text = run(*command, "--ignore-errors").stdout
    assert "3 crystals explained, 1 left out." in text
    assert "weights.csv, left_out.csv, 2 pictures." in text
    pictures = ["cifs_12.cif.weights.png", "cifs_mp-1.5.cif.weights.png"]
    assert sorted(path.name for path in out.glob("*.png")) == pictures
    assert pd.read_csv(out / "left_out.csv")["crystal"].tolist() == ["none.cif"]
    names = [name for name in frame["structure"] if name != "none.cif"]
    assert pd.read_csv(out / "weights.csv")["crystal"].unique().tolist() == names


def test_explanation_replaces_an_earlier_one_and_keeps_names_apart(data, ensemble, tmp_path):
    out = tmp_path / "why"
    (data / "cifs" / "a").mkdir()
    for name in ("a/x.cif", "a_x.cif"):
        shutil.copy(data / "cifs" / "12.cif", data / "cifs" / name)
    command = ("explain", data / "cifs", "--model", ensemble, "--out", out)
    run(*command, "--contributions", "--target", "K", "--ignore-errors")
    assert {"a_x.cif.weights.png", "a_x.cif-2.weights.png"} <= {p.name for p in out.iterdir()}
    assert (out / "contributions.csv").exists()
    run("explain", data / "cifs" / "12.cif", "--model", ensemble, "--out", out)
    assert sorted(p.name for p in out.iterdir()) == ["12.cif.weights.png", "weights.csv"]


class CannotExplain:
    """A fitted predictor without explanations."""

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def predict(self) -> None: ...


def test_explanation_names_what_is_wrong(data, ensemble, classifier, crysae, tmp_path, monkeypatch):
    path = data / "cifs" / "12.cif"
    out = ("--out", tmp_path / "why")
    command = ("explain", path, *out, "--model")
    assert "name the target: 'K', 'gap'" in fails(*command, ensemble, "--contributions")
    assert "--target goes with --contributions" in fails(*command, ensemble, "--target", "K")
    assert "is a CrysAE, which predicts no property" in fails(*command, crysae)
    assert "is a file; give a folder" in fails(*command, ensemble, "--out", path)
    monkeypatch.setattr("crysxpp_mm.model_zoo.load_model", lambda _: CannotExplain())
    assert "the class CannotExplain cannot explain its" in fails(*command, ensemble)
    monkeypatch.undo()
    add_lawrencium(data)
    only = ("explain", data / "cifs" / "99.cif", *out, "--model", classifier)
    assert "nothing could be explained; 99.cif: Lr1" in fails(*only, "--ignore-errors")
