"""Reports on disk and as text."""

from __future__ import annotations

import csv

import pytest

from bundle.evaluation import table, write_csv, write_json


def test_rows_are_written_under_the_columns_of_all(tmp_path):
    write_csv(tmp_path / "rows.csv", [{"a": 1, "b": None}, {"a": 2, "c": 0.5}])
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"a": "1", "b": "", "c": ""}, {"a": "2", "b": "", "c": "0.5"}]


def test_what_json_cannot_say_leaves_no_file(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "report.json", {"psnr": float("inf")})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [lambda path: write_json(path, {}), lambda path: write_csv(path, [{"a": 1}])])
def test_an_older_report_is_kept(tmp_path, write):
    path = tmp_path / "report"
    path.write_text("older")
    with pytest.raises(ValueError, match="report"):
        write(path)
    assert path.read_text() == "older"


def test_a_table_lines_up_and_marks_what_is_missing():
    lines = table(["stage", "RMSE HU"], [["fbp", 28.123], ["restored", None]]).splitlines()
    assert lines[2:] == ["fbp         28.12", "restored        -"]
