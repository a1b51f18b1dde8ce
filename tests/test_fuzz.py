"""Damaged files: each is read, or refused by an error of the package, soon and in little memory.

A few hundred by default; ``CRYSXPP_FUZZ=5000 pytest tests/test_fuzz.py`` tries more of each kind.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import time
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_structures

from crysxpp_mm.data.sources import open_structures, parse
from crysxpp_mm.data.store import HEADER, GraphStore, build_store
from crysxpp_mm.errors import CrysXPPError
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.model_zoo import load_model
from crysxpp_mm.models.crysae import CrysAE

N = int(os.environ.get("CRYSXPP_FUZZ", "60"))
SECONDS, MEGABYTES = 10, 2000
WORDS = (
    b"?", b".", b"-1", b"0", b"1e9", b"nan", b"inf", b"1e-300", b"999999999999999999999", b"''",
    b"loop_", b"data_", b"_cell_length_a", b"OH", b"x,y,z", b"-y,x,z+1/4", b"Wat", b"\xff\xfe",
    b"\x00", b";", b"'", b"Fe3+", b"1(2)", b"Lr", b"D", b"X", b"99 99 99", b"{}", b"[[[[",
)  # fmt: skip


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to four changes of bytes, words or lines."""
    for _ in range(rng.randint(1, 4)):
        kind = rng.randrange(7)
        place = rng.randrange(len(data) + 1)
        lines = data.split(b"\n")
        row = rng.randrange(len(lines))
        if kind == 0:
            data = data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
        elif kind == 1:
            data = data[:place]
        elif kind == 2:
            data = b"\n".join(lines[:row] + lines[row + 1 :])
        elif kind == 3:
            data = b"\n".join(lines[:row] + lines[row:] + lines[row : row + 20])
        elif kind == 4:
            words = lines[row].split()
            if words:
                words[rng.randrange(len(words))] = rng.choice(WORDS)
            lines[row] = b" ".join(words)
            data = b"\n".join(lines)
        elif kind == 5:
            data = data[:place] + rng.choice(WORDS) + data[place:]
        else:
            rng.shuffle(lines)
            data = b"\n".join(lines) if rng.random() < 0.2 else data
    return data


def outcome(work: Callable[[], object]) -> str:
    """What becomes of it; raw errors come through, and so does what takes long or much."""
    start = time.process_time()
    try:
        work()
        result = "read"
    except CrysXPPError:
        result = "refused"
    assert time.process_time() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < MEGABYTES * 1000
    return result


@cache
def texts(fmt: str) -> tuple[bytes, ...]:
    found = [s.to(fmt=fmt).encode() for s in make_structures() if fmt != "poscar" or s.is_ordered]
    if fmt == "cif":
        found += [s.to(fmt="cif", symprec=0.01).encode() for s in make_structures()[:4]]
        found.append(found[0] + b"\n" + found[1])
    return tuple(found)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("fmt", "name"), [("cif", "a.cif"), ("poscar", "POSCAR"), ("json", "a.json")]
)
def test_damaged_texts(tmp_path, fmt, name):
    rng = random.Random(f"{fmt} 0")
    converter = CrystalGraphConverter()
    results = []
    for _ in range(N):
        data = damaged(rng.choice(texts(fmt)), rng)
        (tmp_path / name).write_bytes(data)

        def work() -> None:
            for payload in open_structures(tmp_path / name):
                graphs = converter.convert(parse(payload))
                assert np.isfinite(graphs.distances).all()

        results.append(outcome(work))
    assert {"read", "refused"} == set(results)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "a.graphs"
    build_store(make_structures(), path, pbar=False)
    return path


def test_damaged_stores(tmp_path, store):
    rng = random.Random(1)
    expected = GraphStore.load(store).data_hash
    path = tmp_path / "b.graphs"
    for _ in range(N):
        path.write_bytes(damaged(store.read_bytes(), rng))

        def work() -> None:
            assert GraphStore.load(path).data_hash == expected

        outcome(work)


def test_forged_stores(tmp_path, store, monkeypatch):
    """Numbers are changed, and the hashes made to fit."""
    rng = np.random.default_rng(2)
    with zipfile.ZipFile(store) as packed:
        members = {name: packed.read(name) for name in packed.namelist()}
    header = json.loads(members[HEADER]) | {"sealed": False}
    odd = [0, -1, 1, 100, 101, 255, 2**31 - 1, -(2**31), 0.5, -0.5, 1e30, np.nan, np.inf]

    class AnyHash(str):
        __slots__ = ()

        def __ne__(self, other: object) -> bool:
            return False

        __hash__ = str.__hash__

    monkeypatch.setattr("crysxpp_mm.data.store._combine", lambda *_: AnyHash())
    model = CrysAE.random(hidden_dim=4, n_convs=1).eval()
    path = tmp_path / "b.graphs"
    results = []
    for _ in range(N):
        changed = dict(members)
        name = str(rng.choice([name for name in members if name != HEADER and "names" not in name]))
        array = np.load(io.BytesIO(changed[name]))
        with np.errstate(all="ignore"):
            array[rng.integers(len(array))] = np.array(rng.choice(odd)).astype(array.dtype)
        file = io.BytesIO()
        np.save(file, array[: len(array) - int(rng.integers(2))])
        changed[name] = file.getvalue()
        with zipfile.ZipFile(path, "w") as packed:
            for member, data in (changed | {HEADER: json.dumps(header).encode()}).items():
                packed.writestr(member, data)

        def work() -> None:
            with torch.no_grad():
                layers = model.encoder(model.make_graph(GraphStore.load(path).graphs))
            assert torch.isfinite(layers[-1]).all()

        results.append(outcome(work))
    assert "refused" in results


def test_damaged_models(tmp_path):
    rng = random.Random(3)
    path = tmp_path / "a.json"
    model = CrysAE.random(hidden_dim=4, n_convs=1)
    model.save(path)
    data = path.read_bytes()
    for _ in range(N):
        path.write_bytes(damaged(data, rng))
        outcome(lambda: load_model(path))


def test_damaged_checkpoints(tmp_path):
    rng = random.Random(4)
    encoder = CrysAE.random(hidden_dim=4, n_convs=1).encoder
    names = {"linear": "fc_full", "bond_norm": "bn1", "atom_norm": "bn2"}
    tensors = {}
    for name, value in encoder.state_dict().items():
        if name.startswith("convolutions."):
            _, layer, part, entry = name.split(".")
            name = f"convs.{layer}.{names[part]}.{entry}"
        tensors[name] = value
    torch.save(tensors, tmp_path / "a.pth")
    np.savez(tmp_path / "a.npz", **{name: value.numpy() for name, value in tensors.items()})
    for name in ("a.pth", "a.npz"):
        data = (tmp_path / name).read_bytes()
        for _ in range(N // 2):
            (tmp_path / name).write_bytes(damaged(data, rng))
            outcome(lambda name=name: CrysAE.from_released(tmp_path / name))
