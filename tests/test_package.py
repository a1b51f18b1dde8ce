"""What importing does, what errors are, where weights are looked for, and what no module does."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.resources
import inspect
import os
import pickle
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import crysxpp_mm
from crysxpp_mm import errors
from crysxpp_mm.errors import CrysXPPError, UnknownModelError
from crysxpp_mm.model_zoo import MODEL_FILE, list_models, load_model, pretrained_folder
from crysxpp_mm.models.crysae import CrysAE
from crysxpp_mm.version import __version__

PACKAGE = Path(crysxpp_mm.__file__).parent
ROOT = PACKAGE.parent
SOURCES = sorted(PACKAGE.rglob("*.py"))

ERRORS = [
    item
    for _, item in inspect.getmembers(errors, inspect.isclass)
    if issubclass(item, CrysXPPError)
]


# Importing.

LOOK = """
import sys, time
start = time.perf_counter()
import crysxpp_mm
seconds = time.perf_counter() - start
heavy = {"torch", "matminer", "dgl", "lightning", "pandas", "matplotlib", "sklearn", "pymatgen"}
print(seconds, *sorted(heavy & set(sys.modules)))
"""


def python(code: str, folder: Path) -> str:
    """What Python prints that runs ``code`` in an empty folder, which is its home as well."""
    home = {name: str(folder) for name in ("HOME", "USERPROFILE", "XDG_CACHE_HOME", "TMPDIR")}
    kept = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
    result = subprocess.run(
        [sys.executable, "-B", "-c", code],
        cwd=folder,
        env={**kept, **home, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert result.stderr == ""
    return result.stdout


def test_importing_is_quick_and_has_no_effects(tmp_path):
    seconds, *loaded = python(LOOK, tmp_path).split()
    assert float(seconds) < 3
    assert loaded == []
    assert list(tmp_path.rglob("*")) == []


def test_the_names_that_others_rely_on_take_no_time_to_list(tmp_path):
    code = "import crysxpp_mm, sys; print(*dir(crysxpp_mm)); assert 'torch' not in sys.modules"
    assert set(crysxpp_mm.__all__) <= set(python(code, tmp_path).split())


def test_all_names_resolve():
    assert len(set(crysxpp_mm.__all__)) == len(crysxpp_mm.__all__)
    for name in crysxpp_mm.__all__:
        assert getattr(crysxpp_mm, name) is not None
    promised = {
        "CrysAE",
        "CrysAEFeaturizer",
        "CrysXPPClassifier",
        "CrysXPPFeaturizer",
        "CrysXPPRegressor",
        "CrystalGraphConverter",
        "__version__",
        "check_featurizer",
        "list_models",
        "load_model",
    }
    assert promised <= set(crysxpp_mm.__all__)
    assert crysxpp_mm.CrysAE is CrysAE
    assert crysxpp_mm.__version__ == __version__


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'CrysAEFeaturiser'"):
        _ = crysxpp_mm.CrysAEFeaturiser


# Errors.


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_errors_are_errors_of_input_and_build_from_one_text(kind):
    error = kind("site 3: it is not there; remove it.")
    again = type(error)(str(error))  # as matminer does
    copy = pickle.loads(pickle.dumps(error))
    for one in (error, again, copy):
        assert type(one) is kind
        assert str(one) == "site 3: it is not there; remove it."
    if kind is not CrysXPPError:
        assert issubclass(kind, ValueError | TypeError)


def test_every_error_of_the_package_derives_from_its_base():
    """Also those that are defined where they are raised."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Error"):
                name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                kind = getattr(importlib.import_module(name), node.name)
                assert issubclass(kind, CrysXPPError), kind
                assert str(kind("one text")) == "one text"
                if kind is not CrysXPPError:
                    assert issubclass(kind, ValueError | TypeError), kind


# Where the weights are.


@pytest.fixture
def shipped(tmp_path):
    """A folder of one small model, as ``pretrained/`` is."""
    folder = tmp_path / "pretrained"
    (folder / "crysae-small").mkdir(parents=True)
    metadata = {"description": "Untrained.", "n_train": 0}
    model = CrysAE.random(hidden_dim=4, n_convs=1, metadata=metadata)
    model.save(folder / "crysae-small" / MODEL_FILE)
    return folder


@pytest.fixture
def no_folder(tmp_path):
    """A folder that holds no model."""
    folder = tmp_path / "nothing"
    folder.mkdir()
    return folder


def install(monkeypatch, folder: Path | None) -> None:
    """Let the resources of ``crysxpp_mm.pretrained`` be in ``folder``; not installed if None."""

    def files(name: str) -> Path:
        assert name == "crysxpp_mm.pretrained"
        if folder is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return folder

    monkeypatch.setattr(importlib.resources, "files", files)


