"""Pretraining that starts from the weights of an earlier one."""

from __future__ import annotations

from crysxpp_mm.errors import SettingsError
from crysxpp_mm.models.crysae import CrysAE
from crysxpp_mm.serialization import digest


def weights_digest(model: object) -> str:
    """sha256 over the weights of an autoencoder.

    Raises:
        SettingsError: it is something else, such as a model that predicts a property.
    """
    if not isinstance(model, CrysAE):
        raise SettingsError(f"only a CrysAE can be started from, not a {type(model).__name__}.")
    return digest(*(value.cpu().numpy() for value in model.state_dict().values()))


def start_from(model: CrysAE, start: CrysAE) -> None:
    """Copy the weights of ``start`` to a model of the same settings.

    Raises:
        SettingsError: the models differ in a setting or in their graph rules.
    """
    ours = {**model.settings, "graph rule": model.converter}
    theirs = {**start.settings, "graph rule": start.converter}
    if differing := [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]:
        raise SettingsError(
            f"the model to start from differs in {', '.join(differing)}; choose the settings that "
            "it was trained with."
        )
    model.load_state_dict(start.state_dict())
