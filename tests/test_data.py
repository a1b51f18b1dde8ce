"""Sources of structures and the graph store."""

from __future__ import annotations

import gzip
import json
import os
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import conftest
import numpy as np
import pandas as pd
import pytest
from matminer.utils.io import store_dataframe_as_json
from pymatgen.core import Structure
from pymatgen.entries.computed_entries import ComputedStructureEntry

from crysxpp_mm.data import sources, tables
from crysxpp_mm.data import texts as structure_texts
from crysxpp_mm.data.sources import (
    Payload,
    StructureSource,
    bare_name,
    open_structures,
    parse,
    parse_blocks,
    payload_blocks,
    read_table,
    row_ids,
)
from crysxpp_mm.data.store import FORMAT_VERSION, HEADER, GraphStore, build_store
from crysxpp_mm.errors import DataError, GraphError, GraphStoreError, SettingsError
from crysxpp_mm.graph.arrays import DTYPES, CrystalGraphs
from crysxpp_mm.graph.converter import CrystalGraphConverter
from crysxpp_mm.graph.crystal import as_structure

CRYSTALS = ("copper", "nacl", "perovskite", "silicon")


@cache
def _made() -> tuple[Structure, ...]:
    return tuple(conftest.make_structures())


def make_structures() -> list[Structure]:
    """Fresh copies of eight crystals; symmetry is only worked out once."""
    return [structure.copy() for structure in _made()]


def make_nacl() -> Structure:
    return _made()[0].copy()


def make_copper() -> Structure:
    return _made()[2].copy()


@pytest.fixture
def structures() -> list[Structure]:
    return make_structures()


@pytest.fixture
def nacl() -> Structure:
    return make_nacl()


def texts() -> dict[str, str]:
    """CIF texts by the name of the material, sorted."""
    nacl, perovskite, copper, silicon, *_ = make_structures()
    crystals = zip(CRYSTALS, (copper, nacl, perovskite, silicon), strict=True)
    return {name: structure.to(fmt="cif") for name, structure in crystals}


def read(source: StructureSource) -> dict[str, Any]:
    """Everything of a source, parsed."""
    found = {}
    for payload in source:
        found[payload.name] = as_structure(parse(payload))
    return found


