"""Every public way to run a network uses one torch thread, and leaves torch as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd
import pytest
import torch
from salts import CLASSES, SALTS, TINY, Y, classifier, regressor
from torch.nn.modules.module import register_module_forward_pre_hook

from crysxpp_mm.compute import one_torch_thread
from crysxpp_mm.estimators import CrysXPPClassifier, CrysXPPRegressor
from crysxpp_mm.explain import weights
from crysxpp_mm.featurizers import CrysAEFeaturizer, CrysXPPFeaturizer

FRAME = pd.DataFrame({"structure": SALTS})


@pytest.fixture(scope="module")
def fitted() -> CrysXPPRegressor:
    """A model with intervals; not to be changed."""
    return regressor().fit(SALTS, Y).calibrate(SALTS, Y)


@pytest.fixture(scope="module")
def fitted_classifier() -> CrysXPPClassifier:
    return classifier().fit(SALTS, CLASSES)


@pytest.fixture
def seen() -> Iterator[list[int]]:
    """Numbers of threads that the modules of networks ran with; torch has two outside."""
    found: list[int] = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    hook = register_module_forward_pre_hook(
        lambda module, inputs: found.append(torch.get_num_threads())
    )
    yield found
    hook.remove()
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert after == 2


OF_REGRESSORS: dict[str, Callable[[CrysXPPRegressor], Any]] = {
    "predict": lambda model: model.predict(SALTS),
    "predict_interval": lambda model: model.predict_interval(SALTS, confidence=0.5),
    "score": lambda model: model.score(SALTS, Y),
    "domain": lambda model: model.domain(SALTS),
    "contributions": lambda model: model.contributions(SALTS[0], n_points=2),
    "CrysXPPFeaturizer": lambda model: CrysXPPFeaturizer(model).featurize_dataframe(
        FRAME, "structure", pbar=False
    ),
}
OF_FEATURIZERS: dict[str, Callable[[CrysAEFeaturizer], Any]] = {
    "featurize": lambda featurizer: featurizer.featurize(SALTS[0]),
    "featurize_many": lambda featurizer: featurizer.featurize_many(SALTS, pbar=False),
    "featurize_wrapper": lambda featurizer: featurizer.featurize_wrapper((SALTS[0],)),
    "featurize_dataframe": lambda featurizer: featurizer.featurize_dataframe(
        FRAME, "structure", pbar=False
    ),
    "transform": lambda featurizer: featurizer.transform(SALTS),
    "structure_embedding": lambda featurizer: featurizer.structure_embedding(SALTS[0]),
    "structure_embeddings": lambda featurizer: featurizer.structure_embeddings(SALTS),
    "site_embedding": lambda featurizer: featurizer.site_embedding(SALTS[0]),
    "site_embeddings": lambda featurizer: featurizer.site_embeddings(SALTS),
}


@pytest.mark.parametrize("name", OF_REGRESSORS)
def test_regressors(fitted, seen, name):
    OF_REGRESSORS[name](fitted)
    assert set(seen) == {1}


@pytest.mark.parametrize("name", OF_FEATURIZERS)
def test_featurizers(seen, name):
    OF_FEATURIZERS[name](CrysAEFeaturizer(TINY))
    assert set(seen) == {1}


def test_learning_from_labels(seen):
    model = regressor().fit(SALTS, Y)
    n_runs = len(seen)
    model.fine_tune(SALTS, Y)
    assert len(seen) > n_runs
    model.calibrate(SALTS, Y)
    assert set(seen) == {1}


def test_classifiers(fitted_classifier, seen):
    for call in (fitted_classifier.predict_proba, fitted_classifier.predict):
        seen.clear()
        call(SALTS)
        assert set(seen) == {1}
    seen.clear()
    fitted_classifier.score(SALTS, CLASSES)
    fitted_classifier.contributions(SALTS[0], target=CLASSES[0], n_points=2)
    assert set(seen) == {1}


def test_an_inner_call_leaves_one_thread_to_the_outer(seen):
    with one_torch_thread():
        with one_torch_thread():
            pass
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_explaining_runs_no_network_but_reads_its_weights(fitted, seen, monkeypatch):
    plain = weights.selector_weights

    def spying(members: Any) -> Any:
        seen.append(torch.get_num_threads())
        return plain(members)

    monkeypatch.setattr(weights, "selector_weights", spying)
    fitted.explain(SALTS[0])
    assert seen == [1]
