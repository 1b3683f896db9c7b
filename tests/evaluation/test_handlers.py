"""What an evaluation engine leaves behind."""

from __future__ import annotations

import csv
import json

import nibabel
import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.inferers import Inferer

from bundle.evaluation import WINDOWS, DoseReport, RestorationWriter
from bundle.io import ScanFrame
from bundle.physics import FanBeamGeometry

from .phantoms import body

GEOMETRY = FanBeamGeometry(
    source_to_center=746.0,
    source_to_detector=1361.0,
    num_views=8,
    num_cells=8,
    cell_pitch=100.0,
    pixel_size=5.0,
    image_shape=(64, 64),
)
ERRORS = {"fbp": 8.0, "prior": 4.0, "fused": 6.0, "restored": 2.0}  # a shift of the whole image, HU


class Shifted(Inferer):
    """Stands for the restorer: every stage is the input with a known shift."""

    seconds = {"fbp": 0.5, "prior": 1.0, "fused": 0.1, "restored": 0.4}

    def __call__(self, inputs, network, *args, **kwargs):
        return torch.cat([inputs + shift for shift in ERRORS.values()], dim=1)


def prepare(batch, device, non_blocking, **kwargs):
    return batch["image"], batch.get("reference"), (), {}


def case(name: str, *, patient: str = "p1", dose: float | None = 0.25, seed: int = 0) -> dict:
    frame = ScanFrame.from_geometry(GEOMETRY, 2, patient=patient, source=name)
    image = body(seed=seed)[None]
    item = {"name": name, "patient": patient, "image": image, "scan": frame.to_json(), "geometry": GEOMETRY.to_json()}
    return item if dose is None else {**item, "dose": dose, "reference": image}


def run(items, *handlers, decollate=False):
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items), batch_size=1),
        network=torch.nn.Identity(),
        inferer=Shifted(),
        prepare_batch=prepare,
        val_handlers=list(handlers),
        decollate=decollate,
    )
    evaluator.logger.disabled = True
    evaluator.run()


