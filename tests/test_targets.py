"""Pretext targets: what a structure implies, its file, and the head that predicts it."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import (
    make_copper,
    make_disordered,
    make_isolated_atom,
    make_nacl,
    make_partial_occupancy,
    make_perovskite,
    make_silicon,
    make_structures,
)
from pymatgen.core import Lattice, Structure
from typer.testing import CliRunner

from crysxpp_mm.cli import app
from crysxpp_mm.data.store import build_store
from crysxpp_mm.data.targets import TargetTable, compute_targets
from crysxpp_mm.errors import DataError, MissingDependencyError, SettingsError
from crysxpp_mm.graph import targets as registry
from crysxpp_mm.graph.targets import (
    ANGLE_NEIGHBORS,
    CUTOFF,
    SITE_FINGERPRINT,
    TARGETS,
    crystal_targets,
    find_targets,
    nearest_shares,
    site_targets,
    surroundings,
)
from crysxpp_mm.losses import target_loss
from crysxpp_mm.model_zoo import load_model
from crysxpp_mm.models.crysae import CrysAE
from crysxpp_mm.models.targets import LIMIT, TargetHead, TargetValues
from crysxpp_mm.release.autoencoder import model_card, write_release
from crysxpp_mm.training.batches import EpochOfBatches
from crysxpp_mm.training.config import PretrainConfig
from crysxpp_mm.training.pretrain import pretrain, split_crystals
from crysxpp_mm.training.start import weights_digest

ALL = tuple(TARGETS)
CRYSTALS = tuple(name for name in ALL if TARGETS[name].of == "crystal")
TINY = PretrainConfig(
    hidden_dim=8,
    n_convs=2,
    batch_size=6,
    max_epochs=3,
    validation_fraction=0.25,
    seed=3,
    targets=("distances", "valence sum", "density"),
)


def column(structure: Structure, name: str) -> np.ndarray:
    return site_targets(surroundings(structure), [name])


def low_symmetry() -> Structure:
    rng = np.random.default_rng(4)
    lattice = Lattice.from_parameters(4.1, 5.3, 6.2, 81, 97, 105)
    return Structure(lattice, ["Li", "Fe", "O", "O", "P"], rng.random((5, 3)))


@pytest.mark.parametrize("make", [make_perovskite, make_copper, make_disordered, low_symmetry])
def test_targets_do_not_depend_on_the_description_of_a_crystal(make):
    crystal = make()
    around = surroundings(crystal)
    sites, whole = site_targets(around, SITE_FINGERPRINT), crystal_targets(around, CRYSTALS)

    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turned = Structure(
        Lattice(crystal.lattice.matrix @ rotation), crystal.species_and_occu, crystal.frac_coords
    )
    turned.translate_sites(range(len(turned)), [0.31, 0.47, 0.77])
    order = np.random.default_rng(1).permutation(len(crystal))
    shuffled = Structure.from_sites([crystal[i] for i in order])
    skewed = Structure(
        Lattice([[1, 0, 0], [1, 1, 0], [2, -1, 1]] @ crystal.lattice.matrix),
        crystal.species_and_occu,
        crystal.cart_coords,
        coords_are_cartesian=True,
    )
    for other, expected in ((turned, sites), (shuffled, sites[order]), (skewed, sites)):
        found = surroundings(other)
        assert np.allclose(site_targets(found, SITE_FINGERPRINT), expected, atol=1e-7)
        assert np.allclose(crystal_targets(found, CRYSTALS), whole, atol=1e-9)

    large = crystal * (2, 1, 3)
    found = surroundings(large)
    assert np.allclose(site_targets(found, SITE_FINGERPRINT), np.repeat(sites, 6, axis=0))
    assert np.allclose(crystal_targets(found, CRYSTALS), whole)


def test_targets_are_the_same_every_time():
    first, again = (site_targets(surroundings(low_symmetry()), SITE_FINGERPRINT) for _ in range(2))
    assert np.array_equal(first, again)
    assert first.shape == (5, 76)


def test_neighbors_are_those_of_pymatgen():
    crystal = low_symmetry()
    around = surroundings(crystal)
    for site, start, end in zip(range(5), around.offsets[:-1], around.offsets[1:], strict=True):
        expected = sorted(n.nn_distance for n in crystal.get_neighbors(crystal[site], CUTOFF))
        assert np.allclose(around.distances[start:end], expected)
    assert np.allclose(np.linalg.norm(around.vectors, axis=1), around.distances)


def test_numbers_of_rock_salt_are_what_the_definitions_say():
    crystal = make_nacl()
    numbers = [site.specie.Z for site in crystal]
    radii = registry.element_numbers()[numbers, 2]
    assert np.allclose(column(crystal, "nearest distance"), 2.82)
    assert np.allclose(column(crystal, "nearest distance over radii"), 2.82 / radii.sum())
    assert np.allclose(
        column(crystal, "mass")[:, 0], [{11: 22.98976928, 17: 35.453}[z] for z in numbers]
    )
    around = surroundings(crystal)
    outer = np.clip(around.distances - (CUTOFF - 1), 0, 1)
    ends = radii[around.centers] + radii[around.neighbors]
    bonds = np.exp((ends - around.distances) / 0.37) * 0.5 * (1 + np.cos(np.pi * outer))
    sums = [bonds[around.centers == site].sum() for site in (0, 1)]
    assert np.allclose(column(crystal, "valence sum")[:, 0], sums)
    volume, density, packing = crystal_targets(around, CRYSTALS)
    assert volume == pytest.approx(crystal.volume / 2)
    assert density * 1.66053907 == pytest.approx(float(crystal.density), rel=1e-6)
    assert packing == pytest.approx(4 / 3 * np.pi * (radii**3).sum() / crystal.volume)


def test_weighted_distances_are_sums_over_the_neighbors():
    crystal = make_nacl()
    plain, weighted = column(crystal, "distances"), column(crystal, "distances, mass")
    around = surroundings(crystal)
    assert (plain > 0).all()
    mass = around.sites.mass
    gaussians = (
        np.exp(
            -0.5 * ((around.distances[:, None] - registry.DISTANCES) / registry.DISTANCE_WIDTH) ** 2
        )
        * around.fade[:, None]
    )
    of_first = around.centers == 0
    assert np.allclose(plain[0], gaussians[of_first].sum(0))
    assert np.allclose(weighted[0], (gaussians * mass[around.neighbors][:, None])[of_first].sum(0))


def test_a_shell_of_equal_distances_shares_the_last_places():
    around = surroundings(make_copper())  # shells of 12, 6 and 24 neighbours
    shares = nearest_shares(around)
    assert shares.sum() == pytest.approx(ANGLE_NEIGHBORS)
    assert np.allclose(shares[:12], 1)
    assert np.allclose(shares[12:18], 2 / 6)
    assert not shares[18:].any()


def test_angles_of_silicon_peak_at_the_tetrahedron():
    crystal = make_silicon()
    crystal.scale_lattice(crystal.volume * 5)  # so that the first shell alone is near
    cosines = column(crystal, "angles")[0]
    assert abs(registry.COSINES[cosines.argmax()] + 1 / 3) < 0.12


def test_lone_and_vacant_sites_have_finite_targets():
    for crystal in (make_isolated_atom(), make_partial_occupancy()):
        around = surroundings(crystal)
        assert np.isfinite(site_targets(around, SITE_FINGERPRINT)).all()
        assert np.isfinite(crystal_targets(around, CRYSTALS)).all()
    assert not site_targets(surroundings(make_isolated_atom()), SITE_FINGERPRINT[:7]).any()
    iron = column(make_partial_occupancy(), "mass")[0, 0]
    assert iron == pytest.approx(55.845)  # the mean over what is there


def test_unknown_and_repeated_targets_are_refused():
    with pytest.raises(SettingsError, match="no pretext target 'energy'; there are distances"):
        find_targets(["energy"], "site")
    with pytest.raises(SettingsError, match="'mass' is named twice"):
        find_targets(["mass", "mass"], "crystal")


def test_without_numba_the_remedy_is_named(monkeypatch):
    registry.compiled_loops.cache_clear()
    monkeypatch.setitem(sys.modules, "crysxpp_mm.graph.target_kernels", None)
    monkeypatch.delattr("crysxpp_mm.graph.target_kernels", raising=False)
    try:
        with pytest.raises(MissingDependencyError, match="pip install numba"):
            surroundings(make_nacl())
    finally:
        registry.compiled_loops.cache_clear()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "tiny.graphs"
    return build_store(make_structures() * 3, path, pbar=False)


@pytest.fixture(scope="module")
def table(store):
    return compute_targets(make_structures() * 3, store, TINY.targets, pbar=False)


def test_a_table_holds_the_targets_of_every_site(store, table):
    assert table.sites.shape == (store.graphs.atom_offsets[-1], 11)
    assert table.crystals.shape == (len(store), 1)
    part = table.select(store.graphs, np.array([3, 1]))
    for place, row in enumerate((3, 1)):
        around = surroundings(make_structures()[row])
        assert part.crystals[place] == pytest.approx(crystal_targets(around, ["density"]))
    sites = [site_targets(surroundings(make_structures()[row]), TINY.targets) for row in (3, 1)]
    assert np.allclose(part.sites, np.concatenate(sites), rtol=1e-6)


def test_a_table_is_read_back_and_damage_is_named(tmp_path, table):
    path = tmp_path / "tiny.targets.npz"
    table.save(path)
    again = TargetTable.load(path)
    assert again.names == table.names
    assert again.data_hash == table.data_hash
    assert np.array_equal(again.sites, table.sites)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"tiny\.targets\.npz holds no pretext targets"):
        TargetTable.load(path)
    with pytest.raises(DataError, match="absent"):
        TargetTable.load(tmp_path / "absent.npz")


def test_a_source_of_other_crystals_is_refused(store):
    crystals = make_structures() * 3
    with pytest.raises(DataError, match="the source has no crystal"):
        compute_targets(crystals[:-1], store, ["mass"], pbar=False)
    with pytest.raises(DataError, match="the graph store has no crystal '24'"):
        compute_targets([*crystals, make_nacl()], store, ["mass"], pbar=False)
    with pytest.raises(DataError, match="another number of sites"):
        compute_targets([crystals[0] * (2, 1, 1), *crystals[1:]], store, ["mass"], pbar=False)


def test_what_was_left_out_of_the_store_is_left_out_here(tmp_path):
    crystals = [make_nacl(), Structure(Lattice.cubic(1e-3), ["Na"], [[0, 0, 0]]), make_copper()]
    store = build_store(crystals, tmp_path / "some.graphs", ignore_errors=True, pbar=False)
    table = compute_targets(crystals, store, ["mass", "packing"], pbar=False)
    assert table.crystals.shape == (2, 1)
    assert table.sites[-1, 0] == pytest.approx(63.546)


def run(out, store, table, config=TINY) -> CrysAE:
    return pretrain(store.graphs, config, out, data_hash=store.data_hash, targets=table, pbar=False)


def test_targets_are_learned_and_kept_with_the_model(tmp_path, store, table):
    config = dataclasses.replace(TINY, max_epochs=30, validation_fraction=0.0, target_weight=5.0)
    model = run(tmp_path / "run", store, table, config)
    curves = pd.read_csv(tmp_path / "run/curves.csv")
    assert curves["train_targets"].iloc[-1] < 0.5 * curves["train_targets"].iloc[0]
    total = curves.filter(regex="^train_(?!total|targets)").sum(axis=1)
    weighted = total + 5 * curves["train_targets"]
    assert np.allclose(curves["train_total"], weighted, rtol=1e-4)

    again = CrysAE.load(tmp_path / "run/model.json.gz")
    assert again.settings["targets"] == list(TINY.targets)
    assert all(
        torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items()
    )
    head = again.target_head
    assert head is not None
    assert torch.allclose(head.sites.mean, torch.from_numpy(table.sites).mean(0), rtol=1e-4)


def test_the_scale_is_that_of_the_training_crystals(tmp_path, store, table):
    model = run(tmp_path, store, table)
    train, validation = split_crystals(len(store), TINY)
    assert len(validation)
    of_train = torch.from_numpy(table.select(store.graphs, train).sites)
    assert model.target_head is not None
    assert torch.allclose(model.target_head.sites.mean, of_train.mean(0), rtol=1e-4)
    measured = model.metadata["results"]["targets"]
    assert set(measured) == set(TINY.targets)
    assert all(value >= 0 for value in measured.values())


def test_batches_bring_the_targets_of_their_crystals(store, table):
    config = dataclasses.replace(TINY, max_epochs=1)
    epoch = EpochOfBatches(
        store.graphs, np.arange(len(store)), config, epoch=0, shuffle=True, targets=table
    )
    for number, chosen in enumerate(epoch.batches):
        targets = epoch[number].targets
        assert targets is not None
        assert np.array_equal(targets.crystals.numpy(), table.crystals[chosen])
        assert len(targets.sites) == epoch[number].graph.num_nodes()


def test_pretraining_refuses_targets_that_do_not_fit(tmp_path, store, table):
    with pytest.raises(DataError, match="name pretext targets, but none are given"):
        run(tmp_path, store, None)
    with pytest.raises(DataError, match="the settings name distances"):
        run(tmp_path, store, table, dataclasses.replace(TINY, targets=("distances",)))
    other = dataclasses.replace(table, data_hash="1" * 64)
    with pytest.raises(DataError, match="of other crystals"):
        run(tmp_path, store, other)


def test_standardized_targets_are_clipped_and_constant_ones_stay_finite():
    head = TargetHead(hidden_dim=4, targets=["mass", "packing"])
    values = TargetValues(torch.tensor([[1.0], [3.0], [2.0]]), torch.tensor([[0.7], [0.7]]))
    head.fit_scale(values)
    far = head.standardize(TargetValues(torch.tensor([[1e6]]), torch.tensor([[0.7]])))
    assert far.sites.item() == LIMIT
    assert far.crystals.item() == pytest.approx(0)
    with pytest.raises(DataError, match="2 columns where the model predicts 1"):
        head.fit_scale(TargetValues(torch.zeros(3, 2), torch.zeros(2, 1)))


def test_the_loss_is_the_mean_square_of_sites_and_of_crystals():
    zeros = TargetValues(torch.zeros(2, 2), torch.zeros(2, 0))
    ones = TargetValues(torch.tensor([[1.0, 1], [1, 3]]), torch.zeros(2, 0))
    assert target_loss(zeros, ones) == 3
    both = TargetValues(ones.sites, torch.full((2, 1), 2.0))
    assert target_loss(TargetValues(zeros.sites, torch.zeros(2, 1)), both) == 7


def test_models_without_targets_are_as_they_were():
    model = load_model("crysae-mp-v1")
    assert model.target_head is None
    assert "targets" not in model.settings
    assert not [name for name in model.state_dict() if "target" in name]
    plain = PretrainConfig().to_plain()
    assert "targets" not in plain
    assert "target_weight" not in plain
    one, other = (CrysAE.random(seed=1, hidden_dim=8, targets=t) for t in ((), ("mass",)))
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


def test_settings_of_targets_are_checked_and_read_from_files(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("targets: [mass, packing]\ntarget_weight: 3\n")
    config = PretrainConfig.from_file(path)
    assert config.targets == ("mass", "packing")
    assert PretrainConfig.from_dict(config.as_dict()) == config
    assert config.to_plain()["targets"] == ["mass", "packing"]
    assert config.model_settings["targets"] == ("mass", "packing")
    with pytest.raises(SettingsError, match="targets must be a list of names, got 'mass'"):
        PretrainConfig(targets="mass")
    with pytest.raises(SettingsError, match="no pretext target 'energy'"):
        PretrainConfig(targets=("energy",))
    with pytest.raises(SettingsError, match="target_weight must be positive"):
        PretrainConfig(target_weight=0)


def test_the_command_computes_the_targets_it_needs(tmp_path):
    folder = tmp_path / "crystals"
    folder.mkdir()
    for number, crystal in enumerate(make_structures()[:4]):
        crystal.to(filename=str(folder / f"c{number}.json"))
    settings = tmp_path / "small.yaml"
    settings.write_text(
        "hidden_dim: 4\nn_convs: 1\nmax_epochs: 1\nvalidation_fraction: 0\ntargets: [mass]\n"
    )
    out = tmp_path / "run"
    command = ["pretrain", str(folder), "--config", str(settings), "--out", str(out)]
    runner = CliRunner()
    result = runner.invoke(app, command)
    assert result.exit_code == 0, result.output
    assert (out / "data.targets.npz").is_file()
    assert CrysAE.load(out / "model.json.gz").settings["targets"] == ["mass"]

    graphs = tmp_path / "alone.graphs"
    graphs.write_bytes((out / "data.graphs").read_bytes())
    command = ["pretrain", str(graphs), "--config", str(settings), "--out", str(tmp_path / "b")]
    result = runner.invoke(app, command)
    assert result.exit_code == 1
    assert "alone.targets.npz is absent" in result.output
    (tmp_path / "alone.targets.npz").write_bytes((out / "data.targets.npz").read_bytes())
    assert runner.invoke(app, command).exit_code == 0


def test_the_card_tells_of_targets_start_and_columns(tmp_path, store, table):
    first = run(tmp_path / "first", store, table)
    pretrain(
        store.graphs,
        dataclasses.replace(TINY, max_epochs=1),
        tmp_path / "run",
        data_hash=store.data_hash,
        targets=table,
        start=first,
        pbar=False,
    )
    columns = pd.DataFrame({"this": [0.03125, 0.5], "other": [np.nan, 0.25]}, index=["K", "gap"])
    folder = write_release(
        tmp_path / "run", tmp_path / "x", title="A test", summary="Small.", columns=columns
    )
    card = (folder / "README.md").read_text()
    for part in (
        f"| starts from | weights with the sha256 `{weights_digest(first)}` |",
        "| valence sum, share of the variance not predicted | ",
        "| target | this | other |\n|---|---|---|\n| K | 0.03125 |  |\n| gap | 0.5 | 0.25 |\n",
        "| 0.25 |\n\n## Limits",
    ):
        assert part in card, part
    model = CrysAE.load(folder / "model.json.gz")
    curves = pd.read_csv(folder / "curves.csv")
    assert model_card("x", model, curves, "Small.") == card


def test_a_run_starts_from_the_weights_of_another(tmp_path, store, table):
    first = run(tmp_path / "first", store, table)
    short = dataclasses.replace(TINY, max_epochs=1, learning_rate=1e-9)
    options = {"data_hash": store.data_hash, "targets": table, "pbar": False}
    again = pretrain(store.graphs, short, tmp_path / "again", start=first, **options)
    for name, value in first.named_parameters():
        assert torch.allclose(value, again.get_parameter(name), atol=1e-6)
    assert again.metadata["start"] == weights_digest(first)
    with pytest.raises(SettingsError, match="another run"):
        pretrain(store.graphs, short, tmp_path / "again", start=again, **options)
    wider = CrysAE.random(hidden_dim=4, n_convs=2, normalize=True, targets=TINY.targets)
    with pytest.raises(SettingsError, match="differs in hidden_dim; choose the settings"):
        pretrain(store.graphs, short, tmp_path / "wider", start=wider, **options)
    with pytest.raises(SettingsError, match="only a CrysAE can be started from, not a Linear"):
        weights_digest(torch.nn.Linear(1, 1))
