"""Documents and files: what is refused, and what is left behind."""

from __future__ import annotations

import errno
import gzip
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import make_nacl

from crysxpp_mm import serialization
from crysxpp_mm.cli.tables import write_table
from crysxpp_mm.data.store import build_store
from crysxpp_mm.errors import ModelFileError
from crysxpp_mm.serialization import (
    complete_file,
    read_document,
    remove_leftovers,
    scratch_prefix,
    write_document,
    write_whole,
)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e400"])
def test_numbers_that_are_none_are_refused(tmp_path, number):
    path = tmp_path / "model.json"
    path.write_text(f'{{"a": [1.5, {number}]}}')
    with pytest.raises(ModelFileError, match=r"model\.json is no model file, or it is damaged"):
        read_document(path)
    path.write_text('{"a": [1.5, 1e300]}')
    assert read_document(path) == {"a": [1.5, 1e300]}


def test_many_values_and_bytes_are_refused_once(tmp_path, monkeypatch):
    monkeypatch.setattr(serialization, "MAX_VALUES", 1000)
    path = tmp_path / "model.json.gz"
    path.write_bytes(gzip.compress(b"[" + b"[]," * 2000 + b"[]]"))
    with pytest.raises(ModelFileError, match=r"gz is refused: it has more than 1,000 values\.$"):
        read_document(path)
    monkeypatch.setattr(serialization, "MAX_BYTES", 1000)
    with pytest.raises(ModelFileError, match=r"gz is refused: it has more than 1,000 bytes\.$"):
        read_document(path)


def test_no_memory_is_an_error_of_the_package(tmp_path, monkeypatch):
    def no_memory(*_: object, **__: object) -> None:
        raise MemoryError

    path = tmp_path / "model.json"
    write_document({}, path)
    monkeypatch.setattr("crysxpp_mm.serialization.json.loads", no_memory)
    with pytest.raises(ModelFileError, match="MemoryError"):
        read_document(path)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFileError, match="pipe: is no regular file"):
        read_document(tmp_path / "pipe")
    with pytest.raises(ModelFileError, match="none: there is no such file"):
        read_document(tmp_path / "none")


def test_leftovers_of_dead_processes_go_and_those_of_live_ones_stay(tmp_path):
    path = tmp_path / "a.json"
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    own = scratch_prefix(path)
    foreign = own.replace(f"-{os.getpid()}-", f"-{dead}-")
    (tmp_path / f"{own}aa").write_text("mine")
    (tmp_path / f"{foreign}aa").write_text("a killed process wrote this")
    (tmp_path / f"{foreign}bb").mkdir()
    (tmp_path / f"{foreign}bb" / "part").write_text("and this")
    (tmp_path / ".a.json.notes").write_text("the user's")
    write_whole(path, b"{}")
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(
        [f"{own}aa", ".a.json.notes", "a.json"]
    )
    (tmp_path / f"{foreign}cc").write_text("again")
    remove_leftovers(path)
    assert not (tmp_path / f"{foreign}cc").exists()


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_names_the_file_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left .*a\.json"):
        write_whole(tmp_path / "a.json", b"{}")
    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    with pytest.raises(OSError, match=r"No space left .*t\.csv"):
        write_table(pd.DataFrame({"a": [1]}), tmp_path / "t.csv")
    monkeypatch.setattr("crysxpp_mm.data.store._Writer.add", full)
    with pytest.raises(OSError, match=r"No space left .*s\.graphs"):
        build_store([make_nacl()], tmp_path / "s.graphs", pbar=False)
    assert not list(tmp_path.iterdir())


def test_error_in_the_middle_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with complete_file(path) as temporary:
            temporary.write_text("new")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