def read(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("decollate", [False, True])
def test_a_case_leaves_an_image_a_panel_and_its_metrics(tmp_path, decollate):
    run([case("a")], RestorationWriter(tmp_path), decollate=decollate)
    assert {path.name for path in tmp_path.iterdir()} == {"a_restored.nii.gz", "a_panel.png", "metrics.json"}
    written = nibabel.load(tmp_path / "a_restored.nii.gz")
    assert written.shape == (64, 64, 2)
    expected = (body() + ERRORS["restored"]).numpy().transpose(2, 1, 0)
    np.testing.assert_allclose(written.get_fdata(), expected, atol=1e-3)


def test_metrics_are_means_by_stage_with_their_windows_stated(tmp_path):
    run([case("a"), case("b", seed=1)], RestorationWriter(tmp_path, window="wide"))
    metrics = read(tmp_path / "metrics.json")
    for stage, shift in ERRORS.items():
        row = metrics[stage]
        assert row["rmse_hu"] == pytest.approx(shift, rel=1e-4)
        assert row["hu_bias"] == pytest.approx(shift, rel=1e-3)
        assert (row["psnr"], row["ssim"]) == (row["psnr_wide"], row["ssim_wide"])
        # Air at -1000 HU is at the window's end: a shift upwards stays inside.
        assert row["psnr"] == pytest.approx(20 * np.log10(2000 / shift), abs=0.01)
    assert metrics["windows"] == {name: list(window) for name, window in WINDOWS.items()}
    assert (metrics["window"], metrics["dose"], metrics["n"]) == ("wide", 0.25, {"cases": 2, "slices": 4})
    assert metrics["seconds"]["total"] == pytest.approx(1.0)  # 2 s for a stack of 2
    assert [len(entry["stages"]["fbp"]["slices"]) for entry in metrics["cases"]] == [2, 2]


def test_the_table_states_units_window_and_range(tmp_path, capsys):
    run([case("a")], RestorationWriter(tmp_path))
    text = capsys.readouterr().out
    for part in ("RMSE HU", "PSNR dB", "abdomen [-150, 250] HU", "dose 0.25", "s/slice", "restored"):
        assert part in text


def test_a_measured_scan_is_written_without_error_metrics(tmp_path, capsys):
    run([case("a", dose=None)], RestorationWriter(tmp_path))
    metrics = read(tmp_path / "metrics.json")
    assert set(metrics["restored"]) == {"noise_hu"} and metrics["dose"] is None
    assert metrics["seconds"]["total"] > 0
    assert (tmp_path / "a_panel.png").exists() and "RMSE" not in capsys.readouterr().out


def test_a_scan_without_a_frame_is_written_by_its_geometry(tmp_path):
    item = case("a", dose=None)
    del item["scan"]
    run([item], RestorationWriter(tmp_path))
    assert nibabel.load(tmp_path / "a_restored.nii.gz").header.get_zooms()[:2] == (5.0, 5.0)


def test_the_alarms_of_a_case_are_written_and_logged(tmp_path, caplog):
    sound, drifted = case("sound", dose=None), case("drifted", dose=None)
    # Every ray of the second one ends at both ends of the detector in material.
    for item, line_integral in ((sound, 0.0), (drifted, 1.0)):
        item["sinogram"] = torch.full((1, 2, 8, 8), line_integral) + 0.01 * torch.rand((1, 2, 8, 8))
        item["incident_photons"] = 1e5
    run([sound, drifted], RestorationWriter(tmp_path))
    metrics = read(tmp_path / "metrics.json")
    first, second = ({a["name"]: a for a in entry["alarms"]} for entry in metrics["cases"])
    assert "truncation" not in first and second["truncation"]["slices"] == [0, 1]
    assert second["truncation"]["limit"] == metrics["alarm_limits"]["truncation"]
    assert "case drifted, 2 of 2 slices" in caplog.text and "truncation" in caplog.text


def test_reports_state_windows_and_masks(tmp_path):
    asked = {"restored_to": "object"}
    run([case("a")], RestorationWriter(tmp_path / "one", **asked), DoseReport(tmp_path / "two", **asked))
    for folder in ("one", "two"):
        content = read(tmp_path / folder / "metrics.json")
        assert content["restored_to"] == "object"
        assert content["masks"]["hu_bias_lung, hu_std_lung"] and content["windows"]["head"] == [0, 80]
    with (tmp_path / "two" / "metrics.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert "abdomen [-150, 250] HU" in row["windows"] and float(row["pixels_air"]) >= 0


@pytest.mark.parametrize("name", ["metrics.json", "b_panel.png", "a_restored.nii.gz"])
def test_an_existing_output_stops_the_run_before_any_work(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=name):
        run([case("a"), case("b")], RestorationWriter(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"


def test_outputs_are_replaced_when_asked(tmp_path):
    for _ in range(2):
        run([case("a")], RestorationWriter(tmp_path, overwrite=True))
    assert read(tmp_path / "metrics.json")["n"] == {"cases": 1, "slices": 2}


def test_cases_that_would_overwrite_each_other_are_named(tmp_path):
    with pytest.raises(ValueError, match="'a' more than once"):
        run([case("a"), case("a")], RestorationWriter(tmp_path))


def test_a_writer_that_fails_leaves_nothing_of_its_case(tmp_path):
    def fail(image_hu, like, path, overwrite):
        raise ValueError("disk full")

    with pytest.raises(ValueError, match="disk full"):
        run([case("a")], RestorationWriter(tmp_path / "out", write_nifti=fail))
    assert not (tmp_path / "out").exists()


def test_a_nameless_item_is_refused(tmp_path):
    item = case("a")
    del item["name"]
    with pytest.raises(ValueError, match="must have a 'name'"):
        run([item], RestorationWriter(tmp_path))


def test_the_report_has_a_row_a_case_dose_and_stage(tmp_path, capsys):
    items = [case(name, patient=f"p{name}", dose=dose) for name in "ab" for dose in (0.1, 0.25)]
    run(items, DoseReport(tmp_path))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 4
    assert {(row["case"], row["dose"], row["stage"]) for row in rows} == {
        (name, dose, stage) for name in "ab" for dose in ("0.1", "0.25") for stage in ERRORS
    }
    for row in rows:
        assert row["n"] == "2" and float(row["rmse_hu"]) == pytest.approx(ERRORS[row["stage"]], rel=1e-4)
    assert {f"{key}_{name}" for key in ("psnr", "ssim") for name in WINDOWS} <= set(rows[0])
    assert len(read(tmp_path / "metrics.json")["rows"]) == 16
    assert "0.25" in capsys.readouterr().out


def test_the_summary_counts_patients_not_cases(tmp_path):
    items = [case("a1", patient="a"), case("a2", patient="a"), case("b", patient="b")]
    run(items, DoseReport(tmp_path))
    restored = read(tmp_path / "metrics.json")["summary"]["0.25"]["restored"]
    assert restored["n"] == 2
    assert restored["mean"]["rmse_hu"] == pytest.approx(2, rel=1e-4)
    assert restored["std"]["rmse_hu"] == pytest.approx(0, abs=1e-3)


def test_a_report_needs_references_and_writes_nothing_without(tmp_path):
    with pytest.raises(ValueError, match="'b' must have a reference"):
        run([case("a"), case("b", dose=None)], DoseReport(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["metrics.csv", "metrics.json"])
def test_an_older_report_stops_the_run(tmp_path, name):
    (tmp_path / name).write_text("older")
    with pytest.raises(ValueError, match=name):
        run([case("a")], DoseReport(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("handler", [RestorationWriter, DoseReport])
def test_the_main_window_must_be_one_of_the_windows(tmp_path, handler):
    with pytest.raises(ValueError, match="window must be one of .*'bone'"):
        handler(tmp_path, window="bone")
