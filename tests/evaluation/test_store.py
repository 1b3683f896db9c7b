"""Rows that outlive the run that measured them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundle.evaluation import RowStore

VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
ROWS = st.lists(st.dictionaries(st.text(), VALUES, max_size=4), max_size=5)


@given(rows=ROWS)
def test_rows_come_back_as_they_were_added(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("store") / "rows.jsonl"
    store = RowStore(path)
    for row in rows:
        store.add(row)
    assert store.rows() == RowStore(path).rows() == rows
    assert all(store.has(**row) for row in rows)


def test_a_store_makes_its_file_with_the_first_row(tmp_path):
    store = RowStore(tmp_path / "deep" / "rows.jsonl")
    assert not store.has(a=1) and not list(tmp_path.iterdir())
    store.add({"a": 1})
    assert len(RowStore(store.path)) == 1


def test_a_key_chooses_the_rows_that_hold_all_of_it(tmp_path):
    store = RowStore(tmp_path / "rows.jsonl")
    for dose in (0.1, 0.25):
        store.add({"dose": dose, "slices": (1, 2), "method": "fbp"})
    assert store.has(dose=0.25, slices=(1, 2)) and not store.has(dose=0.25, method="nlm")
    assert [row["dose"] for row in store.rows(method="fbp")] == [0.1, 0.25]
    assert store.has(seed=None) and not store.has(seed=0)


@pytest.mark.parametrize("cut", range(1, len('{"value": 2}') + 1))
def test_an_interrupted_row_is_not_measured_and_is_written_anew(tmp_path, cut):
    path = tmp_path / "rows.jsonl"
    for value in (1, 2):
        RowStore(path).add({"value": value})
    path.write_bytes(path.read_bytes()[:-cut])
    store = RowStore(path)
    assert store.rows() == [{"value": 1}]
    store.add({"value": 3})
    assert RowStore(path).rows() == [{"value": 1}, {"value": 3}]


def test_what_another_run_added_is_kept(tmp_path):
    first, second = RowStore(tmp_path / "rows.jsonl"), RowStore(tmp_path / "rows.jsonl")
    first.add({"value": 1})
    second.add({"value": 2})
    first.add({"value": 3})
    assert [row["value"] for row in RowStore(first.path).rows()] == [1, 2, 3]


def test_the_caller_can_not_change_what_is_stored(tmp_path):
    store = RowStore(tmp_path / "rows.jsonl")
    store.add({"a": 1})
    store.rows()[0]["a"] = 2
    assert store.rows() == [{"a": 1}]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_what_json_can_not_say_is_named_and_leaves_nothing(tmp_path, value):
    with pytest.raises(ValueError, match="'psnr'"):
        RowStore(tmp_path / "rows.jsonl").add({"psnr": value})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [b"{'a'\n", b"[1]\n", b"\xff\n"])
def test_a_damaged_line_is_named(tmp_path, damage):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + damage + b'{"a": 2}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2"):
        RowStore(path)


def test_a_folder_is_no_store(tmp_path):
    with pytest.raises(ValueError, match="is a folder"):
        RowStore(tmp_path)