def equal(a: CrystalGraphs, b: CrystalGraphs, *, atol: float = 0.0) -> bool:
    """Whether two blocks hold the same graphs."""
    return all(
        getattr(a, name).shape == getattr(b, name).shape
        and np.allclose(getattr(a, name), getattr(b, name), rtol=0, atol=atol)
        for name in DTYPES
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four CIF files, one of them in a folder below."""
    root = tmp_path / "cifs"
    (root / "more").mkdir(parents=True)
    for name, text in texts().items():
        (root / ("more" if name == "silicon" else "") / f"{name}.cif").write_text(text)
    return root


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """The same files in a zip."""
    path = tmp_path / "cifs.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for name, text in texts().items():
            packed.writestr(f"{name}.cif", text)
    return path


@pytest.fixture
def store(tmp_path: Path) -> GraphStore:
    return build_store(make_structures(), tmp_path / "all.graphs", pbar=False)


# Sources.


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "fmt"),
    [
        ("a.cif", "cif"),
        ("A.CIF", "cif"),
        ("a.vasp", "poscar"),
        ("POSCAR", "poscar"),
        ("CONTCAR_2", "poscar"),
        ("a.poscar", "poscar"),
        ("a.json", "json"),
    ],
)
def test_every_format_of_one_file_is_read(tmp_path, nacl, name, fmt, packed):
    data = nacl.to(fmt=fmt).encode()
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(data) if packed else data)
    (found,) = read(open_structures(path)).values()
    assert found.composition == nacl.composition
    assert found.volume == pytest.approx(nacl.volume, rel=1e-4)


def test_folder_is_read_by_name_whatever_is_beside(folder):
    (folder / "notes.txt").write_text("no structure")
    (folder / ".hidden.cif").write_text("no structure")
    source = open_structures(str(folder))
    assert source.names == ["copper.cif", "more/silicon.cif", "nacl.cif", "perovskite.cif"]
    assert {key: value.formula for key, value in read(source).items()} == {
        "copper.cif": "Cu1",
        "more/silicon.cif": "Si2",
        "nacl.cif": "Na1 Cl1",
        "perovskite.cif": "Sr1 Ti1 O3",
    }
    assert source.table is None


def test_iterating_twice_gives_the_same(folder, archive):
    frame = pd.DataFrame({"structure": make_structures()})
    for source in (folder, archive, frame, folder / "nacl.cif"):
        opened = open_structures(source)
        assert [payload.name for payload in opened] == [payload.name for payload in opened]
        assert len(list(opened)) == len(opened) == len(opened.names)


def test_zip_leaves_out_what_macos_adds(archive):
    with zipfile.ZipFile(archive, "a") as packed:
        packed.writestr("__MACOSX/._nacl.cif", "no structure")
        packed.writestr("notes.txt", "no structure")
        packed.writestr("deep/a.cif.gz", gzip.compress(make_nacl().to(fmt="cif").encode()))
    found = read(open_structures(archive))
    assert list(found) == ["copper.cif", "deep/a.cif.gz", *sorted(f"{n}.cif" for n in texts())[1:]]


def test_damaged_member_of_a_zip_fails_alone(tmp_path):
    path = tmp_path / "cifs.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("bad.cif", b"data_" + 500 * b"x")
        packed.writestr("broken.cif.gz", gzip.compress(b"data_")[:-3])
        packed.writestr("latin.cif", b"\xff\xfe")
        packed.writestr("good.cif", make_nacl().to(fmt="cif"))
    path.write_bytes(path.read_bytes().replace(b"xxxx", b"xxxy", 1))  # the CRC no longer fits
    kept = build_store(path, tmp_path / "a.graphs", ignore_errors=True, pbar=False)
    assert kept.names == ["good.cif"]
    assert sorted(kept.errors) == ["bad.cif", "broken.cif.gz", "latin.cif"]
    assert kept.errors.pop("latin.cif").startswith("cannot be read as a structure")
    assert all(error.startswith("damaged in ") for error in kept.errors.values())
    with pytest.raises(DataError, match=r"^bad\.cif: damaged in .*CRC"):
        build_store(path, tmp_path / "b.graphs", pbar=False)
    assert not (tmp_path / "b.graphs").exists()


def test_unreadable_zip_is_named(tmp_path, archive):
    data = archive.read_bytes()
    position = data.rfind(b"PK\x01\x02")
    archive.write_bytes(data[:position] + b"xx" + data[position + 2 :])
    with pytest.raises(DataError, match=r"cifs\.zip cannot be read as a zip"):
        open_structures(archive)


def test_what_is_too_large_is_refused_packed_or_not(tmp_path, monkeypatch):
    text = make_nacl().to(fmt="cif")
    monkeypatch.setattr(structure_texts, "MAX_FILE_BYTES", len(text) + 100)
    large = text + "\n" * 10_000
    (tmp_path / "fits.cif").write_text(text)
    (tmp_path / "large.cif").write_text(large)
    (tmp_path / "packed.cif.gz").write_bytes(gzip.compress(large.encode()))
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in ("fits.cif", "large.cif", "packed.cif.gz"):
            packed.write(tmp_path / name, name)
    for source in (tmp_path / "all.zip", tmp_path):
        payloads = {payload.name: payload for payload in open_structures(source)}
        assert parse(payloads["fits.cif"])
        for name in ("large.cif", "packed.cif.gz"):
            with pytest.raises(DataError, match=rf"^{name}: one structure with more than"):
                parse(payloads[name])


def test_text_that_is_no_structure_is_named(tmp_path):
    (tmp_path / "bad.cif").write_text("nonsense")
    (payload,) = open_structures(tmp_path / "bad.cif")
    with pytest.raises(DataError, match=r"^bad\.cif: cannot be read as a structure"):
        parse(payload)


def test_unknown_format_and_other_json_are_named(tmp_path):
    (tmp_path / "a.xyz").write_text("1\n\nCu 0 0 0")
    (payload,) = open_structures(tmp_path / "a.xyz")
    with pytest.raises(DataError, match=r"^a\.xyz: the format is unknown"):
        parse(payload)
    with pytest.raises(DataError, match=r"^x: the JSON text is no dictionary"):
        parse(Payload("x", "[1, 2]", "json"))


def test_json_runs_nothing(tmp_path, monkeypatch, nacl):
    witness = tmp_path / "was_run"
    (tmp_path / "crysxpp_evil.py").write_text(f"open({str(witness)!r}, 'w').close()")
    monkeypatch.syspath_prepend(tmp_path)
    evil = {"@module": "crysxpp_evil", "@class": "Evil", "@version": None}
    system = {"@module": "os", "@class": "system", "command": f"touch {witness}"}
    d = nacl.as_dict()
    for site in d["sites"]:
        site["properties"] = {"a": evil, "b": system}
    d["properties"] = {"c": evil}
    (tmp_path / "one.json").write_text(json.dumps(d))
    (tmp_path / "many.json").write_text(json.dumps([{"structure": d, "other": evil}]))
    (tmp_path / "plain.json").write_text(json.dumps([{"structure": system}]))
    (tmp_path / "text.csv").write_text(
        pd.DataFrame({"structure": [json.dumps(d)]}).to_csv(index=False)
    )
    for name in ("one.json", "many.json", "text.csv"):
        kept = build_store(tmp_path / name, tmp_path / "a.graphs", pbar=False)
        assert len(kept) == 1
    assert read_table(tmp_path / "many.json")["other"][0] == evil
    assert read_table(tmp_path / "plain.json")["structure"][0] == system
    with pytest.raises(DataError, match="got a dictionary with the keys 'command'"):
        build_store(tmp_path / "plain.json", tmp_path / "b.graphs", pbar=False)
    assert not witness.exists()


def test_tables_keep_their_other_columns(tmp_path, folder):
    frame = pd.DataFrame({"id": ["a", "b"], "y": [1.5, 2.5]})
    dictionaries = [make_nacl().as_dict(), make_copper().as_dict()]
    tables = {
        "text.csv": frame.assign(
            structure=[make_nacl().to(fmt="cif"), make_copper().to(fmt="cif")]
        ),
        "poscar.csv.gz": frame.assign(structure=[make_nacl().to(fmt="poscar"), texts()["copper"]]),
        "json.csv": frame.assign(structure=[json.dumps(d) for d in dictionaries]),
        "path.csv": frame.assign(structure=["cifs/nacl.cif", "cifs/copper.cif"]),
    }
    for name, table in tables.items():
        table.to_csv(tmp_path / name, index=False)
    frame.assign(structure=dictionaries).to_json(tmp_path / "split.json", orient="split")
    frame.assign(structure=dictionaries).to_json(tmp_path / "rows.json.gz", orient="records")
    for name in (*tables, "split.json", "rows.json.gz"):
        source = open_structures(tmp_path / name)
        assert source.table is not None, name
        paths = tables[name][["structure"]] if name == "path.csv" else None
        kept = frame if paths is None else frame.join(paths)  # which say what a row is
        assert source.table.to_dict("list") == kept[list(source.table)].to_dict("list"), name
        assert len(source.table.columns) == len(kept.columns)
        assert source.names == (["0", "1"] if paths is None else paths["structure"].tolist())
        assert [s.reduced_formula for s in read(source).values()] == ["NaCl", "Cu"], name


def test_rows_are_called_by_their_paths_if_these_tell_them_apart(tmp_path):
    make_copper().to(filename=str(tmp_path / "cu.cif"))
    table = pd.DataFrame({"structure": ["cu.cif", None, make_nacl().to(fmt="cif")], "y": [1, 2, 3]})
    table.to_csv(tmp_path / "t.csv", index=False)
    source = open_structures(tmp_path / "t.csv")
    assert source.names == ["cu.cif", "1", "2"]
    assert source.table.to_dict("list") == {"structure": ["cu.cif", None, None], "y": [1, 2, 3]}
    with pytest.raises(DataError, match="1: the cell is empty"):
        read(source)
    pd.concat([table[:1], table[:1]]).to_csv(tmp_path / "t.csv", index=False)
    assert open_structures(tmp_path / "t.csv").names == ["0", "1"]


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("structure,y,y\nx.cif,1,2\n")
    with pytest.raises(DataError, match=r"a\.csv has two columns 'y'; rename one"):
        read_table(tmp_path / "a.csv")


def test_cells_of_a_csv_table_keep_their_value(tmp_path):
    (tmp_path / "a.csv").write_text("formula,y\nNaN,0.30000000000000004\nNA,\n")
    table = read_table(tmp_path / "a.csv")
    assert list(table["formula"]) == ["NaN", "NA"]
    assert table["y"][0] == 0.1 + 0.2
    assert np.isnan(table["y"][1])


def test_names_of_digits_in_a_csv_table_stay_text(tmp_path):
    (tmp_path / "a.csv").write_text("id,y,empty,n,size\n007,0.5,,0,10\n12,00.25,,,20\n")
    table = read_table(tmp_path / "a.csv")
    assert list(table["id"]) == ["007", "12"]
    assert list(table["y"]) == [0.5, 0.25]
    assert list(table["size"]) == [10, 20]
    assert table["n"][0] == 0
    assert table["empty"].isna().all()
    assert list(read_table(tmp_path / "a.csv", text=["size"])["size"]) == ["10", "20"]
    (tmp_path / "b.csv").write_text("id\n")
    assert list(read_table(tmp_path / "b.csv").columns) == ["id"]


def test_bare_names():
    names = ["mp-1.cif", "a/b/mp-1.CIF.gz", "mp-1.5.vasp", "x.poscar", "POSCAR_mp-1", "n.json"]
    assert [bare_name(name) for name in names] == [
        *("mp-1", "mp-1", "mp-1.5", "x", "POSCAR_mp-1", "n")
    ]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_blocks_are_parsed_in_order(tmp_path, monkeypatch, num_workers):
    monkeypatch.setattr(sources, "BLOCK", 2)
    texts = [make_nacl().to(fmt="cif"), "nonsense", make_copper().to(fmt="cif")]
    payloads = [Payload(str(i), text, "cif") for i, text in enumerate(texts * 2)]
    payloads.append(Payload("6", make_copper()))
    blocks = list(parse_blocks(payloads, num_workers=num_workers))
    assert [block.names for block in blocks] == [["0", "1"], ["2", "3"], ["4", "5"], ["6"]]
    assert [list(block.errors) for block in blocks] == [[1], [], [0], []]
    assert blocks[0].errors[1].startswith("cannot be read as a structure")
    found = [as_structure(structure) for block in blocks for structure in block.structures]
    assert [s.reduced_formula for s in found] == ["NaCl", "Cu", "NaCl", "Cu", "Cu"]


def test_parsing_needs_no_negative_workers():
    with pytest.raises(SettingsError, match=r"num_workers must be .* at least 0, got -1"):
        parse_blocks([], num_workers=-1)


def test_list_of_dictionaries_and_one_dictionary_are_structures(tmp_path):
    (tmp_path / "list.json").write_text(
        json.dumps([make_nacl().as_dict(), make_copper().as_dict()])
    )
    (tmp_path / "one.json").write_text(json.dumps(make_nacl().as_dict()))
    assert [s.formula for s in read(open_structures(tmp_path / "list.json")).values()] == [
        "Na1 Cl1",
        "Cu1",
    ]
    assert list(read(open_structures(tmp_path / "one.json"))) == ["one.json"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.csv", b"", "cannot be read as a table"),
        ("broken.json", b"{", "cannot be read as a table"),
        ("deep.json", b"[" * 100_000, "cannot be read as a table"),
        ("cut.json.gz", gzip.compress(b"[]" * 99, mtime=0)[:-9], "cannot be read as a table"),
        ("number.json", b"3", "holds neither a table"),
        ("other.json", b'{"a": 1}', "holds neither a table"),
        ("ragged.json", b'{"columns": ["a"], "data": [[1, 2]]}', "cannot be read as a table"),
    ],
)
def test_file_that_is_no_table_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} {message}"):
        open_structures(tmp_path / name)


def test_missing_things_are_named(tmp_path):
    with pytest.raises(DataError, match="nothing: there is no such file or folder"):
        open_structures(tmp_path / "nothing")
    with pytest.raises(DataError, match="holds no CIF, POSCAR or JSON file"):
        open_structures(tmp_path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.writestr("notes.txt", "")
    with pytest.raises(DataError, match=r"a\.zip holds no CIF, POSCAR or JSON file"):
        open_structures(tmp_path / "a.zip")
    (tmp_path / "none.json").write_text("[]")
    for empty in ([], pd.DataFrame({"structure": []}), tmp_path / "none.json"):
        with pytest.raises(DataError, match="holds no structure"):
            open_structures(empty)
    frame = pd.DataFrame({"a": [1], "b": [2]})
    with pytest.raises(DataError, match="the table has no column 'structure'; it has a, b"):
        open_structures(frame)
    twice = pd.DataFrame([[1, 2]], columns=["structure", "structure"])
    with pytest.raises(DataError, match="several columns 'structure'"):
        open_structures(twice)


def test_graph_store_is_no_source(tmp_path, store):
    with pytest.raises(DataError, match="is a graph store"):
        open_structures(tmp_path / "all.graphs")


# The store.


def test_store_returns_what_the_converter_made(tmp_path, store, structures):
    expected = CrystalGraphConverter().convert_many(structures)
    assert equal(store.graphs, expected)
    assert store.names == [str(i) for i in range(8)]
    assert store.converter == CrystalGraphConverter()
    assert store.errors == {}
    again = GraphStore.load(tmp_path / "all.graphs")
    assert equal(again.graphs, expected)
    assert again.data_hash == store.data_hash
    assert all(getattr(again.graphs, name).dtype == kind for name, kind in DTYPES.items())
    assert equal(again.select(["3", "0"]), expected.select([3, 0]))


def test_store_of_each_crystal(tmp_path, store):
    for row, one in enumerate(store):
        name = str(row)
        assert one.names == [name]
        assert equal(one.graphs, store.select([name]))
        table = pd.Series([make_structures()[row]], index=[name])
        alone = build_store(table, tmp_path / "alone.graphs", pbar=False)
        assert (one.converter, one.data_hash) == (alone.converter, alone.data_hash)
    assert store[-1].names == ["7"]
    with pytest.raises(IndexError, match="index 8 is out of range for 8"):
        store[8]


def test_store_keeps_its_rule(tmp_path):
    rule = CrystalGraphConverter(cutoff=5.0, max_neighbors=6)
    kept = build_store([make_nacl()], tmp_path / "a.graphs", converter=rule, pbar=False)
    assert GraphStore.load(tmp_path / "a.graphs").converter == rule
    assert kept.graphs.distances.max() <= 5.0001


def test_same_data_make_the_same_bytes(tmp_path, store):
    build_store(make_structures(), tmp_path / "again.graphs", pbar=False)
    assert (tmp_path / "again.graphs").read_bytes() == (tmp_path / "all.graphs").read_bytes()


def test_hash_tells_data_and_rules_apart(tmp_path, store):
    others = [
        build_store(make_structures()[:-1], tmp_path / "b", pbar=False),
        build_store(make_structures()[::-1], tmp_path / "c", pbar=False),
        build_store(
            pd.Series(make_structures(), index=list("abcdefgh")), tmp_path / "d", pbar=False
        ),
        build_store(
            make_structures(),
            tmp_path / "e",
            converter=CrystalGraphConverter(shell_tolerance=2e-4),
            pbar=False,
        ),
    ]
    hashes = {store.data_hash, *(other.data_hash for other in others)}
    assert len(hashes) == 5


def test_every_source_gives_the_same_graphs(tmp_path, folder, archive):
    cifs = texts()
    structures = [Structure.from_str(text, fmt="cif") for text in cifs.values()]
    frame = pd.DataFrame({"structure": structures, "y": range(4)}, index=list(cifs))
    store_dataframe_as_json(frame, str(tmp_path / "table.json.gz"), compression="gz", pbar=False)
    frame.assign(structure=list(cifs.values())).to_csv(tmp_path / "table.csv", index=False)
    expected = CrystalGraphConverter().convert_many(structures)
    found = {
        source: build_store(given, tmp_path / f"{source}.graphs", pbar=False)
        for source, given in {
            "zip": archive,
            "csv": tmp_path / "table.csv",
            "json": tmp_path / "table.json.gz",
            "frame": frame,
            "series": frame["structure"],
            "dictionaries": [structure.as_dict() for structure in structures],
        }.items()
    }
    for source, kept in found.items():
        assert equal(kept.graphs, expected, atol=1e-6), source
    assert found["frame"].names == found["json"].names == list(cifs)
    assert found["zip"].names == [f"{name}.cif" for name in cifs]
    below = build_store(folder, tmp_path / "folder.graphs", pbar=False)
    order = ["copper.cif", "nacl.cif", "perovskite.cif", "more/silicon.cif"]
    assert equal(below.select(order), expected, atol=1e-6)


def test_blocks_and_workers_change_nothing(tmp_path, monkeypatch, archive):
    build_store(archive, tmp_path / "one.graphs", pbar=False)
    monkeypatch.setattr(sources, "BLOCK", 3)
    build_store(archive, tmp_path / "two.graphs", pbar=False)
    build_store(archive, tmp_path / "three.graphs", num_workers=2, pbar=False)
    expected = (tmp_path / "one.graphs").read_bytes()
    assert (tmp_path / "two.graphs").read_bytes() == expected
    assert (tmp_path / "three.graphs").read_bytes() == expected


def test_bad_structures_are_named_or_left_out(tmp_path, bad_inputs):
    good = {"first": make_nacl(), "last": make_copper()}
    series = pd.Series({"first": good["first"], **bad_inputs, "last": good["last"]}, dtype=object)
    kept = build_store(series, tmp_path / "a.graphs", ignore_errors=True, pbar=False)
    assert kept.names == ["first", "last"]
    assert set(kept.errors) == set(bad_inputs)
    assert equal(kept.graphs, CrystalGraphConverter().convert_many(good.values()))
    assert GraphStore.load(tmp_path / "a.graphs").errors == kept.errors
    for name, value in bad_inputs.items():
        with pytest.raises(DataError, match=rf"^{name}: .*ignore_errors leaves such"):
            build_store(pd.Series({name: value}, dtype=object), tmp_path / "b.graphs", pbar=False)
    with pytest.raises(DataError, match="no structure has a graph; None: expected a pymatgen"):
        build_store(
            pd.Series(bad_inputs, dtype=object), tmp_path / "b", ignore_errors=True, pbar=False
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.graphs"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "a"], "two crystals are named 'a'"),
        (["a", "b\nc"], "has a line break"),
        (["a", "\udcff"], "is no UTF-8 text"),
    ],
)
def test_names_that_cannot_be_kept_are_refused(tmp_path, names, message):
    series = pd.Series([make_copper(), make_nacl()])
    series.index = pd.Index(names, dtype=object)
    with pytest.raises(DataError, match=message):
        build_store(series, tmp_path / "a.graphs", pbar=False)
    assert not list(tmp_path.iterdir())


def test_odd_names_come_back(tmp_path):
    names = ["", " a b ", "Müller/鉄.cif", "a,b;'\"", "\t"]
    series = pd.Series([make_copper()] * 5, index=names)
    assert build_store(series, tmp_path / "a.graphs", pbar=False).names == names


def test_settings_and_names_of_crystals_are_checked(tmp_path, store):
    with pytest.raises(SettingsError, match=r"num_workers must be .* at least 0, got -1"):
        build_store([make_nacl()], tmp_path / "a.graphs", num_workers=-1)
    with pytest.raises(DataError, match="has no crystal 'x'"):
        store.select(["1", "x"])


def refused_by_name(path: Path) -> bool:
    """Whether loading fails with an error that names the file."""
    try:
        GraphStore.load(path)
    except GraphStoreError as error:
        return path.name in str(error)
    return False


def test_flipped_byte_is_refused_by_name(tmp_path, store):
    path = tmp_path / "all.graphs"
    data = path.read_bytes()
    for position in {*range(0, len(data), 11), *range(len(data) - 120, len(data))}:
        flipped = bytearray(data)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        assert refused_by_name(path), f"byte {position} of {len(data)}"
    path.write_bytes(data)
    assert GraphStore.load(path).data_hash == store.data_hash


def test_truncated_store_is_refused_by_name(tmp_path, store):
    path = tmp_path / "all.graphs"
    data = path.read_bytes()
    for length in (*range(0, len(data), 301), len(data) - 1):
        path.write_bytes(data[:length])
        assert refused_by_name(path), f"{length} of {len(data)} bytes"
    path.write_bytes(data + b"x")
    assert refused_by_name(path)


def rewritten(path: Path, **changes: Any) -> Path:
    """The store with other header entries or members, and no seal."""
    members = changes.pop("members", {})
    with zipfile.ZipFile(path) as packed:
        content = {name: packed.read(name) for name in packed.namelist()}
    header = {**json.loads(content[HEADER]), "sealed": False, **changes}
    content[HEADER] = json.dumps({k: v for k, v in header.items() if v is not None}).encode()
    content |= members
    out = path.with_name("changed.graphs")
    with zipfile.ZipFile(out, "w") as packed:
        for name, data in content.items():
            if data is not None:
                packed.writestr(name, data)
    return out


def test_store_without_a_seal_is_read(tmp_path, store):
    assert GraphStore.load(rewritten(tmp_path / "all.graphs")).data_hash == store.data_hash


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": FORMAT_VERSION + 1}, "is of format version 2, this package reads up"),
        ({"format_version": "new"}, "is of format version new"),
        ({"format": "other"}, "is no graph store"),
        ({"converter": None}, "lacks converter in its header"),
        ({"sha256": None}, "lacks sha256 in its header"),
        ({"sha256": "0" * 64}, "does not match its sha256"),
        ({"converter": {"cutoff": -1}}, "the rule makes no sense"),
        ({"converter": {"radius": 8}}, "the rule makes no sense"),
        ({"members": {HEADER: b"{"}}, "is damaged"),
        ({"members": {HEADER: b"[]"}}, "is no graph store"),
        ({"members": {HEADER: None}}, "is no graph store"),
        ({"members": {"distances.npy": None}}, "is damaged"),
        ({"members": {"distances.npy": b"none"}}, "is damaged"),
        ({"members": {"names.npy": None}}, "is damaged"),
    ],
)
def test_foreign_store_is_refused_by_name(tmp_path, store, changes, message):
    path = rewritten(tmp_path / "all.graphs", **changes)
    with pytest.raises(GraphStoreError, match=rf"changed\.graphs:? {message}"):
        GraphStore.load(path)


def npy(array: np.ndarray) -> bytes:
    """The bytes of an array's file."""
    import io

    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_column_of_another_kind_is_refused(tmp_path, store):
    for array in (np.zeros(3), np.zeros((2, 2), np.float32), np.array([{}], dtype=object)):
        path = rewritten(tmp_path / "all.graphs", members={"distances.npy": npy(array)})
        with pytest.raises(GraphStoreError, match="is damaged"):
            GraphStore.load(path)


class AnyHash(str):
    """A hash that equals any other: that of a forger."""

    __slots__ = ()

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = str.__hash__


def changed(column: str, place: int, value: float) -> Any:
    """A column with one other entry."""

    def change(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        array = columns[column].copy()
        array[place] = value
        return {column: array}

    return change


FORGERIES = {
    "neighbour past the crystal": (changed("neighbors", 0, 2), "neighbors names a site"),
    "negative neighbour": (changed("neighbors", 5, -1), "neighbors names a site"),
    "far neighbour": (changed("neighbors", -1, 2**31 - 1), "neighbors names a site"),
    "huge degree": (changed("degrees", 0, 2**31 - 1), "degrees must be numbers"),
    "negative degree": (changed("degrees", 0, -3), "degrees must be numbers"),
    "degree that does not fit": (changed("degrees", 0, 11), "degrees of crystal 0 do not sum"),
    "vacancy as an element": (changed("species_numbers", 0, 0), "species_numbers must be"),
    "element past the table": (changed("species_numbers", 0, 101), "species_numbers must be"),
    "species of another crystal": (changed("species_sites", 0, 7), "species_sites names a site"),
    "occupancy of NaN": (changed("occupancies", 0, np.nan), "occupancies must be"),
    "negative occupancy": (changed("occupancies", 0, -1), "occupancies must be"),
    "large occupancy": (changed("occupancies", 0, 3), "occupancies must be"),
    "infinite distance": (changed("distances", 0, np.inf), "distances must be"),
    "distance of NaN": (changed("distances", 0, np.nan), "distances must be"),
    "distance beyond the rule": (changed("distances", 0, 12), "distances has one beyond"),
    "weight of NaN": (changed("weights", 0, np.nan), "weights must be"),
    "large weight": (changed("weights", 0, 5), "weights must be"),
    "negative count": (changed("bond_counts", 0, -5), "bond_counts has a negative"),
    "atoms that lack": (changed("atom_counts", 0, 1), "degrees has"),
    "short distances": (lambda c: {"distances": c["distances"][:-1]}, "distances has"),
    "short weights": (lambda c: {"weights": c["weights"][:-1]}, "weights has"),
    "more crystals": (lambda c: {"bond_counts": np.append(c["bond_counts"], c["bond_counts"][:1])},
                      "bond_offsets is of another length"),
    "few names": (lambda c: {"names": np.frombuffer(b"a\nb\n", np.uint8)}, "8 graphs and 2 names"),
    "equal names": (lambda c: {"names": np.frombuffer(b"a\n" * 8, np.uint8)}, "one name twice"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_forged_store_is_refused_and_the_column_named(tmp_path, monkeypatch, store, name):
    change, message = FORGERIES[name]
    with zipfile.ZipFile(tmp_path / "all.graphs") as packed:
        columns = {
            member.removesuffix(".npy"): np.load(packed.open(member))
            for member in packed.namelist()
            if member != HEADER
        }
    members = {f"{key}.npy": npy(array) for key, array in change(columns).items()}
    monkeypatch.setattr("crysxpp_mm.data.store._combine", lambda *_: AnyHash())
    with pytest.raises(GraphStoreError, match=rf"changed\.graphs.*{message}"):
        GraphStore.load(rewritten(tmp_path / "all.graphs", members=members))


def test_graphs_made_by_hand_are_checked(store):
    arrays = {name: getattr(store.graphs, name) for name in DTYPES}
    assert equal(CrystalGraphs(**arrays), store.graphs)
    with pytest.raises(GraphError, match="neighbors names a site that its crystal has not"):
        CrystalGraphs(**{**arrays, "neighbors": arrays["neighbors"] + 1000})
    with pytest.raises(GraphError, match="weights must be an array of one dimension of float32"):
        CrystalGraphs(**{**arrays, "weights": arrays["weights"].tolist()})
    with pytest.raises(GraphError, match="degrees must be an array of one dimension of int32"):
        CrystalGraphs(**{**arrays, "degrees": arrays["degrees"].astype(float)})
    with pytest.raises(GraphError, match="atom_offsets must begin with 0 and must not fall"):
        CrystalGraphs(**{**arrays, "atom_offsets": arrays["atom_offsets"] + 1})


def test_store_that_unpacks_without_end_is_refused_at_once(tmp_path, monkeypatch, store):
    monkeypatch.setattr("crysxpp_mm.data.store.LARGE", 1000)
    bomb = tmp_path / "bomb.graphs"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr(HEADER, json.dumps({"format": "crysxpp_mm graph store"}))
        packed.writestr("distances.npy", bytes(10_000_000))
    with pytest.raises(GraphStoreError, match="is refused: it unpacks to 10,000,0"):
        GraphStore.load(bomb)


def test_array_that_says_more_than_it_has_is_refused(tmp_path, store):
    data = npy(store.graphs.distances).replace(b"(236,)", b"(999999999999,)")
    assert b"999999999999" in data
    path = rewritten(tmp_path / "all.graphs", members={"distances.npy": data})
    with pytest.raises(GraphStoreError, match="is damaged"):
        GraphStore.load(path)


@pytest.mark.parametrize("key", ["errors", "notes"])
def test_texts_of_a_header_are_checked(tmp_path, store, key):
    path = rewritten(tmp_path / "all.graphs", **{key: {"a": [1]}})
    with pytest.raises(GraphStoreError, match=f"{key} of its header are no texts"):
        GraphStore.load(path)


def test_file_that_is_no_store_is_refused(tmp_path, archive):
    with pytest.raises(GraphStoreError, match=r"none\.graphs: there is no such file"):
        GraphStore.load(tmp_path / "none.graphs")
    with pytest.raises(GraphStoreError, match=r"cifs\.zip is no graph store of this package"):
        GraphStore.load(archive)
    (tmp_path / "text.graphs").write_text("text")
    with pytest.raises(GraphStoreError, match=r"text\.graphs is no graph store"):
        GraphStore.load(tmp_path / "text.graphs")


def test_store_of_real_crystals_streams(tmp_path, mp_zip):
    few = tmp_path / "few.zip"
    with zipfile.ZipFile(mp_zip) as packed, zipfile.ZipFile(few, "w") as out:
        names = sorted(packed.namelist())[::700]
        for name in names:
            out.writestr(name, packed.read(name))
    kept = build_store(few, tmp_path / "few.graphs", pbar=False)
    assert kept.names == [name for name in names if name.endswith(".cif")]
    sums = np.add.reduceat(kept.graphs.weights, kept.graphs.bond_offsets[:-1])
    assert np.all(sums <= 12 * kept.graphs.n_atoms + 1e-3)


# What files leave open, and odd sources.


def cif_of(*crystals: Structure) -> str:
    """One CIF of several blocks."""
    return "\n".join(
        crystal.to(fmt="cif").replace("data_", f"data_{number}_")
        for number, crystal in enumerate(crystals)
    )


def test_several_crystals_of_a_file_are_several_rows(tmp_path):
    (tmp_path / "one.cif").write_text(make_copper().to(fmt="cif"))
    (tmp_path / "two.cif").write_text("data_global\n_a 1\n" + cif_of(make_nacl(), make_copper()))
    names = ["one.cif", "two.cif#0_NaCl", "two.cif#1_Cu"]
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as packed:
        for name in ("one.cif", "two.cif"):
            packed.write(tmp_path / name, name)
    for source in (tmp_path / "all.zip", tmp_path):
        opened = open_structures(source)
        assert opened.names == names
        found = {name: structure.reduced_formula for name, structure in read(opened).items()}
        assert list(found.values()) == ["Cu", "NaCl", "Cu"]
    assert open_structures(tmp_path / "two.cif").names == names[1:]
    assert row_ids(names) == ["one", "two#0_NaCl", "two#1_Cu"]


def test_broken_block_fails_alone(tmp_path):
    text = cif_of(make_nacl(), make_copper()).replace(
        "_cell_length_a   3", "_cell_length_a   x3", 1
    )
    (tmp_path / "two.cif").write_text(text)
    kept = build_store(tmp_path, tmp_path / "a.graphs", ignore_errors=True, pbar=False)
    assert len(kept.names) == len(kept.errors) == 1


def test_file_that_changes_between_is_named(tmp_path):
    (tmp_path / "two.cif").write_text(cif_of(make_nacl(), make_copper()))
    opened = open_structures(tmp_path)
    (tmp_path / "two.cif").write_text(cif_of(make_nacl()))
    with pytest.raises(DataError, match="was changed while it was read"):
        read(opened)


def test_row_ids_are_bare_names_where_these_tell_rows_apart():
    assert row_ids(["b/x.cif", "a.cif.gz"]) == ["x", "a"]
    assert row_ids(["a/POSCAR", "b/POSCAR", "c.vasp"]) == ["a/POSCAR", "b/POSCAR", "c"]


@pytest.mark.parametrize("keep_doubts", [False, True])
def test_doubts_fail_or_are_kept_with_a_note(tmp_path, keep_doubts):
    doubtful = make_nacl().to(fmt="cif").replace("'Na1 Cl1'", "'Na1 Cl1 H2'")
    (tmp_path / "a.cif").write_text(doubtful)
    make_copper().to(filename=str(tmp_path / "b.cif"))
    out = tmp_path / "a.graphs"
    if not keep_doubts:
        with pytest.raises(DataError, match=r"^a\.cif: the formula of the file .* has H"):
            build_store(tmp_path, out, pbar=False)
        return
    kept = build_store(tmp_path, out, keep_doubts=True, pbar=False)
    assert kept.names == ["a.cif", "b.cif"]
    assert list(kept.notes) == ["a.cif"]
    assert "has H" in kept.notes["a.cif"]
    assert GraphStore.load(out).notes == kept.notes


VASP4 = "NaCl\n1.0\n5.64 0 0\n0 5.64 0\n0 0 5.64\n4 4\nDirect\n" + "\n".join(
    f"{x} {y} {z}" for x in (0, 0.5) for y in (0, 0.5) for z in (0, 0.5)
)


def test_poscar_without_elements_is_refused_everywhere(tmp_path):
    (tmp_path / "POSCAR").write_text(VASP4)
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as packed:
        packed.writestr("a/POSCAR", VASP4)
    pd.DataFrame({"structure": [VASP4]}).to_csv(tmp_path / "table.csv", index=False)
    for name in ("POSCAR", "all.zip", "table.csv"):
        with pytest.raises(DataError, match="the elements are missing"):
            read(open_structures(tmp_path / name))
    named = "\n".join(
        f"{line} {'Na' if row < 11 else 'Cl'}" if row > 6 else line
        for row, line in enumerate(VASP4.splitlines())
    )
    (tmp_path / "POSCAR").write_text(named)  # names behind the coordinates
    (found,) = read(open_structures(tmp_path / "POSCAR")).values()
    assert found.formula == "Na4 Cl4"


def test_poscar_that_counts_more_atoms_than_it_has_lines_is_refused_at_once(tmp_path):
    for counts in ("4 99999999", "4 " + "9" * 5000):
        (tmp_path / "POSCAR").write_text(VASP4.replace("4 4", f"Na Cl\n{counts}"))
        with pytest.raises(DataError, match="atoms are counted in"):
            read(open_structures(tmp_path / "POSCAR"))


@pytest.mark.parametrize(
    "data", ["Å".encode("latin-1"), b"\xff", "ü".encode(), b"\xc3\x28"], ids=str
)
def test_a_byte_that_is_no_utf8_does_not_refuse_a_file(tmp_path, data):
    text = b"# M" + data + b"ller\n" + make_nacl().to(fmt="cif").encode()
    (tmp_path / "a.cif").write_bytes(text)
    (tmp_path / "b.cif").write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    (tmp_path / "c.cif").write_bytes(make_nacl().to(fmt="cif").encode("utf-16"))
    (tmp_path / "POSCAR").write_bytes(data + b" \n" + make_nacl().to(fmt="poscar").encode()[5:])
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as packed:
        for name in ("a.cif", "b.cif", "c.cif"):
            packed.write(tmp_path / name, name)
    for name in ("a.cif", "b.cif", "c.cif", "all.zip"):
        found = read(open_structures(tmp_path / name))
        assert {structure.reduced_formula for structure in found.values()} == {"NaCl"}


def test_table_of_another_encoding_keeps_its_names(tmp_path):
    table = pd.DataFrame({"who": ["Müller"], "structure": [make_nacl().to(fmt="cif")]})
    table.to_csv(tmp_path / "a.csv", index=False, encoding="latin-1")
    source = open_structures(tmp_path / "a.csv")
    assert source.table["who"].tolist() == ["Müller"]
    assert list(read(source)) == ["0"]


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.cif")
    (tmp_path / "t.csv").write_text("structure\npipe.cif\n/dev/zero\nnone.cif\n")
    for payload, message in zip(
        open_structures(tmp_path / "t.csv"),
        ("no regular file", "no regular file", "there is no such file"),
        strict=True,
    ):
        with pytest.raises(DataError, match=message):
            parse(payload)


def test_names_are_checked_before_the_work(tmp_path):
    (tmp_path / "a.cif").symlink_to(tmp_path / "gone.cif")
    with pytest.raises(DataError, match=r"a\.cif is a link to nothing"):
        open_structures(tmp_path)
    (tmp_path / "a.cif").unlink()
    (tmp_path / "b\udcff.cif").write_text(make_nacl().to(fmt="cif"))
    with pytest.raises(DataError, match="is no UTF-8 text; rename it"):
        open_structures(tmp_path)


def test_control_characters_of_a_name_are_escaped(tmp_path):
    (tmp_path / "a\x1b[31m\n.cif").write_text(make_nacl().to(fmt="cif"))
    assert open_structures(tmp_path).names == [r"a\x1b[31m\n.cif"]
    assert list(read(open_structures(tmp_path))) == [r"a\x1b[31m\n.cif"]


def test_blocks_of_long_texts_are_short(monkeypatch):
    monkeypatch.setattr(sources, "BLOCK_BYTES", 100)
    payloads = [Payload(str(i), "x" * size, "cif") for i, size in enumerate((60, 60, 500, 10, 10))]
    assert [len(block) for block in payload_blocks(payloads)] == [1, 1, 1, 2]


def test_table_that_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "LARGE", 1000)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"structure\n" + b"x" * 10_000_000))
    with pytest.raises(DataError, match="is refused: unpacked, it has more than"):
        open_structures(tmp_path / "a.csv.gz")


def test_long_cell_of_a_table_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(structure_texts, "MAX_FILE_BYTES", 1000)
    (tmp_path / "a.csv").write_text("structure\n" + "x" * 5000 + "\n")
    with pytest.raises(DataError, match="0: one structure with more than 1,000 bytes"):
        read(open_structures(tmp_path / "a.csv"))


def test_entries_are_structures(tmp_path):
    entry = ComputedStructureEntry(make_nacl(), -1.0)
    (tmp_path / "one.json").write_text(json.dumps(entry.as_dict()))
    (tmp_path / "many.json").write_text(json.dumps([entry.as_dict(), entry.as_dict()]))
    for name in ("one.json", "many.json"):
        kept = build_store(tmp_path / name, tmp_path / "a.graphs", pbar=False)
        assert kept.graphs.n_atoms[0] == 2
    assert len(build_store([entry], tmp_path / "b.graphs", pbar=False)) == 1
