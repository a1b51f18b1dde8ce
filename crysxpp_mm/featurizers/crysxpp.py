"""Predicted properties as columns, from shipped and saved CrysXPP models."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import is_classifier
from torch import Tensor

from crysxpp_mm.errors import SettingsError
from crysxpp_mm.featurizers.base import BatchedFeaturizer
from crysxpp_mm.featurizers.crysae import CGCNN_CITATION, CRYSXPP_CITATION
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.model_zoo import MODEL_FILE, is_predictor, shipped_predictors


class _Predictors(NamedTuple):
    """Fitted estimators, and the graph rules that they read crystals by."""

    estimators: list[Any]
    rules: list[CrystalGraphConverter]  # each once

    def rule_of(self, estimator: Any) -> int:
        """Position of the estimator's rule."""
        return self.rules.index(estimator.converter_)


class CrysXPPFeaturizer(BatchedFeaturizer):
    """Predicted properties of a crystal, from networks that were trained on computed ones.

    Every model is a `CrysXPP <https://doi.org/10.1038/s41524-022-00716-8>`_: the encoder of a
    CrysAE, a `crystal graph network <https://doi.org/10.1103/PhysRevLett.120.145301>`_ that was
    pretrained on structures alone, fine-tuned on the labels of a property. A column is a guess
    from the structure, for screening and as input of other models, no substitute for a
    calculation; the model's card says how far off it is on crystals that it has not seen. Where
    a table holds crystals that a model was trained on, its columns know their labels.

    The graph of a structure is built once for all models that have the same graph rule. The
    numbers are those of the models' ``predict`` and ``predict_proba``.

    Structures may be ordered or disordered, with vacancies, oxidation states and spins (which
    are ignored), of one atom or of thousands; elements 1 to 100. Dictionaries from
    ``Structure.as_dict`` are accepted in place of structures. A structure that one model cannot
    read is an error for all.

    Models are loaded on first use and are not part of a pickle; an estimator given as an object
    is. Rows are computed in this process, in batches, with one torch thread (``set_n_jobs`` has
    no effect; see ``num_workers``). scikit-learn's ``clone`` keeps the estimators fitted.

    Args:
        models: Shipped predictors by name (``crysxpp_mm.list_models()``), paths of saved ones,
            fitted ``CrysXPPRegressor`` and ``CrysXPPClassifier`` objects; one, or several in a
            list or tuple. None for all shipped predictors.
        batch_atoms: Sites that are worked on at once, a compromise of speed and memory; the
            numbers do not depend on it.
        device: Where the networks run, such as ``"cpu"`` or ``"cuda"``; if None, CUDA where it
            is available (for an estimator object, where its ``accelerator`` says).
        num_workers: Processes that build graphs beside this one. Worth it from some ten
            thousand structures on.

    Features:
        - CrysXPP {target} ({unit}): predicted value; without a unit if the model names none.
        - CrysXPP {target} std ({unit}): standard deviation over the members, only of models that
          are ensembles. It tells easy crystals from hard ones; it is not an error bar.
        - CrysXPP P({class}): probability of a class, one column for each; of classes that are
          numbers or booleans, CrysXPP P({target}={class}).

        Where two models have a column of one label, both labels end in the model's name, as in
        CrysXPP K_VRH (GPa) [my-model]; of a file it is the file's name, of ``model.json.gz`` the
        folder's.

    Example:
        >>> CrysXPPFeaturizer("crysxpp-bulk-modulus").feature_labels()
        ['CrysXPP K_VRH (GPa)', 'CrysXPP K_VRH std (GPa)']
    """

    def __init__(
        self,
        models: str | os.PathLike[str] | Any | Sequence[Any] | None = None,
        batch_atoms: int = 4096,
        device: str | None = None,
        num_workers: int = 0,
    ) -> None:
        self.models = models
        self.batch_atoms = batch_atoms
        self.device = device
        self.num_workers = num_workers

    @classmethod
    def from_preset(cls, preset: str) -> Self:
        """A featurizer with settings that have a name.

        Args:
            preset: ``"default"``, all shipped predictors, or the name of one.

        Raises:
            SettingsError: there is no such preset.
            UnknownModelError: the installation ships no predictor.
        """
        names = shipped_predictors()
        if preset not in ("default", *names):
            raise SettingsError(
                f"unknown preset {preset!r}; there are {', '.join(['default', *names])}."
            )
        return cls() if preset == "default" else cls(preset)

    def feature_labels(self) -> list[str]:
        """Names of the columns, such as ``"CrysXPP K_VRH (GPa)"``.

        Raises:
            SettingsError: a model is no fitted predictor, or two columns cannot be told apart.
            UnknownModelError, ModelFileError: a model cannot be loaded.
        """
        self._check_settings()
        sources = self._sources()
        columns = [_labels(self._estimator(source)) for source in sources]
        counts = Counter(label for labels in columns for label in labels)
        named = [
            f"{label} [{_name(source)}]" if counts[label] > 1 else label
            for source, labels in zip(sources, columns, strict=True)
            for label in labels
        ]
        if twice := [label for label, count in Counter(named).items() if count > 1]:
            raise SettingsError(
                f"two columns are called {twice[0]!r}; leave one of the models out, or save them "
                "under different names and give their paths."
            )
        return named

    def citations(self) -> list[str]:
        """BibTeX of CrysXPP and CGCNN, and of the data that the models were trained on."""
        found = [CRYSXPP_CITATION, CGCNN_CITATION]
        for source in self._sources():
            metadata = getattr(self._estimator(source), "metadata_", {})
            found.extend(metadata.get("citations", []))
        return list(dict.fromkeys(found))

    def implementors(self) -> list[str]:
        """Authors of this featurizer."""
        return ["crysxpp_mm developers"]

    def __sklearn_clone__(self) -> Self:
        copied: Self = super().__sklearn_clone__()
        copied.models = self.models  # scikit-learn's copy of a fitted estimator is not fitted
        return copied

    def _sources(self) -> list[Any]:
        """The models as they were given, in a list.

        Raises:
            SettingsError: the list is empty.
            UnknownModelError: all shipped ones are wanted, and the installation ships none.
        """
        if self.models is None:
            return list(shipped_predictors())
        if isinstance(self.models, str) or not isinstance(self.models, Sequence):
            return [self.models]
        if not self.models:
            raise SettingsError("models is empty; None stands for all shipped predictors.")
        return list(self.models)

    def _estimator(self, source: Any) -> Any:
        """A model, to be asked but not to be run; an object stays on its device."""
        if isinstance(source, str | os.PathLike):
            return self._ready(source)
        self._check_model(source)
        return source

    def _check_model(self, model: object) -> None:
        if not is_predictor(model):
            raise SettingsError(
                "models must be names of shipped predictors, paths of saved ones, or fitted "
                f"CrysXPPRegressor or CrysXPPClassifier objects, got a {type(model).__name__}."
            )
        if not hasattr(model, "members_"):
            raise SettingsError(
                f"models holds a {type(model).__name__} that is not fitted; call fit, or load a "
                "saved one."
            )

    def _network(self) -> _Predictors:
        estimators = [self._ready(source) for source in self._sources()]
        rules = list(dict.fromkeys(estimator.converter_ for estimator in estimators))
        return _Predictors(estimators, rules)

    def _rules(self, model: _Predictors) -> list[CrystalGraphConverter]:
        return model.rules

    def _input(self, model: _Predictors, graphs: Sequence[CrystalGraphs]) -> list[CrystalGraphs]:
        """The graphs of each estimator's rule; estimators make batches of them."""
        return [graphs[model.rule_of(estimator)] for estimator in model.estimators]

    def _columns(self, model: _Predictors, graph: Sequence[CrystalGraphs]) -> Tensor:
        blocks = [
            _predict(estimator, graphs)
            for estimator, graphs in zip(model.estimators, graph, strict=True)
        ]
        return torch.from_numpy(np.concatenate(blocks, axis=1))


