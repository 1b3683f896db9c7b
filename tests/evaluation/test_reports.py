"""Reports on disk and as text."""

from __future__ import annotations

import csv

import pytest

from bundle.evaluation import (
    insert_between_markers,
    markdown_table,
    paired_gains,
    patient_means,
    spread,
    table,
    write_csv,
    write_json,
)


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


def test_text_takes_its_place_between_the_markers_and_nothing_else_changes(tmp_path):
    page = tmp_path / "page.md"
    page.write_bytes(b"before\r\n<!-- a -->old<!-- /a -->\nafter <!-- b -->kept<!-- /b -->")
    for _ in range(2):
        insert_between_markers(page, "a", "new\n\n")
        assert page.read_bytes() == b"before\r\n<!-- a -->\nnew\n<!-- /a -->\nafter <!-- b -->kept<!-- /b -->"


@pytest.mark.parametrize("text", ["", "<!-- a -->", "<!-- /a --> <!-- a -->", "<!-- a --> <!-- /a --> <!-- a -->"])
def test_a_page_without_its_markers_is_named_and_kept(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match="page.md must hold <!-- a --> and <!-- /a -->"):
        insert_between_markers(page, "a", "new")
    assert page.read_text() == text


def test_a_page_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ValueError, match="page.md does not exist"):
        insert_between_markers(tmp_path / "page.md", "a", "new")


def test_a_markdown_table_has_as_many_cells_in_every_row():
    lines = markdown_table(["", "25 %"], [["a|b", "1"]]).splitlines()
    assert lines == ["|  | 25 % |", "|---|---:|", "| a\\|b | 1 |"]
    with pytest.raises(ValueError, match="must have 2 cells"):
        markdown_table(["", "25 %"], [["a"]])


def test_a_spread_tells_mean_lowest_and_highest_of_what_is_there():
    assert spread([1.0, None, 4.0], 1) == "2.5 (1.0 to 4.0)"
    assert (spread([2.0]), spread([None])) == ("2.00", "-")


def rows_of(**errors):
    return [
        {"patient": patient, "case": patient, "slice": index, "dose": 0.25, "rmse_hu": error}
        for patient, values in errors.items()
        for index, error in enumerate(values)
    ]


def test_every_patient_counts_by_their_own_mean():
    rows = [*rows_of(a=[1.0, 3.0], b=[5.0]), {"patient": "c", "rmse_hu": None}]
    assert patient_means(rows, "rmse_hu") == {"a": 2.0, "b": 5.0, "c": None}


def test_half_the_error_is_a_gain_of_6_db_on_the_slices_of_both():
    gains = paired_gains(rows_of(a=[1.0, 2.0, 50.0], b=[3.0]), rows_of(a=[2.0, 4.0]))
    assert set(gains) == {"a"}
    assert gains["a"]["gain_db"] == pytest.approx(6.02, abs=0.01)
    assert (gains["a"]["wins"], gains["a"]["n"]) == (2, 2)


def test_a_gain_changes_its_sign_with_the_sides():
    ours, peer = rows_of(a=[1.0, 5.0]), rows_of(a=[2.0, 3.0])
    there, back = (paired_gains(*sides)["a"] for sides in ((ours, peer), (peer, ours)))
    assert there["gain_db"] == pytest.approx(-back["gain_db"])
    assert (there["wins"], back["wins"]) == (1, 1)


def test_a_slice_measured_twice_is_not_compared():
    with pytest.raises(ValueError, match="more than once"):
        paired_gains(rows_of(a=[1.0]) * 2, rows_of(a=[1.0]))