def place(monkeypatch, folder: Path) -> None:
    """Let the package be beside ``folder``."""
    monkeypatch.setattr(
        "crysxpp_mm.shipped.__file__", str(folder.parent / "crysxpp_mm" / "shipped.py")
    )


def test_installed_weights_come_first(monkeypatch, shipped, no_folder):
    install(monkeypatch, shipped)
    place(monkeypatch, no_folder / "pretrained")
    assert pretrained_folder() == shipped


@pytest.mark.parametrize("installed", [False, True])
def test_weights_beside_the_package(monkeypatch, shipped, no_folder, installed):
    """As when Python starts in a checkout after a plain install."""
    install(monkeypatch, no_folder if installed else None)
    place(monkeypatch, shipped)
    assert pretrained_folder() == shipped


@pytest.mark.parametrize("installed", [False, True])
def test_no_weights_at_all(monkeypatch, no_folder, installed):
    install(monkeypatch, no_folder if installed else None)
    place(monkeypatch, no_folder / "pretrained")
    with pytest.raises(UnknownModelError, match="no pretrained models; install"):
        pretrained_folder()
    with pytest.raises(UnknownModelError, match="no pretrained models"):
        load_model("crysae-mp-v1")


def test_shipped_models_are_listed_and_loaded_by_name(monkeypatch, shipped):
    install(monkeypatch, shipped)
    table = list_models()
    assert table["name"].tolist() == ["crysae-small"]
    assert table.iloc[0].to_dict() == {
        "name": "crysae-small",
        "kind": "CrysAE",
        "description": "Untrained.",
        "target": "",
        "unit": "",
        "n_train": 0,
        "test_mae": None,
        "test_accuracy": None,
        "hidden_dim": 4,
        "n_convs": 1,
        "path": str(shipped / "crysae-small" / MODEL_FILE),
    }
    CrysAE.random(hidden_dim=6, n_convs=1).save(shipped / "crysae-small" / MODEL_FILE)
    assert list_models().loc[0, "hidden_dim"] == 6  # read again when the file changes
    model = load_model("crysae-small")
    assert isinstance(model, CrysAE)
    assert not model.training
    with pytest.raises(UnknownModelError, match="no model 'crysae-large'; there are crysae-small"):
        load_model("crysae-large")


def test_a_model_is_saved_and_loaded_by_its_path(tmp_path):
    model = CrysAE.random(hidden_dim=4, n_convs=1)
    model.save(tmp_path / "m.json.gz")
    for path in (tmp_path / "m.json.gz", str(tmp_path / "m.json.gz")):
        assert load_model(path).as_dict() == model.as_dict()
    with pytest.raises(UnknownModelError, match=r"no model file .*other\.json\.gz"):
        load_model(tmp_path / "other.json.gz")


# What no module does.


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    """All calls by their dotted names."""
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_unpickled(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for name, call in calls(tree):
        arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if name == "torch.load":
            assert arguments.get("weights_only") == "True", name
        elif name in ("np.load", "numpy.load"):
            assert arguments.get("allow_pickle", "False") == "False", name
        elif name == "pickle.loads":  # the check that a featurizer can be pickled
            assert ast.unparse(call.args[0]).startswith("pickle.dumps("), name
        else:
            last = name.rpartition(".")[2]
            assert name not in ("pickle.load", "joblib.load", "pd.read_pickle"), name
            assert last not in ("Unpickler", "read_pickle", "load_from_checkpoint"), name
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & {"dill", "shelve", "marshal", "cloudpickle"}
    if "pickle" in imported:
        assert path.relative_to(PACKAGE).as_posix().startswith("featurizers/check")


# What the root of the checkout promises.

in_checkout = pytest.mark.skipif(
    not (ROOT / "constraints.txt").exists(), reason="the package is not in its checkout"
)


@in_checkout
def test_constraints_pin_each_version_once():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    names = [pin.partition("==")[0].lower() for pin in pins]
    assert all(pin.count("==") == 1 for pin in pins)
    assert len(set(names)) == len(names)
    assert {"torch==2.13.0", "dgl==1.1.3"} <= set(pins)


def test_the_extra_for_development_contains_all_others():
    extras: dict[str, set[str]] = {}
    for line in importlib.metadata.requires("crysxpp_mm"):
        requirement, _, marker = line.partition(";")
        if extra := re.search(r"extra == .(\w+).", marker):
            extras.setdefault(extra[1], set()).add(requirement.strip())
    assert {"dask", "notebooks", "dev"} <= set(extras)
    for requirements in extras.values():
        assert requirements <= extras["dev"]


@in_checkout
def test_the_build_keeps_the_weights_of_an_editable_install():
    """Older setuptools lose the package that ``package_dir`` maps."""
    (requirement,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"][
        "requires"
    ]
    name, _, version = requirement.partition(">=")
    assert name == "setuptools"
    assert int(version) >= 64
