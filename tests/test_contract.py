"""The contract of every model that predicts properties, on both kinds of graphs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import as_double, make_perovskite, make_structures, needs_dgl
from pymatgen.core import Structure
from salts import FAST, SALTS, TINY, Y

from crysxpp_mm import CrysXPPClassifier, CrysXPPRegressor, ElemNetRegressor, load_model
from crysxpp_mm.errors import SettingsError
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.models.crysxpp import CrysXPP
from crysxpp_mm.models.elemnet import ElemNet
from crysxpp_mm.models.property import PropertyModel

CONVERTER = CrystalGraphConverter()
GRAPHS = CONVERTER.convert_many(make_structures())
QUICK = {key: value for key, value in FAST.items() if key not in ("pretrained", "readout_dim")}

# A new model is one entry here, and one below for its estimator.
MODELS = {
    "crysxpp": lambda: CrysXPP.random(hidden_dim=8, n_targets=2, readout_dim=8, layers="all"),
    "crysxpp, element channel": lambda: CrysXPP.random(
        hidden_dim=8, n_targets=2, element_channel=True, pooled="hidden"
    ),
    "gcn": lambda: CrysXPP.random(encoder="gcn", hidden_dim=8, n_targets=2),
    "elemnet": lambda: ElemNet.random(hidden_dims=(16, 8), n_targets=2, dropout=0.2),
}
ESTIMATORS = {
    "crysxpp": lambda: CrysXPPRegressor(pretrained=TINY, readout_dim=4, **QUICK),
    "elemnet": lambda: ElemNetRegressor(hidden_dims=(8,), **QUICK),
}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


@pytest.fixture(params=["torch", pytest.param("dgl", marks=needs_dgl)])
def backend(request, monkeypatch):
    monkeypatch.setenv("CRYSXPP_BACKEND", request.param)
    return request.param


def test_shapes(model, backend):
    assert isinstance(model, PropertyModel)
    assert model.predict(GRAPHS).shape == (8, 2)
    assert model.embed_many(GRAPHS).shape == (8, model.n_columns)
    empty = CONVERTER.convert_many([])
    assert model.predict(empty).shape == (0, 2)
    assert model.embed_many(empty).shape == (0, model.n_columns)


def test_single_equals_batch(model, backend):
    singles = torch.cat([model.predict(GRAPHS.select([i])) for i in range(len(GRAPHS))])
    assert torch.allclose(model.predict(GRAPHS), singles, atol=1e-5)
    assert torch.allclose(model.predict(GRAPHS, batch_atoms=3), singles, atol=1e-5)


def test_prediction_does_not_depend_on_the_choice_of_cell(model, backend):
    model.double()
    perovskite = make_perovskite()
    big = perovskite.copy()
    big.make_supercell([[1, 1, 0], [0, 1, 0], [0, 0, 2]])
    moved = perovskite.copy()
    moved.translate_sites(range(5), [0.13, 0.4, 0.71])
    shuffled = Structure.from_sites([moved[i] for i in (3, 0, 4, 2, 1)])

    def value(structure):
        return model(as_double(model.make_graph(CONVERTER.convert(structure))))

    for other in (big, moved, shuffled):
        assert torch.allclose(value(other), value(perovskite), atol=1e-5)


def test_round_trip(model, tmp_path):
    model.set_target_scale([1.0, -2.0], [3.0, 0.5])
    model.save(tmp_path / "model.json.gz")
    again = type(model).load(tmp_path / "model.json.gz")
    assert torch.equal(again.predict(GRAPHS), model.predict(GRAPHS))
    assert again.settings == model.settings
    assert again.converter == model.converter


def test_gradients_are_finite_and_reach_every_group(model, backend):
    class Settings:
        learning_rate, max_epochs, encoder_rate, selector_rate = 0.01, 4, 0.5, 0.02
        sparsity, frozen_epochs, element_start = 0.001, 0, 0.0

    model.prepare(GRAPHS)
    model.train()
    model.at_epoch(0, Settings, continuing=False)
    groups = model.parameter_groups(Settings)
    optimizer = torch.optim.AdamW(groups)
    before = [[value.clone() for value in group["params"]] for group in groups]
    model(model.make_graph(GRAPHS)).square().sum().backward()
    for group in groups:
        assert group["lr"] > 0
        gradients = [value.grad for value in group["params"] if value.grad is not None]
        assert gradients
        assert all(torch.isfinite(gradient).all() for gradient in gradients)
    optimizer.step()
    model.after_step(optimizer, Settings)
    for group, old in zip(groups, before, strict=True):
        assert any(not torch.equal(a, b) for a, b in zip(group["params"], old, strict=True))
    grouped = {id(value) for group in groups for value in group["params"]}
    assert grouped == {id(value) for value in model.parameters()}


@needs_dgl
def test_dgl_equals_plain_tensors(model):
    found = {}
    for backend in ("dgl", "torch"):
        model.zero_grad()
        graph = model.make_graph(GRAPHS, backend=backend)
        prediction = model(graph)
        prediction.square().sum().backward()
        gradients = [value.grad.clone() for value in model.parameters() if value.grad is not None]
        found[backend] = (prediction.detach(), gradients)
    assert torch.allclose(found["dgl"][0], found["torch"][0], rtol=1e-6)
    for ours, theirs in zip(found["dgl"][1], found["torch"][1], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_fit_predict_save_load_and_give_intervals(name, backend, tmp_path):
    estimator = ESTIMATORS[name]()
    estimator.fit(SALTS[:8], Y[:8], validation=(SALTS[8:], Y[8:]))
    estimator.save(tmp_path / "model.json.gz")
    again = load_model(tmp_path / "model.json.gz")
    assert type(again) is type(estimator)
    assert np.array_equal(again.predict(SALTS), estimator.predict(SALTS))
    interval = again.predict_interval(SALTS, confidence=0.5)
    assert (interval["lower"] < interval["upper"]).all()
    assert again.domain(SALTS)["in_domain"].any()
    before = estimator.predict(SALTS)
    estimator.fine_tune(SALTS, 2 * Y, learning_rate=0.01, max_epochs=3)
    assert not np.array_equal(estimator.predict(SALTS), before)
    assert "fitted" in estimator._repr_mimebundle_()["text/html"]


def test_composition_is_all_that_elemnet_sees():
    model = ElemNet.random(seed=3)
    structure = make_perovskite()
    stretched = structure.copy()
    stretched.apply_strain(0.2)
    graphs = CONVERTER.convert_many([structure, stretched])
    first, second = model.predict(graphs)
    assert torch.allclose(first, second, atol=1e-7)
    other = CONVERTER.convert(Structure(structure.lattice, ["Sr"], [[0, 0, 0]]))
    assert not torch.allclose(model.predict(other)[0], first, atol=1e-4)


@pytest.mark.parametrize("widths", [8, None, "8", []])
def test_widths_of_elemnet_are_checked(widths):
    with pytest.raises(SettingsError, match="hidden_dims must"):
        ElemNet(hidden_dims=widths)


def test_a_classifier_keeps_the_contract(backend):
    model = CrysXPPClassifier(pretrained=TINY, readout_dim=4, **QUICK)
    model.fit(SALTS, ["metal", "insulator"] * 8)
    assert model.predict_proba(SALTS).sum(axis=1) == pytest.approx(np.ones(16))
