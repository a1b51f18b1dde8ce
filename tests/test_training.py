"""Pretraining: what is drawn, what resumes, what is refused, and what is shipped."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_nacl, make_perovskite, make_silicon, make_structures

from crysxpp_mm.errors import DataError, SettingsError
from crysxpp_mm.graph.batch import ATOM_FEATURES, DISTANCE
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.losses import LossWeights
from crysxpp_mm.model_zoo import load_model
from crysxpp_mm.models.crysae import CrysAE
from crysxpp_mm.release.autoencoder import golden_outputs, model_card, write_release
from crysxpp_mm.training.batches import EpochOfBatches, hidden_atoms, pretrain_batch
from crysxpp_mm.training.config import PretrainConfig
from crysxpp_mm.training.pretrain import PretrainModule, pretrain, split_crystals
from crysxpp_mm.training.reconstruction import measure_reconstruction

GRAPHS = CrystalGraphConverter().convert_many(make_structures() * 3)
TINY = PretrainConfig(
    hidden_dim=8, n_convs=2, batch_size=6, max_epochs=4, validation_fraction=0.25, seed=3
)


def run(out: Path, config: PretrainConfig = TINY, **options) -> CrysAE:
    return pretrain(GRAPHS, config, out, data_hash="0" * 64, pbar=False, **options)


def weights(model: CrysAE) -> torch.Tensor:
    return torch.cat([value.double().reshape(-1) for value in model.state_dict().values()])


def test_split_is_disjoint_and_whole_and_the_seed_decides():
    train, validation = split_crystals(24, TINY)
    assert len(validation) == 6
    assert sorted([*train, *validation]) == list(range(24))
    other, _ = split_crystals(24, dataclasses.replace(TINY, seed=4))
    assert not np.array_equal(train, other)


def test_an_epoch_holds_every_crystal_once_and_is_repeatable():
    indices = np.arange(5, 23)
    epochs = [EpochOfBatches(GRAPHS, indices, TINY, epoch=e, shuffle=True) for e in (0, 0, 1)]
    drawn = [np.concatenate(epoch.batches) for epoch in epochs]
    assert all(np.array_equal(np.sort(order), indices) for order in drawn)
    assert np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])
    first, again = epochs[0][1], epochs[1][1]
    assert torch.equal(first.graph.ndata[ATOM_FEATURES], again.graph.ndata[ATOM_FEATURES])


def test_a_large_set_takes_several_epochs():
    config = dataclasses.replace(TINY, max_epoch_crystals=10)
    parts = [EpochOfBatches(GRAPHS, np.arange(24), config, epoch=e, shuffle=True) for e in range(3)]
    drawn = [np.concatenate(part.batches) for part in parts]
    assert all(len(order) <= 10 for order in drawn)
    assert sorted(np.concatenate(drawn)) == list(range(24))


def test_hidden_atoms_are_hidden_from_the_encoder_alone():
    config = dataclasses.replace(TINY, masked=1.0, mask_fraction=0.5)
    batch = pretrain_batch(GRAPHS, config, np.random.default_rng(0))
    assert 0.2 < batch.hidden.float().mean() < 0.8
    seen = batch.graph.ndata[ATOM_FEATURES]
    assert (seen[batch.hidden] == 0).all()
    assert torch.equal(seen[~batch.hidden], batch.features[~batch.hidden])
    assert (batch.features[batch.hidden].sum(1) > 0).any()


def test_one_element_of_a_crystal_is_hidden_whole():
    config = dataclasses.replace(TINY, masked=1.0, mask_species=1.0)
    graphs = CrystalGraphConverter().convert_many([make_perovskite(), make_nacl()])
    for seed in range(5):
        hidden = hidden_atoms(graphs, config, np.random.default_rng(seed))
        assert hidden[:5].tolist() in (
            [True, False, False, False, False],
            [False, True, False, False, False],
            [False, False, True, True, True],
        )


def test_strain_scales_all_bonds_of_a_crystal_alike_and_the_true_lengths_are_rebuilt():
    config = dataclasses.replace(TINY, strain=0.1, strained=1.0)
    batch = pretrain_batch(GRAPHS, config, np.random.default_rng(0))
    assert torch.equal(batch.distances, torch.from_numpy(GRAPHS.distances))
    ratios = (batch.graph.edata[DISTANCE] / batch.distances).split(GRAPHS.n_bonds.tolist())
    ratios = [ratio for ratio in ratios if len(ratio)]
    assert all(torch.allclose(ratio, ratio[0]) for ratio in ratios)
    assert len({round(float(ratio[0]), 4) for ratio in ratios}) > 10


def test_training_lowers_the_loss_and_leaves_a_record(tmp_path):
    model = run(tmp_path)
    curves = pd.read_csv(tmp_path / "curves.csv")
    assert curves["train_total"].iloc[-1] < curves["train_total"].iloc[0]
    terms = [f"val_{term}" for term in ("total", *LossWeights.__dataclass_fields__)]
    assert np.isfinite(curves[terms].to_numpy()).all()
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["config"]["seed"] == 3
    assert record["data_hash"] == "0" * 64
    assert {"version", "n_train", "n_validation"} <= set(record)
    assert record["results"]["reconstruction"]["bond_length_mae"] >= 0
    assert not model.training
    assert torch.equal(weights(load_model(tmp_path / "model.json.gz")), weights(model))


def test_the_best_epoch_is_kept(tmp_path):
    run(tmp_path)
    record = json.loads((tmp_path / "run.json").read_text())["results"]
    losses = pd.read_csv(tmp_path / "curves.csv")["val_total"]
    assert record["best_epoch"] == int(losses.argmin())
    assert record["best_loss"] == pytest.approx(losses.min())


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
from test_training import TINY, run
from pathlib import Path
run(Path(sys.argv[1]))
"""


