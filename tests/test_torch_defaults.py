"""Torch's default dtype and device, which other packages set for a whole process, are no matter.

The device is "meta" here, as every machine has it: what lands there by mistake has no data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_structures
from numpy.testing import assert_allclose
from salts import CLASSES, SALTS, classifier, regressor
from salts import Y as LABELS

from crysxpp_mm.featurizers import CrysAEFeaturizer
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.model_zoo import load_model
from crysxpp_mm.models.crysae import CrysAE
from crysxpp_mm.models.crysxpp import CrysXPP
from crysxpp_mm.training.config import PretrainConfig
from crysxpp_mm.training.pretrain import pretrain


@contextmanager
def double_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def elsewhere_by_default() -> Iterator[None]:
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


def columns(folder: Path) -> Any:
    model = CrysAE.from_dict(load_model("crysae-mp-v1").as_dict())
    return CrysAEFeaturizer(model=model).featurize_many(make_structures(), pbar=False)


def predictions(folder: Path) -> Any:
    return load_model("crysxpp-bulk-modulus").predict(SALTS)


def reasons(folder: Path) -> Any:
    model = load_model("crysxpp-bulk-modulus")
    return model.contributions(SALTS[0], n_points=8).by_site()


def fitted_from_a_model(folder: Path) -> Any:
    model = regressor(n_members=2, transform="nonnegative", patience=1).fit(SALTS, LABELS)
    model.fine_tune(SALTS[:8], LABELS[:8], max_epochs=1)
    return model.predict(SALTS)


def fitted_from_nothing(folder: Path) -> Any:
    model = regressor(pretrained=None, hidden_dim=4, n_convs=1, checkpoint_dir=folder)
    return model.fit(SALTS, LABELS).predict(SALTS)


def fitted_without_bond_lengths(folder: Path) -> Any:
    model = regressor(pretrained=None, encoder="gcn", hidden_dim=4, n_convs=1)
    return model.fit(SALTS, LABELS).predict(SALTS)


def probabilities(folder: Path) -> Any:
    return classifier(class_weight="balanced").fit(SALTS, CLASSES).predict_proba(SALTS)


def pretrained(folder: Path) -> Any:
    config = PretrainConfig(
        hidden_dim=8, n_convs=2, batch_size=6, max_epochs=1, element_channel=True
    )
    graphs = CrystalGraphConverter().convert_many(make_structures() * 3)
    model = pretrain(graphs, config, folder, data_hash="0" * 64, pbar=False)
    return torch.cat(model.node_embeddings(graphs), dim=1).numpy()


LEARNED = (
    fitted_from_a_model,
    fitted_from_nothing,
    fitted_without_bond_lengths,
    probabilities,
    pretrained,
)


@pytest.mark.parametrize("default", [double_by_default, elsewhere_by_default])
@pytest.mark.parametrize("compute", [columns, predictions, reasons, *LEARNED])
def test_numbers_are_the_same(
    tmp_path: Path,
    compute: Callable[[Path], Any],
    default: Callable[[], AbstractContextManager[None]],
) -> None:
    expected = np.asarray(compute(tmp_path / "usual"))
    with default():
        found = np.asarray(compute(tmp_path / "changed"))
    assert found.dtype == expected.dtype
    # Adam counts its steps in the default dtype, and what it rounds grows in the training.
    assert_allclose(found, expected, rtol=1e-3 if compute in LEARNED else 0)


def test_networks_are_in_single_precision() -> None:
    with double_by_default():
        models = [
            CrysAE.random(hidden_dim=4, element_channel=True),
            CrysXPP.random(hidden_dim=4, pooled="hidden"),
            CrysXPP.random(hidden_dim=4, encoder="gcn"),
        ]
    for model in models:
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
