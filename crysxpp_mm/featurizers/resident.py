"""Models that stay in the process, not in the featurizer, so that its pickle is small."""

from __future__ import annotations

import os
from collections.abc import Callable
from copy import copy, deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monty.json import MontyDecoder, MSONable
from torch import nn

from crysxpp_mm.compute import one_torch_thread, usable_device
from crysxpp_mm.model_zoo import load_model


class _PackedModel(NamedTuple):
    """A model object as plain data, inside a pickle."""

    data: dict[str, Any]


def ready_model(model: Any, device: str | None, check: Callable[[object], None]) -> Any:
    """Get a model that is checked, on its device, and set to evaluate.

    Args:
        model: Name of a shipped model, path of a saved one, or the model itself.
        device: Device by torch's name. If None, CUDA where it is available, and for a model
            object the device that it is on.
        check: Raises if the model is of another kind.

    Returns:
        The model. An object that has to be moved, or is in training, is copied first.

    Raises:
        SettingsError: the device cannot be used here.
        UnknownModelError, ModelFileError: the model cannot be loaded.
    """
    with one_torch_thread():
        if isinstance(model, str | os.PathLike):
            loaded = _load(model, usable_device(device))
            check(loaded)
            return loaded
        check(model)
        target = None if device is None else usable_device(device)
        ready = all(_is_ready(network, target) for network in _networks(model))
        if ready and (target is None or isinstance(model, nn.Module)):
            return model
        if isinstance(model, nn.Module):
            return _prepare(deepcopy(model), target)
        mine = copy(model)
        if not ready:
            mine.members_ = deepcopy(model.members_)
        return _prepare(mine, target)


def pack(value: Any) -> Any:
    """Turn the model objects in an argument into data for a pickle."""
    if type(value) in (list, tuple):
        return type(value)(pack(item) for item in value)
    return _PackedModel(value.as_dict()) if isinstance(value, MSONable) else value


def unpack(value: Any) -> Any:
    """Turn the data of ``pack`` into model objects again."""
    if isinstance(value, _PackedModel):
        with one_torch_thread():
            return MontyDecoder().process_decoded(value.data)
    if type(value) in (list, tuple):
        return type(value)(unpack(item) for item in value)
    return value


def _load(name: str | os.PathLike[str], device: torch.device) -> Any:
    """Load a model once for each file, device and process."""
    path = Path(name)
    try:
        status = path.stat()
        stamp = (str(path.absolute()), status.st_mtime_ns, status.st_size)
    except OSError:  # a shipped model's name
        stamp = None
    return _loaded(name if isinstance(name, str) else path, stamp, str(device))


@lru_cache(maxsize=64)
def _loaded(name: str | Path, stamp: tuple[str, int, int] | None, device: str) -> Any:
    """Load a model; ``stamp`` tells a file that was written anew from the one loaded before."""
    return _prepare(load_model(name), torch.device(device))


def _networks(model: Any) -> list[nn.Module]:
    """The networks of a model: itself, or the members of a fitted estimator."""
    return [model] if isinstance(model, nn.Module) else list(getattr(model, "members_", []))


def _is_ready(network: nn.Module, device: torch.device | None) -> bool:
    """Tell if a network is on ``device`` (anywhere if None) and in evaluation mode."""
    here = next(network.parameters()).device
    elsewhere = device is not None and (
        device.type != here.type or device.index not in (None, here.index)
    )
    return not elsewhere and not any(module.training for module in network.modules())


def _prepare(model: Any, device: torch.device | None) -> Any:
    """Put the networks of a model on ``device`` (where they are if None), to evaluate."""
    for network in _networks(model):
        network.to(device).eval()
    if device is not None and not isinstance(model, nn.Module):
        model.accelerator = str(device)  # where an estimator computes
    return model
