"""The tables of quality from rows whose answers are known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

DOSES = (0.1, 0.25)
#: RMSE by method at full dose of a unit; twice as much at the lower dose, three times that of BM3D.
ERRORS = {"fbp_ram-lak": 40.0, "nlm": 20.0, "tv": 10.0, "bm3d": 8.0, "noise2inverse": 16.0, "restored": 5.0}
GROUPS = {"noise2inverse": "self-supervised", "restored": "ours"}
WINDOWS = {"abdomen": (-150.0, 250.0)}


@pytest.fixture
def report():
    from quality_report import Report

    methods = {
        name: SimpleNamespace(name=name, title=name.upper(), group=GROUPS.get(name, "classical"), skipped=None)
        for name in ERRORS
    }
    methods["neighbor2neighbor"] = SimpleNamespace(title="N2N", group="self-supervised", skipped="no weights")
    rows = [
        {
            "patient": patient,
            "case": patient,
            "slice": index,
            "dose": dose,
            "method": name,
            "rmse_hu": error * factor * ((3 if name == "bm3d" else 2) if dose == 0.1 else 1),
            "hu_bias_soft_tissue": -0.5,
            "ssim_abdomen": 0.9,
        }
        for patient, factor in (("ada", 1.0), ("ben", 3.0))
        for index in (0, 1)
        for dose in DOSES
        for name, error in ERRORS.items()
    ]
    return Report(rows, methods, WINDOWS, DOSES)


def test_a_cell_is_the_mean_over_patients_with_lowest_and_highest(report):
    text = report.table("rmse_hu", ["restored"], DOSES)
    assert "| RESTORED | 20.0 (10.0 to 30.0) | 10.0 (5.0 to 15.0) |" in text


def test_gains_are_in_db_with_the_slices_won(report):
    assert "| TV | 6.02 (6.02 to 6.02); 4/4 | 6.02 (6.02 to 6.02); 4/4 |" in report.gain_table()
    assert "| BM3D | 7.60 (7.60 to 7.60); 4/4 | 4.08 (4.08 to 4.08); 4/4 |" in report.gain_table()


def test_the_best_peer_is_the_one_that_is_beaten_by_least(report):
    assert [report.best_peer("ben", dose)[0] for dose in DOSES] == ["tv", "bm3d"]
    assert "| ada | +6.02; 2/2 (TV) | +4.08; 2/2 (BM3D) |" in report.best_table()


def test_the_front_page_shows_the_best_of_each_kind_and_whatever_is_hardest_to_beat_for_a_patient(report):
    text = report.short()
    assert "| TV |" in text and "| NOISE2INVERSE |" in text and "| RESTORED |" in text
    assert "| NLM |" not in text and "| BM3D |" in text


def test_the_front_page_says_who_was_measured_and_how(report):
    text = report.short()
    assert "2 patients that training never saw (slices: ada: 2, ben: 2)" in text
    assert "SSIM, abdomen [-150, 250] HU, range its width" in text


def test_a_skipped_method_is_listed_with_its_reason(report):
    assert report.skipped() == ["N2N: skipped, no weights"]


def test_the_page_has_every_table_its_windows_and_its_masks(report):
    asked = {"figure_window": "abdomen", "figure_dose": 0.1, "figure_credit": "phantom"}
    page = report.page(SimpleNamespace(restore_to="object", name="objects", **asked), True)
    assert "measured by the object" in page and "(objects_rmse.png)" in page and "objects.csv" in page
    for part in ("## HU bias, soft tissue", "reference under a Gaussian", "[-150, 250] HU", "phantom", "N2N"):
        assert part in page


def test_the_plot_is_a_picture(report, tmp_path):
    report.plot(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
