"""The base of all models: a graph rule, weights that belong to it, and one document for both."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import nn

from crysxpp_mm.compute import cpu_by_default
from crysxpp_mm.errors import ModelFileError
from crysxpp_mm.graph.arrays import CrystalGraphs
from crysxpp_mm.graph.backend import Backend, Graph
from crysxpp_mm.graph.batch import make_batch
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.html import facts_table
from crysxpp_mm.serialization import (
    FORMAT_VERSION,
    SavedDocument,
    check_keys,
    check_weights,
    read_weights,
    reading_model,
    weights_to_dict,
)
from crysxpp_mm.version import __version__


class CrystalGraphModel(nn.Module, SavedDocument):
    """A network and the graph rule that its weights belong to."""

    metadata: dict[str, Any]
    _converter: CrystalGraphConverter

    @property
    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Sizes and switches, as the constructor takes them."""

    @property
    def reads_elements(self) -> bool:
        """True for a model that reads which elements sit on a site, beside their features."""
        return False

    @classmethod
    def random(cls, *, seed: int = 0, **settings: Any) -> Self:
        """Make an untrained model with the weights of ``seed``, in evaluation mode.

        Its batch norms have seen no data.
        """
        with torch.random.fork_rng(devices=[]), cpu_by_default():
            torch.manual_seed(seed)
            model = cls(**settings)
        return model.eval()

    @property
    def converter(self) -> CrystalGraphConverter:
        """The graph rule that the weights belong to."""
        return self._converter

    def make_graph(
        self,
        graphs: CrystalGraphs,
        *,
        device: str | torch.device | None = None,
        backend: Backend = "auto",
    ) -> Graph:
        """Batch crystals as this model reads them.

        Args:
            graphs: The crystals.
            device: Where the tensors go; the model's device if None.
            backend: ``"dgl"``, ``"torch"``, or ``"auto"`` for DGL where it can be imported.
        """
        return make_batch(
            graphs,
            device=device or self.device,
            backend=backend,
            element_fractions=self.reads_elements,
        )

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    def _repr_html_(self) -> str:
        """Show a notebook the sizes, the graph rule, and where the weights come from."""
        facts = self.metadata
        rule = self.converter
        n_train = facts.get("n_train")
        return facts_table(
            type(self).__name__,
            {
                "weights": facts.get("description") or ("" if n_train else "untrained"),
                "crystals learned from": f"{n_train:,}" if n_train else "",
                "parameters": f"{sum(p.numel() for p in self.parameters()):,}",
                "settings": ", ".join(f"{name} {value}" for name, value in self.settings.items()),
                "graph rule": f"{rule.max_neighbors} neighbors within {rule.cutoff:g} Angstrom",
                "device": self.device,
            },
        )

    def as_dict(self) -> dict[str, Any]:
        """Write the whole model as a JSON-ready dictionary."""
        return {
            "@module": type(self).__module__,
            "@class": type(self).__name__,
            "@version": __version__,
            "format_version": FORMAT_VERSION,
            "converter": self.converter.as_dict(),
            "settings": self.settings,
            "metadata": self.metadata,
            "weights": weights_to_dict(self),
        }

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> Self:
        """Rebuild a model from ``as_dict``, in evaluation mode.

        Raises:
            ModelFileError: keys or tensors are missing, unknown, damaged or of a later format.
        """
        with reading_model():
            return cls._from_dict(d)

    @classmethod
    def _from_dict(cls, d: Mapping[str, Any]) -> Self:
        check_keys(
            d,
            required={"converter", "settings", "weights"},
            optional={"metadata", "format_version"},
        )
        tensors = read_weights(d["weights"])
        rule = {key: value for key, value in d["converter"].items() if key[:1] != "@"}
        settings = {**d["settings"], "converter": CrystalGraphConverter(**rule)}
        if settings.get("n_convs", 0) > len(tensors):
            raise ModelFileError(f"the weights are not those of {settings['n_convs']} layers.")
        with torch.device("meta"):  # sizes cost nothing there
            check_weights(cls(**settings), tensors)
        with torch.random.fork_rng(devices=[]), cpu_by_default():
            model = cls(**settings, metadata=d.get("metadata"))
        model.load_state_dict(tensors)
        return model.eval()
