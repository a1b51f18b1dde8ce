"""Crystals as a data set of DGL, in a plain PyTorch loop."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest
import torch
from salts import SALTS, Y

from crysxpp_mm import CrystalGraphDataset, CrysXPP
from crysxpp_mm.data.store import build_store
from crysxpp_mm.errors import DataError, GraphError, MissingDependencyError, StructureTypeError
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.models.elemnet import ElemNet

dgl = pytest.importorskip("dgl")


@pytest.fixture
def table():
    return pd.DataFrame({"structure": SALTS, "a": Y, "b": 2 * Y})


def test_items_are_graphs_of_dgl_with_labels(table):
    data = CrystalGraphDataset(table, target="a")
    assert isinstance(data, dgl.data.DGLDataset)
    assert len(data) == 16
    graph, label = data[3]
    assert isinstance(graph, dgl.DGLGraph)
    assert label.tolist() == pytest.approx([Y[3]])
    assert CrystalGraphDataset(table, target=["a", "b"])[-1][1].tolist() == pytest.approx([4, 8])
    assert isinstance(CrystalGraphDataset(table)[0], dgl.DGLGraph)
    with pytest.raises(IndexError, match="no crystal 16"):
        data[16]
    assert repr(data) == "CrystalGraphDataset(16 graphs, 1 targets)"


def test_a_plain_loop_over_a_loader_learns(table):
    data = CrystalGraphDataset(table, structure="structure", target="a")
    loader = dgl.dataloading.GraphDataLoader(data, batch_size=4, shuffle=False)
    model = CrysXPP.random(hidden_dim=8, readout_dim=8).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(6):
        total = 0.0
        for graph, labels in loader:
            loss = (model(graph) - labels).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total)
    assert losses[-1] < 0.5 * losses[0]


def test_a_batch_of_dgl_equals_ours(table):
    data = CrystalGraphDataset(table)
    model = CrysXPP.random(hidden_dim=8)
    theirs = model(dgl.batch([data[i] for i in range(16)]))
    assert torch.allclose(theirs, model(model.make_graph(data.graphs)), atol=1e-6)


def test_a_model_that_reads_elements_says_what_it_lacks(table):
    model = ElemNet.random(hidden_dims=(4,))
    with pytest.raises(GraphError, match=r"'element_fractions'; .*element_fractions=True"):
        model(CrystalGraphDataset(table)[0])
    assert model(CrystalGraphDataset(table, element_fractions=True)[0]).shape == (1, 1)


def test_a_store_and_its_labels(tmp_path):
    rule = CrystalGraphConverter(max_neighbors=8)
    store = build_store(SALTS, tmp_path / "salts.graphs", converter=rule, pbar=False)
    data = CrystalGraphDataset(store, target=np.stack([Y, Y], axis=1), element_fractions=True)
    assert data.converter.max_neighbors == 8
    graph, label = data[0]
    assert label.shape == (2,)
    assert graph.ndata["element_fractions"].shape == (2, 100)


def test_what_is_refused(table):
    with pytest.raises(DataError, match="no column 'c'"):
        CrystalGraphDataset(table, target="c")
    with pytest.raises(DataError, match="no column 'crystal'"):
        CrystalGraphDataset(table, structure="crystal")
    with pytest.raises(StructureTypeError):
        CrystalGraphDataset(pd.DataFrame({"structure": [*SALTS[:2], "NaCl"]}))


def test_labels_must_be_as_many_as_crystals(tmp_path):
    store = build_store(SALTS, tmp_path / "salts.graphs", pbar=False)
    with pytest.raises(DataError, match="16 crystals and 3 rows of labels"):
        CrystalGraphDataset(store, target=Y[:3])


def test_nothing_is_written(table, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    CrystalGraphDataset(table, target="a")[0]
    assert list(tmp_path.iterdir()) == []


def test_without_dgl_the_error_says_what_to_install(table, monkeypatch):
    monkeypatch.setitem(sys.modules, "dgl", None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        CrystalGraphDataset(table)