def test_a_killed_run_goes_on_and_ends_with_the_same_weights(tmp_path):
    whole = run(tmp_path / "whole")
    script = [sys.executable, "-c", SCRIPT, str(tmp_path / "cut"), str(Path(__file__).parent)]
    child = subprocess.Popen(script, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    checkpoint = tmp_path / "cut" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert child.poll() is None, "the run ended before its first checkpoint"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert "results" not in json.loads((tmp_path / "cut" / "run.json").read_text())
    resumed = run(tmp_path / "cut")
    assert torch.equal(weights(resumed), weights(whole))
    curves = [pd.read_csv(tmp_path / name / "curves.csv") for name in ("whole", "cut")]
    pd.testing.assert_frame_equal(*curves)


def test_weights_do_not_depend_on_the_threads_of_the_process(tmp_path):
    before = torch.get_num_threads()
    try:
        learned = []
        for count in (1, 2):
            torch.set_num_threads(count)
            learned.append(weights(run(tmp_path / str(count))))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*learned)


def test_time_ends_a_run_that_then_goes_on(tmp_path):
    run(tmp_path / "cut", max_minutes=1e-9)
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["results"]["epochs"] == 1
    whole, resumed = run(tmp_path / "whole"), run(tmp_path / "cut")
    assert torch.equal(weights(resumed), weights(whole))
    with pytest.raises(SettingsError, match="max_minutes must be positive"):
        run(tmp_path / "none", max_minutes=0)


def test_a_plateau_ends_the_run(tmp_path):
    config = dataclasses.replace(TINY, max_epochs=50, patience=2, learning_rate=1e-9)
    run(tmp_path, dataclasses.replace(config, schedule="constant", batch_size=24))
    assert len(pd.read_csv(tmp_path / "curves.csv")) < 50


def test_training_without_validation_watches_the_training_loss(tmp_path):
    run(tmp_path, dataclasses.replace(TINY, validation_fraction=0.0, max_epochs=2))
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["n_validation"] == 0
    assert "reconstruction" not in record["results"]


def test_terms_that_are_off_do_not_train_their_heads(tmp_path):
    config = dataclasses.replace(
        TINY, loss_weights=LossWeights.local_only(), max_epochs=2, weight_decay=0.0
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        before = CrysAE(**config.model_settings)
    after = run(tmp_path, config)
    assert torch.equal(before.decoder.existence_weight, after.decoder.existence_weight)
    assert not torch.equal(before.decoder.pair_weight, after.decoder.pair_weight)


def test_another_run_in_the_folder_is_refused(tmp_path):
    run(tmp_path, dataclasses.replace(TINY, max_epochs=1))
    with pytest.raises(SettingsError, match=r"holds another run \(differing: config\)"):
        run(tmp_path, dataclasses.replace(TINY, max_epochs=2))


def test_too_few_crystals_are_refused(tmp_path):
    with pytest.raises(DataError, match="at least two crystals, got 1"):
        pretrain(GRAPHS.select([0]), TINY, tmp_path, data_hash="")


def test_a_loss_that_is_not_finite_is_named():
    model = CrysAE.random(hidden_dim=4, n_convs=1)
    module = PretrainModule(model, TINY, steps=1)
    with torch.no_grad():
        model.encoder.embedding.weight.fill_(float("nan"))
    batch = pretrain_batch(GRAPHS, TINY, np.random.default_rng(0))
    with pytest.raises(FloatingPointError, match="not finite in epoch 0, batch 7"):
        module.training_step(batch, 7)


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 0},
        {"max_epochs": 0},
        {"masked": 1.5},
        {"mask_fraction": -0.1},
        {"validation_fraction": 1.0},
        {"strain": 0.9},
        {"learning_rate": 0.0},
        {"gradient_clip": -1.0},
        {"schedule": "cosine"},
        {"hidden_dim": "x"},
        {"n_convs": 1.5},
        {"seed": -1},
        {"strained": "no"},
        {"weight_decay": -0.1},
        {"element_channel": 1},
        {"loss_weights": 3},
    ],
)
def test_senseless_settings_are_refused(settings):
    with pytest.raises(SettingsError, match=next(iter(settings))):
        PretrainConfig(**settings)


