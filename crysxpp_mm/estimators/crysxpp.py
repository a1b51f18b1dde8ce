"""The part of an estimator that knows CrysXPP: its networks, options and explanations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd

from crysxpp_mm.errors import SettingsError
from crysxpp_mm.estimators.base import NetworkSource, PropertyEstimator
from crysxpp_mm.models.crysae import CrysAE
from crysxpp_mm.models.crysxpp import CrysXPP
from crysxpp_mm.models.property import PropertyModel
from crysxpp_mm.serialization import weights_to_dict
from crysxpp_mm.settings import flag, not_negative, share, whole_number
from crysxpp_mm.shipped import load_autoencoder
from crysxpp_mm.training.options import FitOptions

if TYPE_CHECKING:
    from crysxpp_mm.explain import Contributions


@dataclass(kw_only=True, eq=False, repr=False)
class CrysXPPFitOptions(FitOptions):
    """Options that CrysXPP learns by, beside those of every model.

    Args:
        encoder_rate: Rate of the encoder, as a multiple of ``learning_rate``; 0 freezes it.
        selector_rate: Peak of the one-cycle rate of the selector. A weight falls from 1 to 0 only
            if the rates of all steps sum to more than 1.
        frozen_epochs: Epochs at the start of ``fit`` in which the readout alone learns.
        element_start: Share of the epochs of ``fit`` in which the element channel rests while the
            selector learns. Then the channel learns and the selector rests, so that its weights
            stand for what the properties can say. At 0 both learn all the time, and the channel
            may take the place of the properties.
        sparsity: Weight lambda_1 of the L1 norm of the selector (Eq. 10); it makes exact zeros.
    """

    encoder_rate: float = 1.0
    selector_rate: float = 6e-3
    frozen_epochs: int = 0
    element_start: float = 0.0
    sparsity: float = 0.001

    def _check(self) -> None:
        super()._check()
        for name in ("encoder_rate", "selector_rate", "sparsity"):
            setattr(self, name, not_negative(name, getattr(self, name)))
        self.frozen_epochs = whole_number("frozen_epochs", self.frozen_epochs, at_least=0)
        self.element_start = share("element_start", self.element_start)

    def _rescale(self, factor: float) -> None:
        super()._rescale(factor)
        self.selector_rate *= factor  # the encoder's is a multiple anyway
        self.frozen_epochs, self.element_start = 0, 0.0


@dataclass(kw_only=True, eq=False, repr=False)
class CrysXPPEstimator(CrysXPPFitOptions, PropertyEstimator):
    """Start from a pretrained encoder, and explain by the feature selector.

    Args:
        pretrained: Where the encoder starts: the name of a shipped CrysAE, the path of a saved
            one, a CrysAE object, or None for random weights.
        encoder: ``"cgcnn"``, or ``"gcn"``, a plain graph convolution without pretraining.
        hidden_dim: Width of the node embeddings; None for the pretrained model's, or 64.
        n_convs: Number of convolutions; None for the pretrained model's, or 3.
        element_channel: Give every element a learned vector beside its 92 columns, which some
            lanthanides and actinides share. It starts at zero; a pretrained model that has one
            keeps it. The selector does not weigh it; ``contributions`` gives its part.
        selector: Use a feature selector.
        layers: What the readout sees, ``"all"`` layers or the ``"last"`` (Eq. 8).
        moments: What is taken over the atoms, of ``"mean"``, ``"std"`` and ``"max"``.
        pooled: What is pooled for the readout: a ``"hidden"`` layer that acts on every site, or
            the ``"embeddings"`` themselves (Eq. 8).
        readout_dim: Width of the hidden layer of the readout.
    """

    pretrained: str | os.PathLike[str] | CrysAE | None = "crysae-mp-v1"
    encoder: Literal["cgcnn", "gcn"] = "cgcnn"
    hidden_dim: int | None = None
    n_convs: int | None = None
    element_channel: bool = False
    selector: bool = True
    layers: Literal["last", "all"] = "all"
    moments: Sequence[str] = ("mean",)
    pooled: Literal["embeddings", "hidden"] = "hidden"
    readout_dim: int = 128

    _fit_options: ClassVar[type[FitOptions]] = CrysXPPFitOptions
    _model_class: ClassVar[type[PropertyModel[Any]]] = CrysXPP

    # Where networks come from.

    def _network_source(self) -> NetworkSource:
        autoencoder = self._autoencoder()
        settings: dict[str, Any] = {
            "element_channel": bool(self.element_channel),
            "selector": bool(self.selector),
            "layers": self.layers,
            "moments": self.moments,
            "pooled": self.pooled,
            "readout_dim": self.readout_dim,
        }

        def make(seed: int, n_targets: int) -> CrysXPP:
            if autoencoder is not None:
                return CrysXPP.from_autoencoder(
                    autoencoder, seed=seed, n_targets=n_targets, **settings
                )
            sizes = {"hidden_dim": self.hidden_dim, "n_convs": self.n_convs}
            given = {name: value for name, value in sizes.items() if value is not None}
            return CrysXPP.random(
                seed=seed, encoder=self.encoder, n_targets=n_targets, **given, **settings
            )

        converter = make(0, 1).converter  # and all settings are looked at
        pretrained = None if autoencoder is None else weights_to_dict(autoencoder)["sha256"]
        return NetworkSource(converter, make, pretrained)

    def _autoencoder(self) -> CrysAE | None:
        """Load the pretrained autoencoder.

        Raises:
            SettingsError: it does not go with the other options.
            UnknownModelError, ModelFileError: it cannot be loaded.
        """
        if self.pretrained is None:
            return None
        if self.encoder != "cgcnn":
            raise SettingsError(
                f"encoder={self.encoder!r} has no pretrained weights; set pretrained=None."
            )
        model = self.pretrained
        if isinstance(model, str | os.PathLike):
            model = load_autoencoder(model)
        if not isinstance(model, CrysAE):
            raise SettingsError(
                "pretrained must be the name of a CrysAE, the path of a saved one, a CrysAE object "
                f"or None, got a {type(model).__name__}."
            )
        self._check_sizes(model)
        if self.element_channel and not model.reads_elements and self.encoder_rate == 0:
            raise SettingsError(
                "element_channel=True adds vectors that start at zero, and encoder_rate=0 keeps "
                "them there; give the encoder a rate, or set element_channel=False."
            )
        return model

    def _check_sizes(self, model: CrysAE) -> None:
        """Raise if an argument contradicts the pretrained encoder."""
        for name in ("hidden_dim", "n_convs"):
            value, theirs = getattr(self, name), getattr(model.encoder, name)
            if value is not None and value != theirs:
                raise SettingsError(
                    f"{name} is {value!r}, but the pretrained model has {theirs}; leave it None, "
                    "or set pretrained=None."
                )

    def _checked_options(self) -> FitOptions:
        options = super()._checked_options()
        for name in ("hidden_dim", "n_convs", "readout_dim"):
            if getattr(self, name) is not None or name == "readout_dim":
                whole_number(name, getattr(self, name), at_least=1)
        for name in ("element_channel", "selector"):
            flag(name, getattr(self, name))
        rest = self.element_start * options.max_epochs
        if self.element_channel and rest > options.max_epochs - 1:
            raise SettingsError(
                f"element_start={self.element_start!r} with max_epochs={options.max_epochs} leaves "
                "no epoch to the element channel; lower it, or raise max_epochs."
            )
        return options

    # Why it predicts what it predicts.

    @property
    def feature_weights_(self) -> pd.DataFrame:
        """Weights of the feature selector, one row a column of the node features.

        Columns ``column``, ``property``, ``bin``, ``unit`` and ``weight``; the mean over the
        members of an ensemble. A weight of exactly zero switches the column off.

        Raises:
            NoSelectorError: the model has no selector.
        """
        from crysxpp_mm.explain import feature_weights

        self._check_fitted()
        return feature_weights(self.members_)

    def explain(self, structure: Any) -> pd.DataFrame:
        """List the selector's weights that a crystal switches on, element by property.

        Args:
            structure: A Structure, or its dictionary.

        Returns:
            Index: the elements; columns: the nine properties; NaN where a property of an element
            is not known. ``plot_explanation`` draws it.

        Raises:
            NoSelectorError: the model has no selector.
            StructureTypeError, UnknownElementError, StructureError: it is not a crystal.
        """
        from crysxpp_mm.explain import explain

        self._check_fitted()
        return explain(self.members_, structure)

    def contributions(
        self, structure: Any, *, target: Any = None, n_points: int | None = None
    ) -> Contributions:
        """Compute what each property of each site adds to the prediction of one crystal.

        See :func:`crysxpp_mm.explain.contributions`.

        Args:
            structure: A Structure, or its dictionary.
            target: Name of the target, or the class; needed if there are several.
            n_points: Points of the integral; as many as it needs if None.

        Raises:
            SettingsError: there is no such target.
            StructureTypeError, UnknownElementError, StructureError: it is not a crystal.
        """
        from crysxpp_mm.explain import contributions

        self._check_fitted()
        output, name, unit = self._targets.output(target)
        return contributions(
            self.members_, structure, output=output, name=name, unit=unit, n_points=n_points
        )

    def _facts(self) -> dict[str, object]:
        selectors = [member.selector for member in self.members_ if member.selector is not None]
        zeros = [float((selector.weight == 0).sum()) for selector in selectors]
        off = f"{np.mean(zeros):g}" if zeros else ""
        return {**super()._facts(), "columns that the selector switched off": off}
