"""CrysAEFeaturizer and the batched base under it: matminer's contract and our own promises."""

from __future__ import annotations

import io
import json
import logging
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import needs_dgl
from matminer.featurizers.base import MultipleFeaturizer
from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY
from pymatgen.core import Composition, DummySpecies, Element, Lattice, Species, Structure
from pymatgen.core.operations import SymmOp
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import Ridge
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from crysxpp_mm import compute, parallel
from crysxpp_mm.compute import one_torch_thread
from crysxpp_mm.errors import (
    DataError,
    NetworkOutputError,
    SettingsError,
    StructureError,
    StructureTypeError,
    UnknownElementError,
    UnknownModelError,
)
from crysxpp_mm.featurizers import CrysAEFeaturizer, base
from crysxpp_mm.graph.converter import CrystalGraphConverter, read_crystal
from crysxpp_mm.models.crysae import CrysAE

BAD = {  # by the name in conftest: the type, and what the message says
    "None": (StructureTypeError, "got None"),
    "NaN coordinate": (StructureError, "site 0 are NaN"),
    "infinite coordinate": (StructureError, "site 0 are NaN or infinite"),
    "no volume": (StructureError, "volume"),
    "dummy species": (UnknownElementError, "site 0 holds X"),
    "lawrencium": (UnknownElementError, "site 0 holds Lr"),
    "molecule": (StructureTypeError, "Molecule"),
    "composition": (StructureTypeError, "Composition"),
    "string": (StructureTypeError, "str"),
    "no sites": (StructureError, "no sites"),
    "one place": (StructureError, "sites 0 and 1 are in one place"),
    "foreign dictionary": (StructureTypeError, "'formula'"),
}


@pytest.fixture
def featurizer(crysae: CrysAE) -> CrysAEFeaturizer:
    return CrysAEFeaturizer(crysae)


def assert_rows(actual: Any, expected: Any, tolerance: float = 1e-6) -> None:
    """Equal to ``tolerance``, relative to the norm of a row."""
    actual = np.atleast_2d(np.array(actual, dtype=float))
    expected = np.atleast_2d(np.array(expected, dtype=float))
    assert actual.shape == expected.shape
    assert (np.isnan(actual) == np.isnan(expected)).all()
    scale = np.linalg.norm(np.nan_to_num(expected), axis=1)
    assert (np.linalg.norm(np.nan_to_num(actual - expected), axis=1) <= tolerance * scale).all()


class ConvertingFails(Structure):
    """A structure at which the converter fails in a way that it does not foresee."""

    error: BaseException = RuntimeError("the disk is full")

    @property
    def sites(self) -> Any:
        raise self.error

    def __len__(self) -> int:
        return 1


def failing(error: BaseException) -> ConvertingFails:
    structure = object.__new__(ConvertingFails)
    structure.error = error
    return structure


class SwitchedCrysAE(CrysAE):
    """A model that does something before it embeds."""

    before: Callable[[Any], None] = staticmethod(lambda graph: None)

    def node_embeddings(self, graphs: Any) -> list[torch.Tensor]:
        self.before(graphs)
        return super().node_embeddings(graphs)


# Columns and settings.


def test_columns_say_what_they_are(featurizer):
    labels = featurizer.feature_labels()
    assert len(labels) == 4 * 3 * 64
    assert labels[:2] == ["CrysAE L0 mean 0", "CrysAE L0 mean 1"]
    assert labels[64] == "CrysAE L0 std 0"
    assert labels[-1] == "CrysAE L3 max 63"
    assert "CrysAE L2 mean 17" in labels
    assert featurizer.feature_labels() is not labels


def test_a_row_is_a_list_of_floats(featurizer, nacl):
    for row in (featurizer.featurize(nacl), featurizer.featurize_many([nacl], pbar=False)[0]):
        assert isinstance(row, list)
        assert {type(value) for value in row} == {float}
        assert len(row) == len(featurizer.feature_labels())


def test_the_shipped_model_is_the_default(structures):
    table = CrysAEFeaturizer().featurize_dataframe(
        pd.DataFrame({"structure": structures}), "structure", pbar=False
    )
    assert table.shape[1] > 1
    assert np.isfinite(table.drop(columns="structure").to_numpy(dtype=float)).all()