def test_settings_come_from_files_and_go_into_dictionaries(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("seed: 7\nloss_weights:\n  existence: 0\n")
    config = PretrainConfig.from_file(path)
    assert config == PretrainConfig(seed=7, loss_weights=LossWeights(existence=0))
    assert PretrainConfig.from_dict(config.as_dict()) == config
    (tmp_path / "empty.yaml").write_text("")
    assert PretrainConfig.from_file(tmp_path / "empty.yaml") == PretrainConfig()
    for text, message in (
        ("sed: 7", "unknown settings: sed"),
        ("- 7", "must map names"),
        ("loss_weights: {bonds: 1}", "bonds"),
        ("a: [", "cannot be read"),
    ):
        path.write_text(text)
        with pytest.raises(SettingsError, match=message):
            PretrainConfig.from_file(path)
    with pytest.raises(SettingsError, match="cannot be read"):
        PretrainConfig.from_file(tmp_path / "absent.yaml")


def test_published_settings_are_those_of_the_article():
    config = PretrainConfig.published()
    assert (config.batch_size, config.max_epochs, config.learning_rate) == (512, 200, 0.003)
    assert (config.hidden_dim, config.n_convs, config.masked) == (64, 3, 0.0)


def test_reconstruction_is_perfect_where_the_decoder_is():
    class Oracle(CrysAE):
        def forward(self, graph, pairs):
            rebuilt = super().forward(graph, pairs)
            return rebuilt._replace(
                atom_features=graph.ndata[ATOM_FEATURES],
                existence=pairs.bonded.float() - 0.5,
                bond_lengths=graph.edata[DISTANCE],
            )

    model = Oracle.random(hidden_dim=4, n_convs=1)
    perfect = measure_reconstruction(model, GRAPHS)
    assert perfect["bond_existence_accuracy"] == 1
    assert perfect["bond_length_mae"] == 0
    assert set(perfect["atom_feature_accuracy"].values()) == {1.0}
    plain = measure_reconstruction(CrysAE.random(hidden_dim=4, n_convs=1), GRAPHS)
    assert plain["bond_length_mae"] > 0
    assert min(plain["atom_feature_accuracy"].values()) < 0.5


def test_a_finished_run_becomes_a_folder_to_ship(tmp_path):
    model = run(
        tmp_path / "run", dataclasses.replace(TINY, max_epochs=2), description="24 crystals"
    )
    folder = write_release(
        tmp_path / "run", tmp_path / "crysae-x", title="A test", summary="Small."
    )
    card = (folder / "README.md").read_text()
    for part in ("# crysae-x", "A test.", "24 crystals", "0" * 64, "bond length", "18 / 6"):
        assert part in card
    assert PretrainConfig.from_file(folder / "settings.json") == dataclasses.replace(
        TINY, max_epochs=2
    )
    shipped = CrysAE.load(folder / "model.json.gz")
    assert shipped.metadata["description"] == "A test"
    golden = json.loads((folder / "golden.json").read_text())["embeddings"]
    assert golden == golden_outputs(model)
    assert len(golden) == 3
    shipped.metadata["results"]["reconstruction"]["unbonded_accuracy"] = None  # no such pair
    card = model_card("x", shipped, pd.read_csv(folder / "curves.csv"), "Small.")
    assert "... on bonded pairs" in card
    assert "... on pairs without a bond" not in card
    with pytest.raises(DataError, match="no folder of a pretraining"):
        write_release(tmp_path, tmp_path / "y", title="", summary="")
    model.metadata.pop("results")
    model.save(tmp_path / "run" / "model.json.gz")
    with pytest.raises(SettingsError, match="has not ended"):
        write_release(tmp_path / "run", tmp_path / "z", title="", summary="")


def test_loader_workers_change_nothing(tmp_path):
    config = dataclasses.replace(TINY, max_epochs=1)
    plain, helped = run(tmp_path / "a", config), run(tmp_path / "b", config, num_workers=1)
    assert torch.equal(weights(plain), weights(helped))


def test_element_channel_is_trained_where_it_is_asked_for(tmp_path):
    config = dataclasses.replace(TINY, max_epochs=1, element_channel=True)
    model = run(tmp_path, config)
    assert model.encoder.element_embedding.weight.abs().max() > 0
    graphs = model.converter.convert_many([make_silicon()])
    assert len(model.node_embeddings(graphs)) == 3
