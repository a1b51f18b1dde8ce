"""CrysXPP for properties that are numbers."""

from __future__ import annotations

from dataclasses import dataclass

from crysxpp_mm.estimators.crysxpp import CrysXPPEstimator
from crysxpp_mm.estimators.options import with_inherited_arguments
from crysxpp_mm.estimators.regression import PropertyRegressor


@with_inherited_arguments
@dataclass(kw_only=True, eq=False, repr=False)
class CrysXPPRegressor(CrysXPPEstimator, PropertyRegressor):
    """Predict numbers, such as a formation energy, of crystals from few labels.

    The encoder of a CrysAE, pretrained on structures alone, is fine-tuned on the labels behind a
    feature selector whose weights say which properties of the elements matter (Das et al., npj
    Comput. Mater. 8, 43 (2022), Eqs. 8-10).

    Attributes:
        members_: The networks.
        target_names_: Names of the targets.
        units_: Their units, empty where not given.
        transforms_: Name of the transform of each, None for none.
        feature_weights_: Weights of the selector as a table.
        learning_curve_: Losses by epoch, member and stage: 0 is ``fit``, 1 and on ``fine_tune``.
        left_out_: Rows that were not learned from in the last stage, and why.
        n_train_: Rows that were, in all stages, those that chose the best epoch included.
        data_hash_: sha256 of the graphs and labels learned from.
        history_: For each stage how many rows it learned from, their sha256 and the settings.
        calibration_: Errors that ``predict_interval`` goes by; None if no rows were held out.
        domain_: What ``domain`` compares with.
        converter_: The graph rule.

    Example:
        >>> from pymatgen.core import Lattice, Structure
        >>> from crysxpp_mm import CrysXPPRegressor
        >>> salts = [
        ...     Structure(Lattice.cubic(a), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
        ...     for a in (3.4, 3.5, 3.6)
        ... ]
        >>> model = CrysXPPRegressor(max_epochs=1, min_steps=0, units="eV", pbar=False)
        >>> model.fit(salts, [1.0, 1.1, 1.2]).predict(salts).shape
        (3,)
    """