@pytest.mark.parametrize(
    ("options", "start"),
    [
        ({"layers": (1, 3)}, "CrysAE L1 mean 0"),
        ({"layers": [3, 1], "moments": ["std"]}, "CrysAE L3 std 0"),
        ({"layers": (-1,), "moments": ("mean",)}, "CrysAE L3 mean 0"),
        ({"layers": np.array([0]), "moments": ("max", "mean")}, "CrysAE L0 max 0"),
    ],
)
def test_chosen_columns_are_those_of_the_whole(crysae, perovskite, options, start):
    whole = CrysAEFeaturizer(crysae)
    values = dict(zip(whole.feature_labels(), whole.featurize(perovskite), strict=True))
    part = CrysAEFeaturizer(crysae, **options)
    labels = part.feature_labels()
    assert labels[0] == start
    assert part.featurize(perovskite) == [values[label] for label in labels]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_atoms": 0}, "batch_atoms must be a whole number of at least 1, got 0"),
        ({"batch_atoms": 10.5}, "batch_atoms"),
        ({"batch_atoms": True}, "batch_atoms"),
        ({"num_workers": -1}, "num_workers must be a whole number of at least 0"),
        ({"moments": "mean"}, "moments must be a sequence of 'mean', 'std', 'max', got 'mean'"),
        ({"moments": ("median",)}, "moments must be"),
        ({"moments": ()}, "moments must be"),
        ({"moments": ("max", "max")}, "moments names one twice"),
        ({"layers": "last"}, "layers must be 'all' or a sequence of whole numbers, got 'last'"),
        ({"layers": 3}, "layers must be"),
        ({"layers": ()}, "layers must be"),
        ({"layers": (1.5,)}, "layers must be"),
        ({"layers": (4,)}, "layers names layer 4; the model has the layers 0 to 3"),
        ({"layers": (-5,)}, "layers names layer -5"),
        ({"layers": (3, -1)}, "layers names one twice"),
        ({"model": torch.nn.Linear(1, 1)}, "model must be .* got a Linear"),
        ({"model": None}, "model must be .* got a NoneType"),
        ({"device": "abacus"}, "device 'abacus' cannot be used here"),
    ],
)
def test_settings_that_make_no_sense_are_named(crysae, nacl, options, message):
    featurizer = CrysAEFeaturizer(**{"model": crysae, **options})
    for call in (
        featurizer.feature_labels,
        lambda: featurizer.featurize(nacl),
        lambda: featurizer.featurize_many([nacl], ignore_errors=True, pbar=False),
    ):
        with pytest.raises(SettingsError, match=message):
            call()


def test_an_unknown_model_is_no_error_of_a_row(nacl):
    with pytest.raises(UnknownModelError, match="crysae-of-nobody"):
        CrysAEFeaturizer("crysae-of-nobody").featurize_many([nacl], ignore_errors=True)


def test_presets(monkeypatch):
    assert CrysAEFeaturizer.from_preset("default").get_params() == CrysAEFeaturizer().get_params()
    paper = CrysAEFeaturizer.from_preset("paper")
    assert (paper.model, paper.layers, paper.moments) == ("crysae-mp-paper", (-1,), ("mean",))
    assert CrysAEFeaturizer.from_preset("last-layer-mean").layers == (-1,)
    assert CrysAEFeaturizer.from_preset("all-layers-mean").moments == ("mean",)
    with pytest.raises(SettingsError, match="unknown preset 'newspaper'; there are default, paper"):
        CrysAEFeaturizer.from_preset("newspaper")


def test_whom_to_cite_and_to_ask(featurizer):
    das, xie = featurizer.citations()
    assert "10.1038/s41524-022-00716-8" in das
    assert das.startswith("@article")
    assert "10.1103/PhysRevLett.120.145301" in xie
    assert xie.startswith("@article")
    assert featurizer.implementors() == ["crysxpp_mm developers"]


# Input that works.


