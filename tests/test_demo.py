"""The demo: the main job on the crystals that pymatgen ships."""

from __future__ import annotations

import shlex

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Composition
from typer.testing import CliRunner

from crysxpp_mm import CrysAE, CrysAEFeaturizer
from crysxpp_mm.cli import app
from crysxpp_mm.demo import CLASSES, DemoResult, chemistry_class, prototype_crystals, run_demo
from crysxpp_mm.errors import DataError, UnknownModelError
from crysxpp_mm.plots import COLORS, draw_map, map_to_plane

LIMIT = 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of random weights."""
    path = tmp_path_factory.mktemp("model") / "random.json.gz"
    CrysAE.random(seed=0, hidden_dim=16).save(path)
    return str(path)


@pytest.fixture(scope="module")
def ran(model: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[DemoResult, str]:
    """What a short run left behind and said."""
    said: list[str] = []
    folder = tmp_path_factory.mktemp("demo") / "new" / "my demo"
    result = run_demo(folder, model=model, say=said.append, pbar=False, limit=LIMIT)
    return result, "\n".join(said)


def test_prototypes_are_many_and_classified():
    crystals = prototype_crystals()
    assert len(crystals) == 288
    assert set(crystals["chemistry"]) == set(CLASSES)
    assert crystals["structure"].map(len).equals(crystals["n_sites"])
    assert crystals["name"].str.len().gt(0).all()


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("Cu", "elements"),
        ("CuZn", "intermetallics"),
        ("SiC", "borides, carbides, silicides"),
        ("GaAs", "nitrides, pnictides"),
        ("CaTiO3", "oxides"),
        ("ZnS", "chalcogenides"),
        ("NaCl", "halides"),
        ("ThH2", "other"),
    ],
)
def test_class_is_that_of_the_anion(formula, expected):
    assert chemistry_class(Composition(formula)) == expected


def test_files_hold_what_the_featurizer_gives(ran, model):
    result, _ = ran
    table = pd.read_csv(result.features)
    featurizer = CrysAEFeaturizer(model=model)
    labels = featurizer.feature_labels()
    assert (result.n_crystals, result.n_columns) == (len(table), len(labels)) == (LIMIT, 192)
    assert [column for column in table.columns if column in labels] == labels
    crystals = prototype_crystals().head(LIMIT)
    expected = featurizer.structure_embeddings(list(crystals["structure"]))
    np.testing.assert_allclose(table[labels], expected, rtol=1e-4, atol=1e-5)
    assert list(table["name"]) == list(crystals["name"])
    assert {"map x", "map y"} <= set(table.columns)
    assert result.picture.read_bytes().startswith(b"\x89PNG")


def test_it_says_where_the_files_are(ran):
    result, said = ran
    assert str(result.folder.resolve()) in said
    for path in (result.features, result.picture, result.source):
        assert path.is_file()
        assert path.name in said


def test_the_next_command_works_as_printed(ran, tmp_path, monkeypatch):
    _, said = ran
    (line,) = (line for line in said.splitlines() if line.startswith("  crysxpp featurize "))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, shlex.split(line)[1:])
    assert result.exit_code == 0, result.output
    assert len(pd.read_csv("columns.csv")) == LIMIT


def test_same_run_gives_the_same_files(ran, model, tmp_path):
    result, _ = ran
    again = run_demo(tmp_path, model=model, say=lambda line: None, pbar=False, limit=LIMIT)
    for name in ("features", "picture", "source"):
        assert getattr(again, name).read_bytes() == getattr(result, name).read_bytes(), name


def test_folder_that_is_a_file_and_unknown_model_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file is a file; give a folder"):
        run_demo(tmp_path / "file")
    with pytest.raises(UnknownModelError, match=r"there is no model file .*none\.json\.gz"):
        run_demo(tmp_path / "out", model="./none.json.gz", say=lambda line: None, pbar=False)
    assert not (tmp_path / "out").exists()


def test_map_keeps_groups_together_and_is_wider_than_high():
    rng = np.random.default_rng(0)
    groups = np.repeat([[0.0] * 8, [9.0] * 8], 15, axis=0)
    points = map_to_plane(groups + rng.normal(size=(30, 8)))
    centers = points[:15].mean(axis=0), points[15:].mean(axis=0)
    spread = max(np.linalg.norm(points[:15] - centers[0], axis=1).max(), 1e-9)
    assert np.linalg.norm(centers[0] - centers[1]) > spread
    assert np.ptp(points[:, 0]) > np.ptp(points[:, 1])
    assert map_to_plane(np.eye(3)).shape == (3, 2)


def test_map_refuses_few_rows_and_nan():
    with pytest.raises(DataError, match="at least three rows, got 2"):
        map_to_plane(np.eye(2))
    with pytest.raises(DataError, match="finite numbers"):
        map_to_plane(np.full((4, 2), np.nan))


def labels_of(figure) -> list:
    """The texts beside the points."""
    return [text for text in figure.axes[0].texts if text.get_text()]


def test_labels_cover_neither_each_other_nor_a_point():
    points = np.random.default_rng(0).normal(size=(80, 2))
    names = [f"crystal {i}" for i in range(80)]
    figure = draw_map(points, classes=["a", "b"] * 40, labels=names, title="t")
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in labels_of(figure)]
    assert len(boxes) > 20
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        for x, y in axes.transData.transform(points):
            assert not box.contains(x, y)
        assert axes.get_window_extent().contains(*box.p0)
        assert axes.get_window_extent().contains(*box.p1)


def test_equal_labels_of_near_points_are_written_once():
    points = np.array([[0, 0], [0.001, 0.01], [1, 0], [0.5, 0.5]])
    figure = draw_map(points, classes=["a"] * 4, labels=["x", "x", "x", ""], title="t")
    assert len(labels_of(figure)) == 2


def test_more_classes_than_colours_are_refused():
    classes = [str(i) for i in range(len(COLORS) + 1)]
    points = np.zeros((len(classes), 2))
    with pytest.raises(DataError, match="at most 8 classes, got 9"):
        draw_map(points, classes=classes, labels=classes, title="t")


def test_drawing_leaves_matplotlib_alone():
    import matplotlib.pyplot as plt

    before = plt.get_fignums(), plt.get_backend()
    draw_map(np.eye(2), classes=["a", "b"], labels=["a", "b"], title="t")
    assert (plt.get_fignums(), plt.get_backend()) == before
