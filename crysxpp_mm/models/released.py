"""The checkpoint that the authors of CrysXPP released, read without running anything from it."""

from __future__ import annotations

import os
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from crysxpp_mm.errors import ModelFileError

RELEASED_CLASSES = ("CrystalAE", "ConvLayer")
"""Classes of the pickled module; stand-ins without behaviour take their place."""


_Allowed: TypeAlias = Callable[..., Any] | tuple[Callable[..., Any], str]


class _StandIn(nn.Module):
    """Takes the place of a class of the authors; only its tensors are looked at."""


def read_released_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Tensors of the released autoencoder by name.

    Args:
        path: ``model_pretrain.pth``, a pickled module or its state dictionary, or an npz of its
            tensors. Pickles are read with ``weights_only=True``: anything in them but tensors,
            containers, layers of torch and the two classes of the authors is refused.

    Raises:
        ModelFileError: the file is absent, damaged, no such checkpoint, or holds more than that.
    """
    source = Path(path)
    if not source.is_file():
        raise ModelFileError(f"{source}: there is no such file.")
    tensors = _read_npz(source) if source.suffix == ".npz" else _read_checkpoint(source)
    if "embedding.weight" not in tensors or "convs.0.fc_full.weight" not in tensors:
        raise ModelFileError(
            f"{source} is no released CrysXPP autoencoder: it lacks embedding.weight or "
            "convs.0.fc_full.weight."
        )
    return tensors


def _read_npz(source: Path) -> dict[str, Tensor]:
    try:
        with np.load(source, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"{source} is no npz of plain arrays: {error}") from error


def _read_checkpoint(source: Path) -> dict[str, Tensor]:
    try:
        with torch.serialization.safe_globals(_allowed(source)):
            content = torch.load(source, map_location="cpu", weights_only=True)
    except ModelFileError:
        raise
    except Exception as error:  # torch raises many kinds for a file that is none of its own
        raise ModelFileError(f"{source} cannot be read as a checkpoint: {error}") from error
    if isinstance(content, nn.Module):
        content = content.state_dict()
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise ModelFileError(f"{source} holds a {type(content).__name__}, no model.")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def _allowed(source: Path) -> list[_Allowed]:
    """Classes to unpickle: layers of torch, and stand-ins for the authors' classes."""
    allowed: list[_Allowed] = [OrderedDict, set]
    for name in torch.serialization.get_unsafe_globals_in_checkpoint(source):
        module, _, attribute = name.rpartition(".")
        if attribute in RELEASED_CLASSES:
            allowed.append((_StandIn, name))
        elif module.startswith("torch.nn.modules.") and isinstance(
            layer := getattr(nn, attribute, None), type
        ):
            allowed.append((layer, name))
        elif name not in ("collections.OrderedDict", "builtins.set"):
            raise ModelFileError(f"{source} asks for {name}, which is refused.")
    return allowed