def test_structures_that_others_crash_on(featurizer, structures, copper, nacl):
    spin = Structure(nacl.lattice, [Species("Fe", 2, spin=5), Species("O", -2)], nacl.frac_coords)
    heavy_water = Structure(Lattice.cubic(5), ["D", "O"], [[0, 0, 0], [0.2, 0, 0]])
    vacant = Structure(Lattice.cubic(4), [{"Fe": 0.0}, "O"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    rows = featurizer.featurize_many([*structures, spin, heavy_water, vacant], pbar=False)
    assert np.isfinite(rows).all()
    big = copper * (10, 10, 20)
    assert len(big) == 2000
    assert_rows(featurizer.featurize(big), featurizer.featurize(copper), 1e-5)


def test_what_a_graph_does_not_see_changes_nothing(featurizer, nacl):
    expected = featurizer.featurize(nacl)
    charged = nacl.copy()
    charged.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    charged.add_spin_by_element({"Na": 0, "Cl": 1})
    charged.add_site_property("magmom", [1.0, 2.0])
    assert featurizer.featurize(charged) == expected
    hydride = Structure(nacl.lattice, ["Na", "H"], nacl.frac_coords)
    deuteride = Structure(nacl.lattice, ["Na", "D"], nacl.frac_coords)
    assert featurizer.featurize(deuteride) == featurizer.featurize(hydride)


def test_dictionaries_do_as_well(featurizer, structures):
    rows = featurizer.featurize_many(structures, pbar=False)
    dictionaries = [structure.as_dict() for structure in structures]
    assert featurizer.featurize_many(dictionaries, pbar=False) == rows
    assert_rows(featurizer.featurize(dictionaries[1]), rows[1])


def test_input_is_left_alone(featurizer, structures):
    copies = [structure.copy() for structure in structures]
    featurizer.featurize_many(structures, pbar=False)
    assert structures == copies


def test_forms_of_entries(featurizer, structures):
    expected = featurizer.featurize_many(structures, pbar=False)
    frame = pd.DataFrame({"structure": structures}, index=range(5, 13))
    for entries in (
        tuple(structures),
        [(structure,) for structure in structures],
        [[structure] for structure in structures],
        frame[["structure"]].values,
        frame["structure"],
        frame[["structure"]],
    ):
        assert featurizer.featurize_many(entries, pbar=False) == expected
    for empty in ([], (), frame[["structure"]].values[:0], frame["structure"][:0]):
        assert featurizer.featurize_many(empty, pbar=False) == []


# Input that does not.


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(featurizer, bad_inputs, structures, name):
    kind, message = BAD[name]
    bad = bad_inputs[name]
    with pytest.raises(kind, match=message) as raised:
        featurizer.featurize(bad)
    assert type(raised.value) is kind
    assert isinstance(raised.value, ValueError | TypeError)
    entries = [*structures[:3], bad, *structures[3:]]
    with pytest.raises(kind, match=f"(?s)structure 3: .*{message}.*ignore_errors=True"):
        featurizer.featurize_many(entries, pbar=False)
    with pytest.raises(kind, match=f"(?s)^(?!structure 3).*{message}.*ignore_errors=True"):
        featurizer.featurize_wrapper((bad,))

    good = featurizer.featurize_many(structures, pbar=False)
    nan = [float("nan")] * len(good[0])
    rows = featurizer.featurize_many(entries, ignore_errors=True, pbar=False)
    assert_rows(rows, [*good[:3], nan, *good[3:]])
    rows = featurizer.featurize_many(entries, ignore_errors=True, return_errors=True, pbar=False)
    assert_rows([row[:-1] for row in rows], [*good[:3], nan, *good[3:]])
    assert kind.__name__ in rows[3][-1]
    assert re.search(message, rows[3][-1])
    assert all(np.isnan(row[-1]) for row in rows[:3] + rows[4:])
    assert not featurizer.precheck(bad)


def test_every_bad_input_in_one_frame(featurizer, bad_inputs, structures):
    entries = [*bad_inputs.values(), *structures]
    rows = featurizer.featurize_many(entries, ignore_errors=True, pbar=False)
    n_bad = len(bad_inputs)
    assert np.isnan(rows[:n_bad]).all()
    assert_rows(rows[n_bad:], featurizer.featurize_many(structures, pbar=False))
    rows = featurizer.featurize_many(list(bad_inputs.values()), ignore_errors=True, pbar=False)
    assert np.isnan(rows).all()


def test_an_element_that_pymatgen_does_not_know(featurizer):
    colored = Structure(Lattice.cubic(4), [DummySpecies("Xx", 2)], [[0, 0, 0]])
    with pytest.raises(UnknownElementError, match="Xx"):
        featurizer.featurize(colored)
    assert Element("Fm").Z == 100
    assert featurizer.featurize(Structure(Lattice.cubic(4), ["Fm"], [[0, 0, 0]]))


def test_entries_must_be_list_like(featurizer, nacl):
    with pytest.raises(StructureTypeError, match="'entries' must be a list-like object, got a Str"):
        featurizer.featurize_many(nacl)
    with pytest.raises(SettingsError, match="set ignore_errors to True to use return_errors"):
        featurizer.featurize_many([nacl], return_errors=True)


def test_entries_must_hold_one_structure(featurizer, nacl, silicon):
    sites = np.array([nacl, silicon], dtype=object)
    assert sites.shape == (2, 2)
    with pytest.raises(StructureTypeError, match=r"got a ndarray of 2\. \(numpy\.array makes"):
        featurizer.featurize_many(sites, pbar=False)
    rows = featurizer.featurize_many(
        [(nacl,), (nacl, silicon), 7], ignore_errors=True, return_errors=True, pbar=False
    )
    assert_rows(rows[0][:-1], featurizer.featurize(nacl))
    assert "one structure, got a tuple of 2" in rows[1][-1]
    assert "one structure, got a int" in rows[2][-1]


def test_an_error_that_the_converter_does_not_foresee_is_its_row_s(featurizer, nacl, silicon):
    entries = [nacl, failing(RuntimeError("the disk is full")), silicon]
    with pytest.raises(RuntimeError, match=r"(?s)structure 1: the disk is full.*ignore_errors"):
        featurizer.featurize_many(entries, pbar=False)
    rows = featurizer.featurize_many(entries, ignore_errors=True, return_errors=True, pbar=False)
    assert "RuntimeError: the disk is full" in rows[1][-1]
    assert_rows([rows[0][:-1], rows[2][:-1]], [featurizer.featurize(s) for s in (nacl, silicon)])


def test_an_error_that_is_not_built_from_one_text_comes_as_it_is(featurizer, nacl):
    error = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    with pytest.raises(UnicodeDecodeError) as raised:
        featurizer.featurize_many([nacl, failing(error)], pbar=False)
    assert raised.value is error


def test_ctrl_c_ends_a_run(featurizer, nacl):
    for call in (
        lambda stop: featurizer.featurize_many([nacl, stop], ignore_errors=True, pbar=False),
        lambda stop: featurizer.featurize_wrapper((stop,), ignore_errors=True),
        lambda stop: featurizer.precheck(stop),
    ):
        with pytest.raises(KeyboardInterrupt):
            call(failing(KeyboardInterrupt()))


def test_a_failing_network_is_the_error_of_one_row(structures, caplog):
    model = SwitchedCrysAE.random(seed=0)

    def refuse_argon(graph: Any) -> None:
        if (graph.batch_num_edges() == 0).any():
            raise FloatingPointError("no bonds")

    expected = CrysAEFeaturizer(model).featurize_many(structures, pbar=False)
    model.before = refuse_argon
    featurizer = CrysAEFeaturizer(model)
    with caplog.at_level(logging.WARNING):
        rows = featurizer.featurize_many(
            structures, ignore_errors=True, return_errors=True, pbar=False
        )
    assert "failed on a batch of 8 structures (FloatingPointError: no bonds)" in caplog.text
    expected[6] = [float("nan")] * len(expected[6])
    assert_rows([row[:-1] for row in rows], expected)
    assert "FloatingPointError: no bonds" in rows[6][-1]
    with pytest.raises(FloatingPointError, match="structure 6: no bonds"):
        featurizer.featurize_many(structures, pbar=False)


def test_the_old_home_of_an_error_says_so():
    with pytest.warns(DeprecationWarning, match="NetworkOutputError has moved.*crysxpp_mm.errors"):
        assert base.NetworkOutputError is NetworkOutputError


def test_numbers_that_are_not_finite_are_an_error(crysae, nacl):
    with torch.no_grad():
        crysae.encoder.embedding.weight.fill_(float("inf"))
    with pytest.raises(NetworkOutputError, match="not finite"):
        CrysAEFeaturizer(crysae).featurize(nacl)


# A row does not depend on its surroundings.


def test_batch_equals_single(crysae, structures):
    single = CrysAEFeaturizer(crysae)
    expected = [single.featurize(structure) for structure in structures]
    order = [3, 0, 7, 6, 1, 5, 2, 4]
    for batch_atoms in (1, 2, 7, 10_000):
        featurizer = CrysAEFeaturizer(crysae, batch_atoms=batch_atoms)
        assert_rows(featurizer.featurize_many(structures, pbar=False), expected)
        shuffled = featurizer.featurize_many([structures[i] for i in order], pbar=False)
        assert_rows(shuffled, [expected[i] for i in order])


def test_workers_give_the_same_rows(crysae, structures, bad_inputs):
    entries = [*structures, *bad_inputs.values(), *structures]
    options = {"ignore_errors": True, "return_errors": True, "pbar": False}
    expected = CrysAEFeaturizer(crysae, batch_atoms=8).featurize_many(entries, **options)
    rows = CrysAEFeaturizer(crysae, batch_atoms=8, num_workers=1).featurize_many(entries, **options)
    assert_rows([row[:-1] for row in rows], [row[:-1] for row in expected])
    last_lines = [
        [str(row[-1]).strip().splitlines()[-1] for row in table] for table in (rows, expected)
    ]
    assert last_lines[0] == last_lines[1]
    assert "sites 0 and 1 are in one place" in last_lines[0][len(structures) + 10]


def test_the_work_of_a_failing_worker_is_done_here(crysae, structures, monkeypatch, caplog):
    expected = CrysAEFeaturizer(crysae, batch_atoms=8).featurize_many(structures, pbar=False)

    class Broken:
        def __init__(self, num_workers: int) -> None: ...

        def submit(self, work: Any, block: Any) -> Any:
            future: Future[Any] = Future()
            future.set_exception(RuntimeError("out of memory"))
            return future

        def shutdown(self, **options: bool) -> None: ...

    monkeypatch.setattr(parallel, "ProcessPoolExecutor", Broken)
    featurizer = CrysAEFeaturizer(crysae, batch_atoms=8, num_workers=1)
    with caplog.at_level(logging.WARNING):
        assert_rows(featurizer.featurize_many(structures, pbar=False), expected)
    assert "not be built together (RuntimeError: out of memory); they are built one" in caplog.text


def test_an_error_of_graphs_that_nobody_foresees_is_its_row_s(
    featurizer, structures, monkeypatch, caplog
):
    odd = read_crystal(structures[2])
    build = CrystalGraphConverter.build

    def failing_at(self: CrystalGraphConverter, crystals: Any) -> Any:
        if any(np.array_equal(crystal.positions, odd.positions) for crystal in crystals):
            raise ZeroDivisionError("by nothing")
        return build(self, crystals)

    expected = featurizer.featurize_many(structures, pbar=False)
    monkeypatch.setattr(CrystalGraphConverter, "build", failing_at)
    rows = featurizer.featurize_many(structures, ignore_errors=True, pbar=False)
    assert np.isnan(rows[2]).all()
    assert_rows(np.delete(rows, 2, axis=0), np.delete(expected, 2, axis=0))
    assert not featurizer.precheck(structures[2])
    with pytest.raises(ZeroDivisionError, match="structure 2: by nothing"):
        featurizer.featurize_many(structures, pbar=False)


def test_no_pool_within_a_pool(crysae, structures, monkeypatch):
    monkeypatch.setattr(multiprocessing, "current_process", lambda: SimpleNamespace(daemon=True))
    monkeypatch.setattr(parallel, "ProcessPoolExecutor", None)
    featurizer = CrysAEFeaturizer(crysae, batch_atoms=8, num_workers=2)
    assert len(featurizer.featurize_many(structures, pbar=False)) == len(structures)


def test_one_torch_thread_inside_and_the_old_number_outside(structures, monkeypatch):
    model = SwitchedCrysAE.random(seed=0)
    seen: list[int] = []
    model.before = lambda graph: seen.append(torch.get_num_threads())
    featurizer = CrysAEFeaturizer(model)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        featurizer.featurize_many(structures, pbar=False)
        assert torch.get_num_threads() == 2
        with one_torch_thread(), one_torch_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        model.before = lambda graph: [][0]
        with pytest.raises(IndexError):
            featurizer.featurize(structures[0])
        assert torch.get_num_threads() == 2
        monkeypatch.setattr(compute, "is_forked", lambda: True)
        featurizer.featurize_many(structures, ignore_errors=True, pbar=False)
        assert torch.get_num_threads() == 1  # a forked child keeps its one thread
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system"
)
@pytest.mark.parametrize("named", [True, False])
def test_forked_children_after_torch_work(crysae, structures, named):
    featurizer = CrysAEFeaturizer() if named else CrysAEFeaturizer(crysae)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.rand(10**6).exp().sum()
    torch.randn(300, 300) @ torch.randn(300, 300)
    expected = featurizer.featurize_many(structures, pbar=False)
    try:
        both = MultipleFeaturizer([featurizer])
        both.set_n_jobs(2)
        rows = both.featurize_many([*structures, None], ignore_errors=True, pbar=False)
    finally:
        torch.set_num_threads(before)
    assert_rows(rows, [*expected, [float("nan")] * len(expected[0])])


def test_n_jobs_makes_no_pool(featurizer, structures, monkeypatch):
    expected = featurizer.featurize_many(structures, pbar=False)
    featurizer.set_n_jobs(4)
    monkeypatch.setattr("matminer.featurizers.base.Pool", None)
    assert featurizer.featurize_many(structures, pbar=False) == expected


# The model.


def test_a_saved_model_is_read_again_when_its_file_changes(tmp_path, nacl):
    path = tmp_path / "model.json.gz"
    for seed in (1, 2):
        model = CrysAE.random(seed=seed)
        model.save(path)
        for form in (path, str(path)):
            row = CrysAEFeaturizer(form, device="cpu").featurize(nacl)
            assert row == CrysAEFeaturizer(model).featurize(nacl)


def test_a_model_in_training_is_left_alone(crysae, structures):
    expected = CrysAEFeaturizer(crysae).featurize_many(structures, pbar=False)
    crysae.train()
    crysae.encoder.embedding.eval()
    flags = [module.training for module in crysae.modules()]
    weights = {name: value.clone() for name, value in crysae.state_dict().items()}
    assert CrysAEFeaturizer(crysae).featurize_many(structures, pbar=False) == expected
    assert [module.training for module in crysae.modules()] == flags
    assert all(torch.equal(value, weights[name]) for name, value in crysae.state_dict().items())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
def test_cuda_gives_the_same_rows(crysae, structures):
    expected = CrysAEFeaturizer(crysae).featurize_many(structures, pbar=False)
    featurizer = CrysAEFeaturizer(crysae, device="cuda")
    rows = featurizer.featurize_many(structures, pbar=False)
    assert_rows(rows, expected, 1e-5)
    assert featurizer.featurize_many(structures, pbar=False) == rows
    assert crysae.device.type == "cpu"


def test_a_forked_child_does_not_pick_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert compute.default_device() == "cuda"
    monkeypatch.setattr(compute, "is_forked", lambda: True)
    assert compute.default_device() == "cpu"
    assert compute.usable_device(None).type == "cpu"


def test_the_element_channel_reaches_the_network(nacl):
    model = CrysAE.random(seed=0, element_channel=True)
    with torch.no_grad():
        model.encoder.element_embedding.weight.normal_()
    featurizer = CrysAEFeaturizer(model)
    lanthanum, cerium = (
        featurizer.featurize(Structure(nacl.lattice, [symbol, "Cl"], nacl.frac_coords))
        for symbol in ("La", "Ce")
    )
    assert np.abs(np.subtract(lanthanum, cerium)).max() > 1e-3


# Pickle, clone, scikit-learn.


def test_a_pickle_leaves_the_network_out(structures):
    featurizer = CrysAEFeaturizer(layers=(0, 2), moments=["mean"])
    expected = featurizer.featurize_many(structures, pbar=False)
    data = pickle.dumps(featurizer)
    assert len(data) < 2000
    assert pickle.loads(data).featurize_many(structures, pbar=False) == expected


def test_a_pickle_holds_a_model_that_was_handed_in(featurizer, structures):
    expected = featurizer.featurize_many(structures, pbar=False)
    data = pickle.dumps(featurizer)
    assert b"torch" not in data
    copy = pickle.loads(data)
    assert isinstance(copy.model, CrysAE)
    assert copy.model is not featurizer.model
    assert copy.featurize_many(structures, pbar=False) == expected


def test_clone_keeps_every_argument(crysae, nacl):
    options = {
        "model": "crysae-mp-v1",
        "layers": [1, 2],
        "moments": ["max"],
        "batch_atoms": 99,
        "device": "cpu",
        "num_workers": 1,
    }
    featurizer = CrysAEFeaturizer(**options)
    assert all(getattr(featurizer, name) is value for name, value in options.items())
    assert clone(featurizer).get_params() == options
    assert clone(CrysAEFeaturizer(crysae)).featurize(nacl) == CrysAEFeaturizer(crysae).featurize(
        nacl
    )
    with pytest.raises(TypeError, match="batch_size"):
        CrysAEFeaturizer(batch_size=3)


def test_scikit_learn_takes_it(featurizer, structures):
    targets = np.arange(8.0)
    model = make_pipeline(featurizer, StandardScaler(), Ridge())
    scores = cross_val_score(model, structures, targets, cv=2, scoring="neg_mean_absolute_error")
    assert np.isfinite(scores).all()
    frame = pd.DataFrame({"structure": structures, "pressure": targets}, index=list("abcdefgh"))
    expected = featurizer.featurize_many(structures, pbar=False)
    for column in ("structure", ["structure"]):
        side_by_side = ColumnTransformer(
            [("crystal", featurizer, column), ("rest", "passthrough", ["pressure"])]
        )
        array = side_by_side.fit_transform(frame)
        assert_rows(array[:, :-1], expected)
    table = clone(featurizer).set_output(transform="pandas").fit_transform(frame["structure"])
    assert list(table.index) == list(frame.index)
    assert list(table.columns) == featurizer.feature_labels()
    assert_rows(featurizer.transform([structures[0], None])[0], expected[0])
    assert np.isnan(featurizer.transform([structures[0], None])[1]).all()


# DataFrames.


@pytest.fixture
def frame(structures: list[Structure]) -> pd.DataFrame:
    """A table whose index is neither 0..n-1 nor unique."""
    return pd.DataFrame({"key": range(8), "structure": structures}, index=list("hgfeddcb"))


def test_a_frame_keeps_its_rows(featurizer, frame):
    labels = featurizer.feature_labels()
    expected = featurizer.featurize_many(frame["structure"], pbar=False)
    table = featurizer.featurize_dataframe(frame, "structure", pbar=False)
    assert list(table.index) == list(frame.index)
    assert list(table.columns) == ["key", "structure", *labels]
    assert (table[labels].dtypes == np.float64).all()
    assert_rows(table[labels], expected)
    assert list(frame.columns) == ["key", "structure"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert featurizer.featurize_dataframe(frame, "structure", inplace=True, pbar=False) is None
    assert_rows(frame[labels], expected)
    with pytest.raises(DataError, match=r'"CrysAE L0 mean 0" exists in input dataframe'):
        featurizer.featurize_dataframe(frame, "structure", pbar=False)


def test_a_frame_with_errors(featurizer, frame):
    frame.iloc[2, 1] = None
    table = featurizer.featurize_dataframe(
        frame, "structure", ignore_errors=True, return_errors=True, pbar=False
    )
    texts = table["CrysAEFeaturizer Exceptions"]
    assert "StructureTypeError" in texts.iloc[2]
    assert texts.drop(index="f").isna().all()
    numbers = table[featurizer.feature_labels()].to_numpy(dtype=float)
    assert np.isnan(numbers[2]).all()
    assert np.isfinite(np.delete(numbers, 2, axis=0)).all()
    with pytest.raises(StructureTypeError, match="structure 2: "):
        featurizer.featurize_dataframe(frame, "structure", pbar=False)


def test_multiindex_leaves_the_frame_of_the_caller_alone(featurizer, frame):
    table = featurizer.featurize_dataframe(frame, "structure", multiindex=True, pbar=False)
    assert list(frame.columns) == ["key", "structure"]
    assert list(table.columns)[:2] == [("Input Data", "key"), ("Input Data", "structure")]
    assert list(table.columns)[2] == ("CrysAEFeaturizer", "CrysAE L0 mean 0")
    with pytest.raises(SettingsError, match="several levels; set multiindex=True"):
        featurizer.featurize_dataframe(table, ("Input Data", "structure"), pbar=False)


def test_an_empty_frame_gets_columns_of_floats(featurizer, frame):
    for errors in (False, True):
        table = featurizer.featurize_dataframe(
            frame[:0], "structure", ignore_errors=errors, return_errors=errors, pbar=False
        )
        labels = featurizer.feature_labels()
        assert list(table.columns)[2:] == labels + ["CrysAEFeaturizer Exceptions"] * errors
        assert (table[labels].dtypes == np.float64).all()


def test_a_column_of_text_is_refused_by_name(featurizer, frame):
    frame["structure"] = frame["structure"].astype(str).astype("string")  # as Dask does
    for call in (featurizer.featurize_dataframe, featurizer.precheck_dataframe):
        with pytest.raises(StructureTypeError, match=r"'structure' holds text.*convert-string"):
            call(frame, "structure")
    with pytest.raises(KeyError, match="crystal"):
        featurizer.featurize_dataframe(frame, "crystal")


def test_partitions_of_dask_give_the_same_rows(featurizer, frame):
    dask = pytest.importorskip("dask", reason="the extra [dask] is not installed")
    import dask.dataframe as dd

    with dask.config.set({"dataframe.convert-string": False, "scheduler": "synchronous"}):
        parts = dd.from_pandas(frame, npartitions=3, sort=False)
        meta = featurizer.featurize_dataframe(parts._meta, "structure", pbar=False)
        table = parts.map_partitions(
            featurizer.featurize_dataframe, "structure", pbar=False, meta=meta
        ).compute()
    expected = featurizer.featurize_dataframe(frame, "structure", pbar=False)
    assert list(table.index) == list(expected.index)
    labels = featurizer.feature_labels()
    assert_rows(table[labels], expected[labels])
    with dask.config.set({"dataframe.convert-string": True, "scheduler": "synchronous"}):
        text = dd.from_pandas(frame, npartitions=1, sort=False)
        with pytest.raises(StructureTypeError, match=r"'structure' holds text.*convert-string"):
            featurizer.featurize_dataframe(text._meta, "structure", pbar=False)


def test_precheck_keeps_the_index(featurizer, frame):
    frame["structure"] = pd.Series([None, *frame["structure"][1:]], index=frame.index, dtype=object)
    assert featurizer.precheck_dataframe(frame, "structure") == 7 / 8
    table = featurizer.precheck_dataframe(frame, "structure", return_frac=False)
    assert list(table.index) == list(frame.index)
    assert list(table["CrysAEFeaturizer precheck pass"]) == [False] + [True] * 7
    assert list(frame.columns) == ["key", "structure"]
    featurizer.precheck_dataframe(frame, ["structure"], return_frac=False, inplace=True)
    assert list(frame["CrysAEFeaturizer precheck pass"]) == [False] + [True] * 7
    assert np.isnan(featurizer.precheck_dataframe(frame[:0], "structure"))


def test_the_bar_moves_per_entry(featurizer, structures, capsys):
    text = io.StringIO()
    options = {"file": text, "mininterval": 0, "miniters": 1, "ascii": True}
    featurizer.featurize_many([*structures, None], ignore_errors=True, pbar=options)
    bar = text.getvalue()
    assert "CrysAEFeaturizer: " in bar
    assert all(f" {count}/9 " in bar for count in range(10))
    featurizer.featurize_many(structures, pbar={"file": text, "desc": "perovskites"})
    assert "perovskites: " in text.getvalue()
    featurizer.featurize_many(structures, pbar=False)
    assert capsys.readouterr() == ("", "")
    featurizer.featurize_many(structures)
    assert "CrysAEFeaturizer" in capsys.readouterr().err


# Embeddings.


def test_structure_embeddings(featurizer, structures):
    rows = featurizer.featurize_many(structures, pbar=False)
    array = featurizer.structure_embeddings(structures)
    assert array.dtype == np.float32
    assert_rows(array, rows)
    assert_rows(featurizer.structure_embedding(structures[1]), rows[1])
    assert featurizer.structure_embedding(structures[1]).shape == (768,)
    assert featurizer.structure_embeddings([]).shape == (0, 768)
    assert_rows(featurizer.structure_embeddings(pd.Series(structures, index=range(1, 9))), rows)


def test_site_embeddings(crysae, structures, perovskite):
    featurizer = CrysAEFeaturizer(crysae, layers=(1, 3), batch_atoms=6)
    sites = featurizer.site_embedding(perovskite)
    assert sites.shape == (5, 128)
    assert featurizer.site_feature_labels()[63:65] == ["CrysAE L1 63", "CrysAE L3 0"]
    assert np.array_equal(featurizer.site_embeddings(perovskite), sites)
    assert_rows(sites[3], sites[2], 1e-5)  # the oxygen sites are equivalent
    assert np.abs(sites[0] - sites[1]).max() > 1e-3
    every = featurizer.site_embeddings(structures)
    assert [array.shape for array in every] == [(len(s), 128) for s in structures]
    assert_rows(every[1], sites)
    means = CrysAEFeaturizer(crysae, layers=(1, 3), moments=("mean",))
    assert_rows([array.mean(axis=0) for array in every], means.structure_embeddings(structures))
    permuted = Structure.from_sites([perovskite[i] for i in (4, 2, 0, 1, 3)])
    assert_rows(featurizer.site_embedding(permuted), sites[[4, 2, 0, 1, 3]], 1e-5)
    assert featurizer.site_embeddings([]) == []


def test_embeddings_name_the_bad_one(featurizer, nacl):
    for call in (featurizer.structure_embeddings, featurizer.site_embeddings):
        with pytest.raises(StructureTypeError, match=r"^structure 1: .*Composition"):
            call([nacl, Composition("NaCl")])
    with pytest.raises(StructureTypeError, match="got None"):
        featurizer.site_embedding(None)
    with pytest.raises(StructureTypeError, match="got one Structure; put it into a list"):
        featurizer.structure_embeddings(nacl)


WITHOUT_DGL = """
import sys
sys.modules["dgl"] = None
import json
from conftest import make_structures
from crysxpp_mm import CrysAEFeaturizer
rows = CrysAEFeaturizer().featurize_many(make_structures(), pbar=False)
print(json.dumps(rows))
"""


def test_the_main_job_needs_no_dgl(structures):
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_DGL],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert_rows(json.loads(run.stdout), CrysAEFeaturizer().featurize_many(structures, pbar=False))


@needs_dgl
def test_dgl_graphs_of_users_embed_alike(crysae, structures):
    graphs = crysae.converter.convert_many(structures)
    theirs = crysae.node_embeddings(crysae.converter.to_dgl(structures))
    for mine, other in zip(crysae.node_embeddings(graphs), theirs, strict=True):
        assert_rows(other.numpy(), mine.numpy())


# The same crystal in other words, on the shipped weights.


def prototypes(n: int) -> list[Structure]:
    """Real crystals that pymatgen ships, small ones first, fcc metals and perovskites included."""
    crystals = [entry["snl"].structure for entry in AFLOW_PROTOTYPE_LIBRARY]
    return sorted(crystals, key=len)[:n]


def rotated(structure: Structure, rng: np.random.Generator) -> Structure:
    turn = SymmOp.from_axis_angle_and_translation(rng.normal(size=3), 360 * rng.random())
    copy = structure.copy()
    copy.apply_operation(turn)
    return copy


def translated(structure: Structure, rng: np.random.Generator) -> Structure:
    copy = structure.copy()
    copy.translate_sites(range(len(copy)), rng.random(3), to_unit_cell=False)
    return copy


def permuted(structure: Structure, rng: np.random.Generator) -> Structure:
    return Structure.from_sites([structure[int(i)] for i in rng.permutation(len(structure))])


def other_vectors(structure: Structure, rng: np.random.Generator) -> Structure:
    return structure.make_supercell([[1, 1, 0], [0, 1, 0], [-1, 2, 1]], in_place=False)


def four_cells(structure: Structure, rng: np.random.Generator) -> Structure:
    """The conventional cell of a face-centred lattice, some larger cell of another."""
    return structure.make_supercell([[-1, 1, 1], [1, -1, 1], [1, 1, -1]], in_place=False)


def eight_cells(structure: Structure, rng: np.random.Generator) -> Structure:
    return structure.make_supercell([2, 2, 2], in_place=False)


@pytest.mark.parametrize(
    "transform", [rotated, translated, permuted, other_vectors, four_cells, eight_cells]
)
def test_the_same_crystal_has_the_same_row(transform):
    rng = np.random.default_rng(0)
    crystals = prototypes(200)
    assert {"Cu1", "Sr1 Ti1 O3", "Ca1 Ti1 O3"} & {crystal.formula for crystal in crystals}
    featurizer = CrysAEFeaturizer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen, on elements without electronegativity
        others = [transform(crystal, rng) for crystal in crystals]
    assert_rows(
        featurizer.structure_embeddings(others), featurizer.structure_embeddings(crystals), 1e-5
    )


def test_primitive_and_conventional_cells_have_the_same_row(structures):
    ordered = [s for s in structures + prototypes(60) if s.is_ordered]
    analyzers = [SpacegroupAnalyzer(structure, symprec=1e-3) for structure in ordered]
    featurizer = CrysAEFeaturizer()
    primitive = [analyzer.get_primitive_standard_structure() for analyzer in analyzers]
    conventional = [analyzer.get_conventional_standard_structure() for analyzer in analyzers]
    assert sum(len(a) < len(b) for a, b in zip(primitive, conventional, strict=True)) > 10
    assert_rows(
        featurizer.structure_embeddings(primitive),
        featurizer.structure_embeddings(conventional),
        1e-5,
    )
