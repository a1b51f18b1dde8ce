"""matminer's tables, there or not."""

from __future__ import annotations

import gzip
import os
import warnings
from pathlib import Path

import matminer.datasets.utils as matminer_utils
import pandas as pd
import pytest
from conftest import make_copper, make_nacl
from matminer.utils.io import store_dataframe_as_json

from crysxpp_mm.data.matminer_tables import load_table, structure_column
from crysxpp_mm.errors import DataError

NAME = "elastic_tensor_2015"


@pytest.fixture
def data_home(tmp_path: Path) -> Path:
    """A folder with a table of two rows in matminer's own file format."""
    folder = tmp_path / "data"
    folder.mkdir()
    frame = pd.DataFrame({"structure": [make_nacl(), make_copper()], "K_VRH": [25.0, 140.0]})
    store_dataframe_as_json(frame, str(folder / f"{NAME}.json.gz"), compression="gz", pbar=False)
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every download fails after half of it is written."""

    def fail(url: str, file_path: str) -> None:
        Path(file_path).write_bytes(b"half")
        raise OSError("no network")

    monkeypatch.setattr(matminer_utils, "_fetch_external_dataset", fail)


def test_table_comes_with_structures(data_home, nacl):
    table = load_table(NAME, data_home=data_home)
    assert list(table.columns) == ["structure", "K_VRH"]
    assert table["structure"][0] == nacl
    assert structure_column(table) == "structure"


def test_folder_is_the_argument_or_the_variable(data_home, monkeypatch, tmp_path):
    monkeypatch.setenv("MATMINER_DATA", str(data_home))
    assert len(load_table(NAME)) == 2
    monkeypatch.setenv("MATMINER_DATA", str(tmp_path / "elsewhere"))
    assert len(load_table(NAME, data_home=str(data_home))) == 2


def test_unknown_name_lists_close_ones():
    with pytest.raises(DataError, match=rf"no data set 'elastic_tensor'; close .*{NAME}"):
        load_table("elastic_tensor")
    with pytest.raises(DataError, match=rf"'elastictensor_2105'; close .*{NAME}"):
        load_table("elastictensor_2105")
    with pytest.raises(DataError, match=r"no data set 'zzzz'\.$"):
        load_table("zzzz")
    with pytest.raises(DataError, match=r"no data set ''\.$"):
        load_table("")


@pytest.mark.usefixtures("offline")
def test_failed_download_says_where_to_put_the_file_and_leaves_nothing(tmp_path, capsys):
    with pytest.raises(DataError) as caught:
        load_table(NAME, data_home=tmp_path)
    assert f"save it as {tmp_path / NAME}.json.gz" in str(caught.value)
    assert "https://" in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


def test_download_with_another_hash_fails_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(
        matminer_utils,
        "_fetch_external_dataset",
        lambda url, file_path: Path(file_path).write_bytes(b"a page that says no"),
    )
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail(f"waits for {seconds} s"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match="cannot be downloaded"):
            load_table(NAME, data_home=tmp_path)
    assert not list(tmp_path.iterdir())


def test_interrupted_download_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(url: str, file_path: str) -> None:
        Path(file_path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(matminer_utils, "_fetch_external_dataset", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_table(NAME, data_home=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content",
    [b"half", gzip.compress(b"[1, 2", mtime=0)[:-6], gzip.compress(b"{", mtime=0)],
    ids=["no gzip", "cut short", "no JSON"],
)
def test_damaged_file_is_named_and_kept(data_home, content):
    path = data_home / f"{NAME}.json.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"{NAME}\.json\.gz cannot be read .*get it again"):
        load_table(NAME, data_home=data_home)
    assert path.read_bytes() == content


def test_file_without_a_table_is_named(data_home):
    (data_home / f"{NAME}.json.gz").write_bytes(gzip.compress(b'{"a": 1}'))
    with pytest.raises(DataError, match=rf"{NAME}\.json\.gz holds no table"):
        load_table(NAME, data_home=data_home)


def test_structure_column_is_found_whatever_its_name(nacl, copper):
    frame = pd.DataFrame({"y": [1, 2], "crystal": [None, nacl], "text": ["a", "b"]})
    assert structure_column(frame) == "crystal"
    assert structure_column(pd.DataFrame({"d": [copper.as_dict()], "e": [{"a": 1}]})) == "d"


def test_none_or_several_structure_columns_are_an_error(nacl):
    with pytest.raises(DataError, match=r"no column holds structures; the table has 'y', 'cif'\."):
        structure_column(pd.DataFrame({"y": [1], "cif": ["data_"]}))
    with pytest.raises(DataError, match="the table has no columns"):
        structure_column(pd.DataFrame())
    frame = pd.DataFrame({"initial": [nacl], "final": [nacl.as_dict()]})
    with pytest.raises(DataError, match="several columns hold structures: 'initial', 'final'"):
        structure_column(frame)


@pytest.mark.parametrize("name", ["matbench_jdft2d", NAME])
def test_real_tables_load(name):
    root = os.environ.get("CRYSXPP_DATA")
    folder = Path(root or "", "matminer")
    if not root or not (folder / f"{name}.json.gz").is_file():
        pytest.skip(f"CRYSXPP_DATA names no folder with matminer/{name}.json.gz")
    table = load_table(name, data_home=folder)
    assert structure_column(table) == "structure"
    assert len(table) == {"matbench_jdft2d": 636, NAME: 1181}[name]