def _labels(estimator: Any) -> list[str]:
    """Names of the columns of one estimator."""
    targets = estimator.target_names_
    if is_classifier(estimator):
        classes = estimator.classes_.tolist()
        return [
            f"CrysXPP P({name if isinstance(name, str) else f'{targets[0]}={name}'})"
            for name in classes
        ]
    kinds = ("", " std") if _is_ensemble(estimator) else ("",)
    return [
        f"CrysXPP {target}{kind}" + (f" ({unit})" if unit else "")
        for target, unit in zip(targets, estimator.units_, strict=True)
        for kind in kinds
    ]


def _predict(estimator: Any, graphs: CrystalGraphs) -> NDArray[np.float64]:
    """The columns of one estimator, shape ``(n_graphs, n_columns)``."""
    if is_classifier(estimator):
        probabilities: NDArray[np.float64] = estimator.predict_proba(graphs)
        return probabilities
    if not _is_ensemble(estimator):
        values: NDArray[np.float64] = estimator.predict(graphs)
        return values.reshape(len(graphs), -1)
    pair = estimator.predict(graphs, return_std=True)
    both = np.stack([part.reshape(len(graphs), -1) for part in pair], axis=2)
    return both.reshape(len(graphs), -1)  # each target beside its spread


def _is_ensemble(estimator: Any) -> bool:
    return len(estimator.members_) > 1


def _name(source: Any) -> str:
    """Name of a model."""
    if not isinstance(source, str | os.PathLike):
        return type(source).__name__
    path = Path(source)
    return path.parent.name if path.name == MODEL_FILE else path.name.partition(".json")[0]
