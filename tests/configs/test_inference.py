"""From scans to files on disk by the configs; and what stops a run before it leaves anything."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import traceback

import nibabel as nib
import pytest
import torch
from monai.bundle import verify_net_in_out

from bundle.io import write_sinogram
from bundle.physics import FanBeamGeometry, insert_phantom, simulate_low_dose

from .files import CONFIGS, INFER, ROOT, read


def test_a_model_keeps_to_the_size_limit(model):
    assert model.stat().st_size <= 16e6


@pytest.mark.parametrize("config", INFER)
def test_a_config_has_all_properties(config, model, volumes, start, tmp_path):
    workflow = start(config, dataset_dir=str(volumes), output_dir=str(tmp_path), weights=str(model))
    assert workflow.check_properties() == []


def test_the_network_takes_and_gives_what_the_metadata_say(model):
    config, metadata = str(CONFIGS / "inference.json"), str(CONFIGS / "metadata.json")
    verify_net_in_out(
        net_id="network_def", meta_file=metadata, config_file=config, device="cpu", weights=str(model), n=1, p=1, any=1
    )


def test_inference_writes_image_panel_and_metrics(model, volumes, start, tmp_path):
    start("inference.json", input=str(volumes), output_dir=str(tmp_path), weights=str(model)).run()
    names = {"ada_restored.nii.gz", "ada_panel.png", "ben_restored.nii.gz", "ben_panel.png", "metrics.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    restored, original = nib.load(tmp_path / "ada_restored.nii.gz"), nib.load(volumes / "ada.nii")
    assert restored.shape == original.shape
    assert (restored.affine == original.affine).all()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert all(metrics[stage]["rmse_hu"] > 0 for stage in ("fbp", "prior", "fused", "restored"))


def test_inference_restores_to_the_object_where_it_is_asked_to(model, volumes, start, tmp_path):
    settings = {"input": str(volumes), "weights": str(model), "slices": 1}
    for aim in ("backprojection", "object"):
        start("inference.json", **settings, output_dir=str(tmp_path / aim), restore_to=aim).run()
    fbp, exact = (json.loads((tmp_path / aim / "metrics.json").read_text()) for aim in ("backprojection", "object"))
    assert (fbp["restored_to"], exact["restored_to"]) == ("backprojection", "object")
    # Another reference, and another image.
    assert exact["fbp"]["rmse_hu"] != fbp["fbp"]["rmse_hu"]
    images = [nib.load(tmp_path / aim / "ada_restored.nii.gz").get_fdata() for aim in ("backprojection", "object")]
    assert abs(images[0] - images[1]).max() > 1


def test_a_measured_sinogram_is_restored_in_its_own_geometry(model, start, tmp_path):
    fields = {key: value for key, value in read("smoke.json")["geometry"].items() if not key.startswith("_")}
    geometry = FanBeamGeometry(**{**fields, "num_views": 70, "image_shape": (48, 40)})
    sinogram = torch.rand(2, *geometry.sinogram_shape, generator=torch.Generator().manual_seed(0))
    path = write_sinogram(tmp_path / "scan.npz", sinogram, geometry)
    output = tmp_path / "output"
    start("inference.json", input=str(path), output_dir=str(output), weights=str(model)).run()
    assert nib.load(output / "scan_restored.nii.gz").shape == (40, 48, 2)
    assert "rmse_hu" not in json.loads((output / "metrics.json").read_text())["restored"]


@pytest.mark.parametrize("photons", [None, 15_000.0], ids=["unsaid", "said"])
def test_the_record_of_a_measured_scan_says_how_its_photons_are_known(photons, model, start, tmp_path):
    fields = {key: value for key, value in read("inference.json")["geometry"].items() if not key.startswith("_")}
    fields.pop("_target_", None)
    geometry = FanBeamGeometry(
        **{**fields, "num_views": 576, "num_cells": 224, "pixel_size": 2.8, "image_shape": (64, 64)}
    )
    clean = insert_phantom().line_integrals(geometry, mu_water=0.0192)[:, 0].float()
    generator = torch.Generator().manual_seed(0)
    path = write_sinogram(
        tmp_path / "scan.npz", simulate_low_dose(clean, 20_000.0, generator=generator), geometry, photons=photons
    )
    output = tmp_path / "output"
    start("inference.json", input=str(path), output_dir=str(output), weights=str(model)).run()
    (case,) = json.loads((output / "metrics.json").read_text())["cases"]
    assert case["photons_estimated"] is (photons is None)
    assert case["incident_photons"] == pytest.approx(photons or 20_000.0, rel=0.05)


def test_evaluation_measures_every_stage_at_every_dose(model, volumes, start, tmp_path):
    settings = {"dataset_dir": str(volumes), "output_dir": str(tmp_path), "weights": str(model), "doses": [0.1, 1.0]}
    start("evaluate.json", **settings, slices=1).run()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 4
    error = {(row["case"], row["dose"], row["stage"]): float(row["rmse_hu"]) for row in rows}
    assert error["ada", "0.1", "fbp"] > error["ada", "1.0", "fbp"]


def test_the_command_line_runs_from_any_folder(model, volumes, tmp_path):
    arguments = {"input": volumes / "ada.nii", "output_dir": "restored", "weights": model, "slices": 1, "dose": 0.1}
    command = _run_inference(arguments, tmp_path)
    assert command.returncode == 0, command.stderr
    assert json.loads((tmp_path / "restored" / "metrics.json").read_text())["dose"] == 0.1


def test_the_command_line_names_a_missing_weight_file_and_leaves_nothing(volumes, tmp_path):
    command = _run_inference({"input": volumes, "output_dir": "restored", "weights": "no/model.pt"}, tmp_path)
    assert command.returncode != 0
    assert "weight file no/model.pt does not exist" in command.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"weights": "cut.pt"}, "cut.pt (100 bytes) can't be read as weights"),
        ({"input": "nothing"}, "nothing: no such file or folder"),
        ({"input": "empty"}, "empty: expected NIfTI, NPZ or DICOM CT scans, found none"),
        ({"dose": 0.0}, "dose must be a positive number, got 0.0"),
        ({"dose": -1}, "dose must be a positive number, got -1"),
        ({"window": "knee"}, "window must be one of"),
        ({"restore_to": "health"}, "must be one of ('backprojection', 'object'), got 'health'"),
        ({"slices_per_batch": 0}, "slices_per_batch must be 1 or more, got 0"),
        ({"slices": 0}, "slices must be None (all) or at least 1, got 0"),
    ],
)
def test_what_can_not_be_stops_before_anything_is_written(settings, says, model, volumes, start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut.pt").write_bytes(model.read_bytes()[:100])
    settings = {"input": str(volumes), "weights": str(model), "output_dir": "output", **settings}
    with pytest.raises(Exception) as raised:  # noqa: PT011 -- MONAI wraps some of them in its own
        start("inference.json", **settings).run()
    assert says in "".join(traceback.format_exception(raised.value))
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("config", "existing"), [("inference.json", "ada_panel.png"), ("evaluate.json", "metrics.csv")]
)
def test_an_existing_output_is_kept_unless_asked(config, existing, model, volumes, start, tmp_path):
    (tmp_path / existing).write_text("mine")
    workflow = start(config, dataset_dir=str(volumes), output_dir=str(tmp_path), weights=str(model))
    with pytest.raises(RuntimeError) as raised:
        workflow.run()
    assert isinstance(raised.value.__cause__, ValueError)
    assert existing in str(raised.value.__cause__)
    assert [path.name for path in tmp_path.iterdir()] == [existing]
    assert (tmp_path / existing).read_text() == "mine"


def _run_inference(arguments: dict, folder) -> subprocess.CompletedProcess:
    """``python -m monai.bundle run`` in another folder, which the bundle is not importable from by itself."""
    words = [str(word) for key, value in arguments.items() for word in (f"--{key}", value)]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(CONFIGS / "inference.json"), *words]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    assert ROOT not in folder.parents
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
