"""ElemNet for properties that are numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from crysxpp_mm.estimators.base import NetworkSource
from crysxpp_mm.estimators.options import with_inherited_arguments
from crysxpp_mm.estimators.regression import PropertyRegressor
from crysxpp_mm.models.elemnet import ElemNet
from crysxpp_mm.models.property import PropertyModel


@with_inherited_arguments
@dataclass(kw_only=True, eq=False, repr=False)
class ElemNetRegressor(PropertyRegressor):
    """Predict numbers from the composition alone (Jha et al., Sci. Rep. 8, 17593 (2018)).

    A control for models that see the structure: what it reaches, the formula tells already.

    Args:
        hidden_dims: Widths of the dense layers.
        dropout: Share of a layer that is switched off at random in training.

    Attributes:
        members_: The networks; other attributes are those of ``CrysXPPRegressor``.

    Example:
        >>> from pymatgen.core import Lattice, Structure
        >>> from crysxpp_mm import ElemNetRegressor
        >>> metals = [Structure(Lattice.cubic(3), [name], [[0, 0, 0]]) for name in ("Fe", "Ni")]
        >>> model = ElemNetRegressor(max_epochs=1, min_steps=0, pbar=False)
        >>> model.fit(metals, [2.2, 0.6]).predict(metals).shape
        (2,)
    """

    hidden_dims: Sequence[int] = (256, 128, 64)
    dropout: float = 0.0

    _model_class: ClassVar[type[PropertyModel[Any]]] = ElemNet

    def _network_source(self) -> NetworkSource:
        def make(seed: int, n_targets: int) -> ElemNet:
            return ElemNet.random(
                seed=seed, n_targets=n_targets, hidden_dims=self.hidden_dims, dropout=self.dropout
            )

        return NetworkSource(make(0, 1).converter, make)
