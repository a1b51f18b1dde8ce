"""Explanations: what the selector says, contributions that sum up, and plots."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_structures
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pymatgen.core import Composition, Element

from crysxpp_mm.elements import PROPERTIES, column_names, feature_table
from crysxpp_mm.errors import DataError, SettingsError, StructureTypeError
from crysxpp_mm.estimators import CrysXPPClassifier, CrysXPPRegressor
from crysxpp_mm.explain import (
    contributions,
    gradients,
    sparsity_path,
)
from crysxpp_mm.models.crysae import CrysAE
from crysxpp_mm.models.crysxpp import CrysXPP
from crysxpp_mm.plots import (
    plot_contributions,
    plot_explanation,
    plot_learning_curve,
    plot_parity,
    plot_sparsity_path,
)

TINY = CrysAE.random(seed=1, hidden_dim=4, n_convs=1)
FAST = {"pretrained": TINY, "readout_dim": 4, "max_epochs": 2, "min_steps": 0, "pbar": False}
MATERIALS = make_structures()  # never changed here
Y = np.arange(1.0, 9.0)


@pytest.fixture(scope="module")
def fitted():
    """An ensemble on two targets; not to be changed."""
    targets = pd.DataFrame({"K": Y, "gap": Y[::-1]})
    model = CrysXPPRegressor(
        **FAST, n_members=2, transform={"K": "log10"}, units={"K": "GPa", "gap": "eV"}
    )
    return model.fit(MATERIALS, targets)


@pytest.fixture(scope="module")
def fitted_classifier():
    return CrysXPPClassifier(**FAST).fit(MATERIALS, ["metal", "oxide"] * 4)


def test_feature_weights_are_a_table(fitted):
    table = fitted.feature_weights_
    assert list(table.columns) == ["column", "property", "bin", "unit", "weight"]
    assert table["column"].tolist() == list(range(92))
    assert (table["property"] + ", " + table["bin"]).tolist() == column_names()
    weights = [member.selector.weight.detach().double().numpy() for member in fitted.members_]
    assert table["weight"].to_numpy() == pytest.approx(np.mean(weights, axis=0))


def test_explanation_holds_the_weights_that_the_elements_switch_on(fitted):
    perovskite = MATERIALS[1]
    table = fitted.explain(perovskite)
    assert list(table.index) == ["Sr", "Ti", "O"]
    assert list(table.columns) == [item.name for item in PROPERTIES]
    weights = fitted.feature_weights_["weight"].to_numpy()
    for symbol in table.index:
        features = feature_table()[Element(symbol).Z]
        for item in PROPERTIES:
            on = np.flatnonzero(features[item.start : item.stop])
            expected = weights[item.start + on[0]] if len(on) else np.nan
            assert table.loc[symbol, item.name] == pytest.approx(expected, nan_ok=True)
    assert fitted.explain(perovskite.as_dict()).equals(table)


def test_unknown_values_and_mixed_sites(fitted):
    argon = fitted.explain(MATERIALS[6])
    assert np.isnan(argon.loc["Ar", "electronegativity"])
    assert list(fitted.explain(MATERIALS[5]).index) == ["Cu", "Zn"]


def test_without_a_selector_there_are_no_weights():
    model = CrysXPPRegressor(**FAST, selector=False).fit(MATERIALS, Y)
    with pytest.raises(SettingsError, match="no feature selector"):
        _ = model.feature_weights_
    with pytest.raises(SettingsError, match="no feature selector"):
        model.explain(MATERIALS[0])
    with pytest.raises(SettingsError, match="needs a feature selector"):
        sparsity_path(model, MATERIALS, Y)
    assert abs(model.contributions(MATERIALS[0]).gap) < 1e-6  # these need none


def test_what_is_no_crystal(fitted):
    with pytest.raises(StructureTypeError):
        fitted.explain(Composition("NaCl"))
    with pytest.raises(StructureTypeError):
        fitted.contributions("NaCl", target="K")


@pytest.mark.parametrize("number", range(8))
def test_contributions_are_complete(fitted, number):
    structure = MATERIALS[number]
    found = fitted.contributions(structure, target="gap")
    predicted = fitted.predict([structure])[0, 1]
    assert found.prediction == pytest.approx(predicted, abs=1e-5)
    assert found.table.to_numpy().sum() == pytest.approx(
        found.prediction - found.baseline, abs=1e-6
    )
    assert abs(found.gap) < 1e-6
    assert found.by_site().sum() == pytest.approx(found.by_property().sum())
    assert len(found.by_site()) == len(structure)
    assert list(found.by_property().index) == [item.name for item in PROPERTIES]
    assert (found.name, found.unit) == ("gap", "eV")


def test_contributions_of_the_transformed_target(fitted):
    found = fitted.contributions(MATERIALS[1], target="K")
    assert found.name == "log10(K / GPa)"
    assert found.unit == ""
    assert 10**found.prediction == pytest.approx(fitted.predict(MATERIALS[1:2])[0, 0], rel=1e-5)
    assert found.table.index.names == ["site", "species"]
    assert found.table.index.get_level_values("species").tolist() == ["Sr", "Ti", "O", "O", "O"]
    oxygens = found.by_site().to_numpy()[2:]
    assert oxygens == pytest.approx(np.full(3, oxygens[0]))  # equal by symmetry


def test_species_of_mixed_and_vacant_sites(fitted):
    mixed = fitted.contributions(MATERIALS[5], target="gap").table
    assert mixed.index.get_level_values("species")[0] == "Cu0.5 Zn0.5"
    partial = fitted.contributions(MATERIALS[7], target="gap").table
    assert partial.index.get_level_values("species").tolist() == ["Fe0.9", "O"]


def test_contributions_with_the_element_channel_and_all_moments():
    model = CrysXPP.random(
        hidden_dim=4, readout_dim=4, element_channel=True, layers="all", moments=("mean", "std")
    )
    model.encoder.element_embedding.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    found = contributions([model], MATERIALS[1], n_points=64)
    assert list(found.table.columns) == [*(item.name for item in PROPERTIES), "element"]
    assert found.table["element"].abs().sum() > 0
    assert abs(found.gap) < 1e-5


def test_as_many_points_as_the_sum_needs():
    model = CrysXPP.random(hidden_dim=4, readout_dim=4)
    model.selector.weight.data *= 3000  # a bent path
    few = contributions([model], MATERIALS[1], n_points=32)
    enough = contributions([model], MATERIALS[1])
    total = abs(enough.prediction - enough.baseline)
    assert abs(few.gap) > 1e-3 * total
    assert abs(enough.gap) < 1e-3 * total
    with torch.no_grad():
        assert contributions([model], MATERIALS[1]).table.equals(enough.table)


def test_contributions_that_miss_their_sum_say_so(monkeypatch):
    monkeypatch.setattr(gradients, "POINTS", (1, 2))
    model = CrysXPP.random(hidden_dim=4, readout_dim=4)
    model.selector.weight.data *= 3000
    with pytest.warns(UserWarning, match="the contributions to K miss their sum by .* n_points"):
        contributions([model], MATERIALS[1], name="K")


def test_a_column_that_is_off_contributes_nothing():
    model = CrysXPP.random(hidden_dim=4, readout_dim=4)
    block = PROPERTIES[1]
    model.selector.weight.data[block.start : block.stop] = 0
    found = contributions([model], MATERIALS[1]).by_property()
    assert found[block.name] == 0
    assert (found.drop(block.name) != 0).all()


def test_targets_have_to_be_named(fitted, fitted_classifier):
    with pytest.raises(SettingsError, match="name the target: 'K', 'gap'"):
        fitted.contributions(MATERIALS[0])
    with pytest.raises(SettingsError, match="no target 'G'"):
        fitted.contributions(MATERIALS[0], target="G")
    for n_points in (0, 8.5, True):
        with pytest.raises(SettingsError, match="n_points must be a whole number"):
            fitted.contributions(MATERIALS[0], target="K", n_points=n_points)
    assert fitted_classifier.contributions(MATERIALS[0]).name == "logit of oxide"
    assert fitted_classifier.contributions(MATERIALS[0], target="metal").name == "logit of metal"
    with pytest.raises(SettingsError, match="target must be a class"):
        fitted_classifier.contributions(MATERIALS[0], target="glass")


def test_sparsity_path():
    model = CrysXPPRegressor(**{**FAST, "max_epochs": 20, "selector_rate": 0.2})
    path = sparsity_path(model, MATERIALS, Y, [0.0, 10.0], test=(MATERIALS, Y))
    assert list(path.weights.index) == [0.0, 10.0]
    assert list(path.weights.columns) == column_names()
    assert path.results["n_zero"].tolist()[0] == 0
    assert path.results["n_zero"].tolist()[1] > 40
    assert path.results["score"].notna().all()
    assert not hasattr(model, "members_")
    axes = plot_sparsity_path(path)
    assert len(axes.lines) == 92
    assert axes.get_xlabel()
    draw(axes)
    with pytest.raises(SettingsError, match="sparsities is empty"):
        sparsity_path(model, MATERIALS, Y, [])


# Plots.


def draw(axes):
    """Render a figure; fails where a text or a number cannot be drawn."""
    FigureCanvasAgg(axes.figure).draw()


def test_parity_plot():
    truth = pd.Series([1.0, 2.0, np.nan], name="K")
    axes = plot_parity(truth, [1.5, 2.0, 3.0], std=[0.1, 0.2, 0.3], unit="GPa")
    assert axes.get_xlabel() == "K, true (GPa)"
    assert axes.get_ylabel() == "K, predicted (GPa)"
    assert axes.get_title() == "MAE 0.25 GPa, R\u00b2 0.500, 2 crystals"
    draw(axes)
    one = plot_parity([1.0], [1.0])
    assert one.get_title() == "MAE 0, 1 crystals"
    draw(one)
    with pytest.raises(DataError, match="of one shape"):
        plot_parity([1.0], [1.0, 2.0])
    with pytest.raises(DataError, match="no pair"):
        plot_parity([np.nan], [1.0])


def test_parity_plot_with_logarithms():
    axes = plot_parity([10.0, 200.0], [20.0, 100.0], scale="log")
    assert axes.get_xscale() == axes.get_yscale() == "log"
    draw(axes)
    labels = {text.get_text() for text in axes.get_xticklabels()}
    assert {"10", "20", "50", "100", "200"} <= labels
    draw(plot_parity([5.0], [5.0], scale="log"))
    with pytest.raises(DataError, match="needs values above zero, got -1"):
        plot_parity([1.0], [-1.0], scale="log")


def test_explanation_plot(fitted):
    axes = plot_explanation(fitted.explain(MATERIALS[1]))
    assert len(axes.patches) == 27
    assert "weight" in axes.get_ylabel()
    texts = {text.get_text() for text in axes.texts}
    assert {"2", "4", "16"} <= texts  # groups of Sr, Ti and O
    draw(axes)
    draw(plot_explanation(fitted.explain(MATERIALS[6])))
    weights = fitted.explain(MATERIALS[1])
    weights.iloc[:] = 0.3
    weights.iloc[0, 0] = -1e-4
    low, high = plot_explanation(weights).get_ylim()
    assert -0.03 < low < -1e-4
    assert high > 0.36  # room for the bins above the bars
    with pytest.raises(DataError, match="explain"):
        plot_explanation(pd.DataFrame({"a": [1]}))


def test_learning_curve_plot(fitted):
    axes = plot_learning_curve(fitted)
    assert axes.get_xlabel() == "epoch"
    assert axes.get_ylabel() == "loss (mean absolute error,\nstandardized target)"
    draw(axes)
    draw(plot_learning_curve(fitted.members_ and fitted.learning_curve_.drop(columns="member")))
    with pytest.raises(DataError, match="learning_curve_"):
        plot_learning_curve(CrysXPPRegressor())


def test_learning_curve_marks_the_epoch_that_was_kept(fitted_classifier):
    losses = {"train_loss": [3.0, 2.0, 1.0], "val_loss": [1.0, 1.5, 2.0]}
    curve = pd.DataFrame({"epoch": [0, 1, 2], **losses, "kept": [False, True, False]})
    axes = plot_learning_curve(curve)
    (point,) = (line for line in axes.lines if line.get_label() == "kept")
    assert point.get_xydata().tolist() == [[2.0, 1.5]]
    assert plot_learning_curve(fitted_classifier).get_ylabel() == "loss (cross entropy)"


def test_contributions_plot_goes_from_the_baseline_to_the_prediction(fitted):
    found = fitted.contributions(MATERIALS[1], target="gap")
    axes = plot_contributions(found)
    assert axes.get_xlabel() == "gap (eV)"
    assert len(axes.patches) == 9
    widths = np.array([bar.get_width() for bar in axes.patches])
    assert (np.diff(np.abs(widths)) <= 0).all()  # the largest first
    first, last = axes.patches[0], axes.patches[-1]
    assert first.get_x() == pytest.approx(found.baseline)
    assert last.get_x() + last.get_width() == pytest.approx(found.prediction, abs=1e-6)
    low, high = axes.get_xlim()
    assert low < min(found.baseline, found.prediction)
    assert high > max(found.baseline, found.prediction)
    draw(axes)


def test_contributions_are_a_table_in_a_notebook(fitted):
    found = fitted.contributions(MATERIALS[1], target="gap")
    html = found._repr_html_()
    tables = pd.read_html(StringIO(html), index_col=0)
    assert list(tables[0].index) == ["0 Sr", "1 Ti", "2 O", "3 O", "4 O", "sum"]
    assert tables[0].loc["sum", "sum"] == pytest.approx(found.prediction - found.baseline, rel=5e-3)
    cell = MATERIALS[1].copy()
    cell.make_supercell(2)
    html = fitted.contributions(cell, target="gap")._repr_html_()
    assert list(pd.read_html(StringIO(html), index_col=0)[0].index) == [
        *("Sr (8 sites)", "Ti (8 sites)", "O (24 sites)", "sum")
    ]


def test_html_is_escaped(fitted):
    found = replace(fitted.contributions(MATERIALS[0], target="gap"), name="<b>", unit="<i>")
    html = found._repr_html_()
    assert "&lt;b&gt;" in html
    assert "&lt;i&gt;" in html
    assert "<i>" not in html


def test_plots_draw_into_given_axes(fitted):
    explanation = fitted.explain(MATERIALS[0])
    contributions = fitted.contributions(MATERIALS[0], target="gap")
    for plot, given in (
        (plot_parity, ([1.0, 2.0], [1.0, 2.0])),
        (plot_learning_curve, (fitted,)),
        (plot_explanation, (explanation,)),
        (plot_contributions, (contributions,)),
    ):
        axes = Figure().add_subplot()
        assert plot(*given, axes=axes) is axes
        assert axes.has_data()


def test_pictures_have_a_new_home_and_the_old_ones_say_so():
    from crysxpp_mm import explain, plots, plotting

    old = {
        plotting: ("COLORS", "draw_label_curves", "draw_map", "map_to_plane"),
        explain: ("plot_contributions", "plot_explanation", "plot_learning_curve", "plot_parity"),
    }
    for module, names in old.items():
        for name in names:
            with pytest.warns(DeprecationWarning, match=f"{name} has moved.*crysxpp_mm.plots"):
                assert getattr(module, name) is getattr(plots, name)
    with pytest.raises(AttributeError, match="no attribute 'plot_bananas'"):
        getattr(explain, "plot_bananas")  # noqa: B009, it is absent
