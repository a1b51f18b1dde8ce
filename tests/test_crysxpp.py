"""Laws of the CrysXPP network and of its training."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import as_double, make_structures
from monty.json import MontyDecoder, MontyEncoder
from pymatgen.core import Lattice, Structure
from torch import nn

from crysxpp_mm.elements import PROPERTIES, feature_table
from crysxpp_mm.errors import DataError, ModelFileError, SettingsError
from crysxpp_mm.estimators.crysxpp import CrysXPPFitOptions
from crysxpp_mm.graph.batch import ATOM_FEATURES
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.models.crysae import CrysAE
from crysxpp_mm.models.crysxpp import CrysXPP, FeatureSelector
from crysxpp_mm.training import loop
from crysxpp_mm.training.callbacks import SaveCheckpoint
from crysxpp_mm.training.fit import FitModule, FitRows, fit_model, training_batches
from crysxpp_mm.training.objectives import ClassificationObjective, RegressionObjective
from crysxpp_mm.training.options import checked_options

converter = CrystalGraphConverter()
MATERIALS = make_structures()  # never changed here
SMALL = {"hidden_dim": 8, "readout_dim": 8}
ALL_MOMENTS = {"layers": "all", "moments": ("mean", "std", "max")}
READOUTS = [{}, ALL_MOMENTS, {"pooled": "hidden"}, {"pooled": "hidden", **ALL_MOMENTS}]


def crystals(n=24, seed=0):
    """Rock salts and CsCl structures of random elements and sizes; graphs and structures."""
    rng = np.random.default_rng(seed)
    cations, anions = ["Li", "Na", "K", "Mg", "Ca", "Al", "Ti"], ["F", "Cl", "O", "S", "N"]
    structures = []
    for _ in range(n):
        cell = Lattice.cubic(rng.uniform(2.8, 4.0))
        pair = [str(rng.choice(cations)), str(rng.choice(anions))]
        structures.append(Structure(cell, pair, [[0, 0, 0], [0.5, 0.5, 0.5]]))
    return structures


def train(model, structures, y, config, *, rows=None, objective=None, **options):
    """Fit on the first part, choose on the last quarter."""
    cut = len(structures) * 3 // 4
    if rows is None:
        rows = FitRows(np.arange(cut), np.arange(cut, len(structures)))
    objective = objective or RegressionObjective()
    graphs = converter.convert_many(structures)
    return fit_model(model, graphs, y, objective, config, rows, **options)


@pytest.mark.parametrize("encoder", ["cgcnn", "gcn"])
@pytest.mark.parametrize("readout", READOUTS)
def test_prediction_does_not_depend_on_the_choice_of_cell(perovskite, encoder, readout):
    model = CrysXPP.random(encoder=encoder, **SMALL, **readout).double()
    big = perovskite.copy()
    big.make_supercell([[1, 1, 0], [0, 1, 0], [0, 0, 2]])
    moved = perovskite.copy()
    moved.translate_sites(range(5), [0.13, 0.4, 0.71])
    shuffled = Structure.from_sites([moved[i] for i in (3, 0, 4, 2, 1)])

    def value(structure):
        return model(as_double(model.make_graph(converter.convert(structure)))).item()

    for other in (big, moved, shuffled):
        assert value(other) == pytest.approx(value(perovskite), abs=1e-5)


@pytest.mark.parametrize("readout", READOUTS)
def test_batch_equals_single(readout):
    model = CrysXPP.random(n_targets=2, **SMALL, **readout)
    graphs = converter.convert_many(MATERIALS)
    singles = [model.predict(graphs.select([i])) for i in range(len(graphs))]
    assert torch.allclose(model.predict(graphs), torch.cat(singles), atol=1e-5)
    assert torch.allclose(model.predict(graphs, batch_atoms=3), torch.cat(singles), atol=1e-5)


def test_what_is_pooled_for_the_readout(perovskite):
    graph = CrysXPP.random(**SMALL).make_graph(converter.convert(perovskite))
    model = CrysXPP.random(pooled="hidden", **SMALL)
    sites = model.readout.sites(model.readout_input(graph))
    assert sites.shape == (len(perovskite), 8)
    assert torch.allclose(model.readout(sites.mean(0)), model(graph)[0], atol=1e-6)
    model = CrysXPP.random(pooled="embeddings", **SMALL)
    assert model.readout_input(graph).shape == (1, 8)
    assert torch.equal(model.readout_input(graph), model.embed(graph))


def test_no_crystals_are_no_rows():
    empty = converter.convert_many([])
    assert CrysXPP.random(n_targets=3, **SMALL).predict(empty).shape == (0, 3)


def test_encoder_is_transferred_whole():
    autoencoder = CrysAE.random(seed=3, hidden_dim=8, n_convs=2)
    model = CrysXPP.from_autoencoder(autoencoder, layers="all")
    graphs = converter.convert_many(MATERIALS)
    ours = model.encoder(model.make_graph(graphs))
    theirs = autoencoder.node_embeddings(graphs)
    assert len(ours) == 3
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    with torch.no_grad():
        model.encoder.embedding.weight.zero_()
    assert autoencoder.encoder.embedding.weight.abs().sum() > 0  # a copy


def test_an_element_channel_is_added_and_changes_nothing_yet():
    autoencoder = CrysAE.random(seed=3, hidden_dim=8, n_convs=2)
    graphs = converter.convert_many(MATERIALS)
    plain, channel = (
        CrysXPP.from_autoencoder(autoencoder, element_channel=added) for added in (False, True)
    )
    assert torch.equal(channel.predict(graphs), plain.predict(graphs))
    assert channel.settings == {**plain.settings, "element_channel": True}
    assert not autoencoder.encoder.element_channel
    nn.init.normal_(channel.encoder.element_embedding.weight)
    assert not torch.equal(channel.predict(graphs), plain.predict(graphs))
    again = CrysXPP.from_dict(channel.as_dict())
    assert torch.equal(again.predict(graphs), channel.predict(graphs))
    learned = CrysAE.random(seed=3, hidden_dim=8, n_convs=2, element_channel=True)
    nn.init.normal_(learned.encoder.element_embedding.weight)
    for added in (False, True):
        kept = CrysXPP.from_autoencoder(learned, element_channel=added)
        weight = kept.encoder.element_embedding.weight
        assert torch.equal(weight, learned.encoder.element_embedding.weight)


def test_selector_multiplies_columns_and_leaves_the_graph_alone(perovskite):
    model = CrysXPP.random(**SMALL)
    graph = model.make_graph(converter.convert(perovskite))
    before = graph.ndata[ATOM_FEATURES].clone()
    with torch.no_grad():
        model.selector.weight.mul_(2)
    doubled = model(graph)
    assert torch.equal(graph.ndata[ATOM_FEATURES], before)
    plain = CrysXPP.random(selector=False, **SMALL)
    graph.ndata[ATOM_FEATURES] = 2 * before
    assert torch.equal(plain(graph), doubled)


def test_std_of_equal_atoms_has_a_gradient(copper):
    model = CrysXPP.random(**SMALL, **ALL_MOMENTS)
    model(model.make_graph(converter.convert(copper))).sum().backward()
    assert torch.isfinite(model.selector.weight.grad).all()


@pytest.mark.parametrize("options", [{}, {"encoder": "gcn"}, {"selector": False}, ALL_MOMENTS])
def test_round_trip_is_exact(options):
    model = CrysXPP.random(seed=5, n_targets=2, element_channel=True, **SMALL, **options)
    model.target_mean.copy_(torch.tensor([1 / 3, -7e5]))
    text = json.dumps({"model": model}, cls=MontyEncoder)
    again = json.loads(text, cls=MontyDecoder)["model"]
    graphs = converter.convert_many(MATERIALS)
    assert torch.equal(model.predict(graphs), again.predict(graphs))
    assert again.settings == model.settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(extra=1), "unknown keys: extra"),
        (lambda d: d.pop("converter"), "lacks converter"),
        (lambda d: d["settings"].update(hidden_dim=9), "needs"),
        (lambda d: d["settings"].update(encoder="mlp"), "makes no sense .*encoder must"),
        (lambda d: d["weights"].update(sha256="0"), "do not match their sha256"),
    ],
)
def test_damaged_documents_are_refused(change, message):
    document = CrysXPP.random(**SMALL).as_dict()
    change(document)
    with pytest.raises(ModelFileError, match=message):
        CrysXPP.from_dict(document)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": "mlp"}, "encoder must be"),
        ({"pooled": "bonds"}, "pooled must be"),
        ({"layers": "first"}, "layers must be"),
        ({"moments": "mean"}, "moments must be"),
        ({"moments": ()}, "moments must be"),
        ({"moments": ("mode",)}, "moments must be"),
        ({"readout_dim": 0}, "readout_dim must be"),
        ({"n_targets": 0}, "n_targets must be"),
        ({"hidden_dim": 0}, "hidden_dim must be"),
    ],
)
def test_senseless_settings_are_named(options, message):
    with pytest.raises(SettingsError, match=message):
        CrysXPP(**options)


def test_training_mode_is_refused(perovskite):
    with pytest.raises(SettingsError, match="call eval"):
        CrysXPP(**SMALL).predict(converter.convert(perovskite))


# Training.


def quick(**changes):
    """Few epochs on few labels."""
    return CrysXPPFitOptions(**{"max_epochs": 4, "min_steps": 0, "batch_size": 6, **changes})


def weights(model):
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


def test_equal_seeds_give_equal_weights_and_leave_the_users_seed_alone():
    structures, y = crystals(), np.random.default_rng(0).normal(size=(24, 1))
    torch.manual_seed(7)
    expected = torch.rand(1)
    results = []
    for _ in range(2):
        torch.manual_seed(7)
        model = CrysXPP.random(seed=1, **SMALL)
        train(model, structures, y, quick(seed=1))
        results.append(weights(model))
    assert torch.equal(results[0], results[1])
    assert torch.equal(torch.rand(1), expected)
    other = CrysXPP.random(seed=1, **SMALL)
    train(other, structures, y, quick(seed=2))
    assert not torch.equal(weights(other), results[0])


def test_resumed_training_equals_uninterrupted(tmp_path, monkeypatch):
    structures, y = crystals(), np.random.default_rng(0).normal(size=(24, 1))
    whole = CrysXPP.random(**SMALL)
    expected = train(whole, structures, y, quick(frozen_epochs=1))

    class KilledError(Exception):
        pass

    save = SaveCheckpoint.on_train_epoch_end

    def save_then_die(self, trainer, module):
        save(self, trainer, module)
        if trainer.current_epoch == 1:
            raise KilledError

    options = {"checkpoint_dir": tmp_path, "run_id": "a"}
    monkeypatch.setattr(SaveCheckpoint, "on_train_epoch_end", save_then_die)
    with pytest.raises(KilledError):
        train(CrysXPP.random(**SMALL), structures, y, quick(frozen_epochs=1), **options)
    monkeypatch.undo()
    resumed = CrysXPP.random(**SMALL)
    curve = train(resumed, structures, y, quick(frozen_epochs=1), **options)
    assert torch.equal(weights(resumed), weights(whole))
    pd.testing.assert_frame_equal(curve, expected)
    assert {"curves.csv", "curves.png", "last.ckpt", "model.json.gz"} <= {
        path.name for path in tmp_path.iterdir()
    }

    finished = CrysXPP.random(**SMALL)  # read back, not trained again
    monkeypatch.setattr(loop.lightning, "Trainer", None)
    again = train(finished, structures, y, quick(frozen_epochs=1), **options)
    assert torch.equal(weights(finished), weights(whole))
    pd.testing.assert_frame_equal(again, expected)


def test_folder_of_another_run_is_refused(tmp_path):
    structures, y = crystals(8), np.zeros((8, 1))
    options = {"checkpoint_dir": tmp_path / "run", "run_id": "a"}
    train(CrysXPP.random(**SMALL), structures, y, quick(max_epochs=1), **options)
    with pytest.raises(SettingsError, match="holds another run"):
        train(CrysXPP.random(**SMALL), structures, y, quick(), **{**options, "run_id": "b"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", b"", "run.json cannot be read .*remove it to start afresh"),
        ("run.json", b"[1]", "run.json cannot be read"),
        ("last.ckpt", b"no checkpoint", "last.ckpt is damaged; .*remove it to start afresh"),
        ("curves.csv", None, "lacks curves.csv"),
    ],
)
def test_damaged_folders_are_refused(tmp_path, name, content, message):
    structures, y = crystals(8), np.zeros((8, 1))
    options = {"checkpoint_dir": tmp_path, "run_id": "a"}
    train(CrysXPP.random(**SMALL), structures, y, quick(max_epochs=1), **options)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingsError, match=message):
        train(CrysXPP.random(**SMALL), structures, y, quick(max_epochs=1), **options)


def test_a_run_that_was_killed_when_it_had_stopped_trains_no_more(tmp_path):
    structures, y = crystals(), np.random.default_rng(0).normal(size=(24, 1))
    config = quick(max_epochs=30, patience=3, learning_rate=0.05)
    options = {"checkpoint_dir": tmp_path, "run_id": "a"}
    model = CrysXPP.random(**SMALL)
    curve = train(model, structures, y, config, **options)
    assert 3 < len(curve) < 30
    (tmp_path / "model.json.gz").unlink()  # as if it had been killed before
    again = CrysXPP.random(**SMALL)
    pd.testing.assert_frame_equal(train(again, structures, y, config, **options), curve)
    assert torch.equal(weights(again), weights(model))


def test_ctrl_c_stays_a_keyboard_interrupt(tmp_path, monkeypatch):
    structures, y = crystals(), np.random.default_rng(0).normal(size=(24, 1))
    whole = CrysXPP.random(**SMALL)
    train(whole, structures, y, quick())
    step = FitModule.training_step

    def interrupted(self, batch, batch_index):
        if self.current_epoch == 2:
            raise KeyboardInterrupt
        return step(self, batch, batch_index)

    options = {"checkpoint_dir": tmp_path, "run_id": "a"}
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(FitModule, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(CrysXPP.random(**SMALL), structures, y, quick(), **options)
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGINT) == before
    resumed = CrysXPP.random(**SMALL)
    train(resumed, structures, y, quick(), **options)
    assert torch.equal(weights(resumed), weights(whole))


def test_a_floor_is_no_error_below_and_one_above():
    floors = torch.tensor([-0.5, float("-inf")])
    objective = RegressionObjective(floors=floors)
    targets = torch.tensor([[-0.5, 0.0], [-0.5, float("nan")], [1.0, 0.0]])
    predicted = torch.tensor([[-2.0, -2.0], [0.5, 0.0], [-2.0, 0.0]], requires_grad=True)
    loss, size = objective(predicted, targets)
    assert size == 5
    assert loss.item() == pytest.approx((0 + 2 + 1 + 3 + 0) / 5)
    (gradient,) = torch.autograd.grad(loss, predicted)
    assert (gradient[:, 0] * 5).tolist() == [0, 1, -1]


def test_best_weights_are_kept_and_training_stops_early():
    structures, y = crystals(), np.random.default_rng(0).normal(size=(24, 1))
    model = CrysXPP.random(**SMALL)
    curve = train(model, structures, y, quick(max_epochs=30, patience=3, learning_rate=0.05))
    assert len(curve) < 30
    held_out = converter.convert_many(structures[18:])
    loss = (model.predict(held_out) - torch.from_numpy(y[18:])).abs().mean().item()
    assert loss == pytest.approx(curve["val_loss"].min(), rel=1e-5)


def test_without_patience_the_best_of_the_last_epochs_is_kept():
    structures, y = crystals(), np.random.default_rng(0).normal(size=(24, 1))
    model = CrysXPP.random(**SMALL)
    curve = train(model, structures, y, quick(max_epochs=10, patience=None, learning_rate=0.05))
    assert len(curve) == 10
    held_out = converter.convert_many(structures[18:])
    loss = (model.predict(held_out) - torch.from_numpy(y[18:])).abs().mean().item()
    assert loss == pytest.approx(curve["val_loss"][7:].min(), rel=1e-5)
    assert curve["val_loss"].argmin() < 7  # an earlier epoch was lucky
    assert curve["val_loss"][curve["kept"]].tolist() == [curve["val_loss"][7:].min()]


def test_frozen_epochs_leave_encoder_and_selector_alone():
    structures, y = crystals(), np.random.default_rng(0).normal(size=(24, 1))
    model = CrysXPP.random(**SMALL)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, structures, y, quick(max_epochs=2, frozen_epochs=2))
    for name, value in model.state_dict().items():
        same = torch.equal(value, before[name])
        assert same != name.startswith("readout"), name


def test_vectors_of_elements_start_when_the_selector_is_done():
    """What is learned until then is learned as without vectors, to the bit."""
    structures, y = crystals(), np.random.default_rng(0).normal(size=(24, 1))
    steps = {"max_epochs": 4, "sparsity": 0.02, "selector_rate": 0.02}
    selected, moved = [], []
    for start in (0.5, 0.75):
        model = CrysXPP.random(element_channel=True, **SMALL)
        torch.nn.init.zeros_(model.encoder.element_embedding.weight)
        seen = []
        watch = model.register_forward_hook(
            lambda network, *_, seen=seen: seen.append(
                (
                    network.selector.weight.detach().clone(),
                    network.encoder.element_embedding.weight.detach().clone(),
                )
            )
        )
        train(model, structures, y, quick(element_start=start, **steps))
        watch.remove()
        weights, vectors = (torch.stack(values) for values in zip(*seen, strict=True))
        begun = int((vectors != 0).flatten(1).any(dim=1).nonzero()[0])
        assert 0.4 * len(seen) < begun < 0.9 * len(seen)
        assert not vectors[:begun].any()
        assert torch.equal(weights[begun:], weights[begun].expand_as(weights[begun:]))
        assert not torch.equal(weights[0], weights[begun])
        selected.append(weights[:begun])
        moved.append(begun)
    assert moved[0] < moved[1]
    assert torch.equal(selected[0], selected[1][: moved[0]])
    plain = CrysXPP.random(element_channel=True, **SMALL)
    torch.nn.init.zeros_(plain.encoder.element_embedding.weight)
    frozen = quick(element_start=0.5, encoder_rate=0.0, **steps)
    train(plain, structures, y, frozen)
    assert not plain.encoder.element_embedding.weight.any()


def test_encoder_rate_of_zero_keeps_its_weights():
    structures, y = crystals(), np.random.default_rng(0).normal(size=(24, 1))
    model = CrysXPP.random(**SMALL)
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    train(model, structures, y, quick(encoder_rate=0.0, sparsity=0.0))
    after = model.encoder.state_dict()  # statistics of the batch norms included
    assert all(torch.equal(before[name], value) for name, value in after.items())
    assert not torch.equal(model.selector.weight, torch.ones(92))
    model = CrysXPP.random(**SMALL)
    train(model, structures, y, quick(selector_rate=0.0))
    assert torch.equal(model.selector.weight, torch.ones(92))


def test_unknown_labels_do_not_matter():
    structures, rng = crystals(), np.random.default_rng(0)
    y = rng.normal(size=(24, 2))
    y[rng.random((24, 2)) < 0.4] = np.nan
    y[0] = [0.0, np.nan]
    model = CrysXPP.random(n_targets=2, **SMALL)
    curve = train(model, structures, y, quick())
    assert np.isfinite(curve).all().all()
    assert torch.isfinite(weights(model)).all()


def test_classes_are_learned():
    structures = crystals(32)
    labels = np.array([int("O" in s.symbol_set) for s in structures])
    model = CrysXPP.random(n_targets=2, **SMALL)
    config = quick(max_epochs=15, learning_rate=0.02)
    train(model, structures, labels, config, objective=ClassificationObjective([1.0, 2.0]))
    found = model.predict(converter.convert_many(structures)).argmax(1).numpy()
    assert (found == labels).mean() > 0.9


def test_few_rows_are_passed_over_several_times():
    rows = np.arange(10)
    batches = training_batches(rows, CrysXPPFitOptions(max_epochs=10, min_steps=100), epoch=0)
    assert len(batches) == 10
    assert np.array_equal(np.sort(np.concatenate(batches[:5])), rows)
    other = training_batches(rows, CrysXPPFitOptions(max_epochs=10, min_steps=100), epoch=1)
    assert any(not np.array_equal(a, b) for a, b in zip(batches, other, strict=True))


def test_proximal_step_makes_exact_zeros():
    selector = FeatureSelector()
    with torch.no_grad():
        selector.weight[:3] = torch.tensor([0.5, 0.001, -0.5])
    other = nn.Parameter(torch.zeros(3))
    groups = [{"params": [selector.weight]}, {"params": [other], "lr": 1.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.9))
    optimizer.state[selector.weight] = {
        "exp_avg_sq": torch.full((92,), 1e-4) * 0.1,
        "step": torch.tensor(1.0),
    }
    selector.shrink(optimizer, sparsity=0.01)
    step = 0.01 * 0.01 / np.hypot(0.01, 0.01)  # rate * lambda / sqrt(v^2 + lambda^2)
    expected = torch.tensor([0.5 - step, 0.0, -0.5 + step], dtype=torch.float32)
    assert torch.allclose(selector.weight[:3], expected)
    assert selector.weight[1] == 0


def test_selector_finds_the_two_properties_that_matter():
    rng = np.random.default_rng(0)
    numbers = rng.integers(1, 84, size=(200, 2))
    cell = Lattice.cubic(3.5)
    structures = [Structure(cell, list(pair), [[0, 0, 0], [0.5] * 3]) for pair in numbers]
    graphs = converter.convert_many(structures)
    # Period (columns 19-25) and electronegativity (26-35) decide, nothing else does.
    slopes = np.zeros(92)
    slopes[19:36] = rng.normal(size=17)
    y = (feature_table()[numbers] @ slopes).sum(axis=1)
    y = ((y - y.mean()) / y.std())[:, None]
    model = CrysXPP.random(n_convs=1, **SMALL)
    config = quick(
        max_epochs=40, learning_rate=0.02, selector_rate=0.02, sparsity=0.05, batch_size=20
    )
    rows = np.arange(200)
    fit_model(model, graphs, y, RegressionObjective(), config, FitRows(rows, rows[:0]))
    weight = model.selector.weight.detach().abs().numpy()
    shares = {item.name: weight[item.start : item.stop].sum() / weight.sum() for item in PROPERTIES}
    best = sorted(shares, key=shares.get)[-2:]
    assert set(best) == {"period", "electronegativity"}, shares
    assert shares["period"] + shares["electronegativity"] > 0.8, shares
    assert (weight == 0).sum() > 60


def test_loss_that_is_not_finite_stops():
    structures, y = crystals(8), np.full((8, 1), 1e38)
    objective = RegressionObjective("mse")
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        train(CrysXPP.random(**SMALL), structures, y, quick(), objective=objective)


def test_rows_in_both_sets_and_no_rows_are_refused():
    structures, y = crystals(8), np.zeros((8, 1))
    rows = np.arange(8)
    with pytest.raises(DataError, match="in the training and in the validation set"):
        train(CrysXPP.random(**SMALL), structures, y, quick(), rows=FitRows(rows, rows[:2]))
    with pytest.raises(DataError, match="no crystals to learn from"):
        train(CrysXPP.random(**SMALL), structures, y, quick(), rows=FitRows(rows[:0], rows))


@pytest.mark.parametrize(
    "changes",
    [
        {"max_epochs": 0},
        {"max_epochs": 2.5},
        {"max_epochs": True},
        {"batch_size": 0},
        {"patience": 0},
        {"min_steps": -1},
        {"frozen_epochs": -1},
        {"seed": -1},
        {"learning_rate": 0.0},
        {"learning_rate": float("inf")},
        {"learning_rate": "fast"},
        {"gradient_clip": -1.0},
        {"encoder_rate": -0.1},
        {"selector_rate": float("nan")},
        {"weight_decay": float("nan")},
        {"sparsity": -1},
        {"sparsity": True},
        {"validation_fraction": 1.0},
        {"validation_fraction": -0.1},
        {"element_start": 1.0},
        {"element_start": -0.1},
        {"element_start": "late"},
    ],
)
def test_senseless_training_settings_are_named(changes):
    (name,) = changes
    with pytest.raises(SettingsError, match=f"^{name} must"):
        checked_options(CrysXPPFitOptions, CrysXPPFitOptions(), **changes)


def test_options_become_plain_numbers():
    options = CrysXPPFitOptions(max_epochs=np.int64(3), sparsity=np.float32(0.5))
    plain = checked_options(CrysXPPFitOptions, options, seed=np.int32(4))
    assert json.loads(json.dumps(asdict(plain))) == {
        **asdict(CrysXPPFitOptions()),
        "max_epochs": 3,
        "sparsity": 0.5,
        "seed": 4,
    }


def test_after_a_fit_the_forward_pass_has_received_dgl_graphs(monkeypatch):
    pytest.importorskip("dgl")
    monkeypatch.delenv("CRYSXPP_BACKEND", raising=False)
    import dgl

    structures, y = crystals(), np.random.default_rng(0).normal(size=(24, 1))
    model, seen = CrysXPP.random(**SMALL), []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    train(model, structures, y, quick(max_epochs=1))
    model.predict(converter.convert_many(structures))
    assert len(seen) > 3
    assert all(isinstance(graph, dgl.DGLGraph) for graph in seen)


def test_training_on_plain_tensors_gives_the_same_weights(monkeypatch):
    structures, y = crystals(), np.random.default_rng(0).normal(size=(24, 1))
    found = []
    for backend in ("auto", "torch"):
        monkeypatch.setenv("CRYSXPP_BACKEND", backend)
        model = CrysXPP.random(**SMALL)
        train(model, structures, y, quick(max_epochs=2))
        found.append(weights(model))
    assert torch.allclose(*found, rtol=1e-6)


def test_the_environment_changes_nothing_of_a_training(monkeypatch):
    structures, y = crystals(), np.random.default_rng(0).normal(size=(24, 1))
    expected = CrysXPP.random(**SMALL)
    train(expected, structures, y, quick())
    slurm = {"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0"}
    for name, value in {**slurm, "PL_TRAINER_MAX_STEPS": "1", "PL_TRAINER_DEVICES": "3"}.items():
        monkeypatch.setenv(name, value)
    model = CrysXPP.random(**SMALL)
    train(model, structures, y, quick())
    assert torch.equal(weights(model), weights(expected))


def test_training_works_where_gradients_are_off():
    structures, y = crystals(), np.random.default_rng(0).normal(size=(24, 1))
    expected, model = CrysXPP.random(**SMALL), CrysXPP.random(**SMALL)
    train(expected, structures, y, quick())
    with torch.no_grad():
        train(model, structures, y, quick())
    assert torch.equal(weights(model), weights(expected))
