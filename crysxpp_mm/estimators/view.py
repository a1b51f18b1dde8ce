"""An estimator as a notebook shows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pandas as pd
from sklearn.utils import estimator_html_repr

from crysxpp_mm.html import facts_table

if TYPE_CHECKING:
    from crysxpp_mm.estimators.targets import Targets


class EstimatorView:
    """The part of an estimator that shows it in a notebook."""

    if TYPE_CHECKING:  # an estimator has all of these
        members_: list[Any]
        learning_curve_: pd.DataFrame
        n_train_: int
        _targets: Targets

        __sklearn_is_fitted__: Callable[[], bool]

    def _html_repr(self) -> str:
        """Show scikit-learn's view of the settings, and what was learned."""
        settings: str = estimator_html_repr(self)
        if not self.__sklearn_is_fitted__():
            return settings
        return settings + facts_table(f"fitted {type(self).__name__}", self._facts())

    def _facts(self) -> dict[str, object]:
        """Facts on what was learned, by name; a subclass adds its own."""
        kept = self.learning_curve_[self.learning_curve_["kept"]]
        losses = kept.get("val_loss", pd.Series(dtype=float)).dropna()
        return {
            "targets": ", ".join(self._targets.texts()),
            "what it is": getattr(self, "metadata_", {}).get("description", ""),
            "crystals learned from": f"{self.n_train_:,}",
            "networks": len(self.members_),
            "epochs": ", ".join(map(str, self.learning_curve_.groupby("member").size())),
            "validation loss": ", ".join(f"{loss:.4g}" for loss in losses),
        }
