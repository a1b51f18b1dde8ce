"""CrysXPP for classes, such as metal and non-metal."""

from __future__ import annotations

from dataclasses import dataclass

from crysxpp_mm.estimators.classification import PropertyClassifier
from crysxpp_mm.estimators.crysxpp import CrysXPPEstimator
from crysxpp_mm.estimators.options import with_inherited_arguments


@with_inherited_arguments
@dataclass(kw_only=True, eq=False, repr=False)
class CrysXPPClassifier(CrysXPPEstimator, PropertyClassifier):
    """Predict classes of crystals, such as metal and non-metal, from few labels.

    As :class:`CrysXPPRegressor`, with cross entropy as the loss. Labels may be texts, whole
    numbers or booleans; None and NaN are unknown. A class that appears once stays in training.

    Attributes:
        classes_: The classes, sorted.
        members_: The networks.
        target_names_: Name of the target.
        feature_weights_: Weights of the selector as a table.
        learning_curve_: Losses by epoch, member and stage: 0 is ``fit``, 1 and on ``fine_tune``.
        left_out_: Rows that were not learned from in the last stage, and why.
        n_train_: Rows that were, in all stages, those that chose the best epoch included.
        data_hash_: sha256 of the graphs and labels learned from.
        history_: For each stage how many rows it learned from, their sha256 and the settings.
        domain_: What ``domain`` compares with.
        converter_: The graph rule.

    Example:
        >>> from pymatgen.core import Lattice, Structure
        >>> from crysxpp_mm import CrysXPPClassifier
        >>> salts = [
        ...     Structure(Lattice.cubic(a), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
        ...     for a in (3.4, 3.5, 3.6)
        ... ]
        >>> model = CrysXPPClassifier(max_epochs=1, min_steps=0, pbar=False)
        >>> model.fit(salts, ["metal", "metal", "insulator"]).predict_proba(salts).shape
        (3, 2)
    """
