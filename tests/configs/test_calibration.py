"""calibrate.json fits the weights to other data, and says what it did."""

from __future__ import annotations

import json
import re

import pytest
import torch

from bundle.io import write_sinogram
from bundle.physics import FanBeamGeometry

from .files import read, references, targets, without_comments

CONFIG = "calibrate.json"


def smoke_geometry() -> FanBeamGeometry:
    fields = {key: value for key, value in read("smoke.json")["geometry"].items() if not key.startswith("_")}
    return FanBeamGeometry(**fields)


def test_calibration_and_inference_share_scanner_and_networks():
    calibration, inference = (without_comments(read(name)) for name in (CONFIG, "inference.json"))
    own = {"imports", "preprocessing", "dataset", "slices", "run", "_about_"}
    for key in calibration.keys() & inference.keys() - own:
        assert calibration[key] == inference[key], key


def test_calibration_scans_as_inference_does_but_keeps_no_reference():
    ours, theirs = (read(name)["preprocessing"]["transforms"] for name in (CONFIG, "inference.json"))
    assert ours == [theirs[0], {**theirs[1], "reference": False}]


def test_every_key_is_used_and_every_reference_leads_somewhere():
    config = read(CONFIG)
    used = {re.split("#|::", reference)[0] for reference in references(config)}
    keys = {key for key in config if not key.startswith("_")}
    assert keys - used == {"imports", "initialize", "run"}
    assert used <= keys
    assert all(target.count(".") == 2 for target in targets(config) if target.startswith("bundle."))


def test_a_calibration_writes_weights_that_differ_by_it_alone(model, volumes, start, tmp_path):
    output = tmp_path / "new.pt"
    start(CONFIG, dataset_dir=str(volumes), weights=str(model), output=str(output), dose=0.05, slices=1).run()
    old, new = (torch.load(path, weights_only=True) for path in (model, output))
    changed = {key for key in old if not torch.equal(old[key], new[key])}
    assert old.keys() == new.keys()
    assert {"fusion.noise_25", "output_fusion.noise_25"} <= changed
    assert all(".noise_" in key or ".gradient_25" in key for key in changed)
    assert new["fusion.noise_25"] > old["fusion.noise_25"]
    record = json.loads((tmp_path / "calibration.json").read_text())
    assert [(scan["name"], scan["dose"], scan["source"]) for scan in record["scans"]] == [
        ("ada", 0.05, "simulated"),
        ("ben", 0.05, "simulated"),
    ]
    assert record["weights"]["file"] == "model.pt" and record["slices"] == 2


def test_measured_sinograms_calibrate_by_the_photons_of_their_file(model, start, tmp_path):
    geometry = smoke_geometry()
    cells = torch.linspace(-1, 1, geometry.num_cells)
    clean = (5 * (1 - (2 * cells) ** 2).clamp_min(0).sqrt()).expand(2, geometry.num_views, -1)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    write_sinogram(tmp_path / "data" / "scan.npz", clean + 0.05 * noise, geometry, photons=5e3, electronic_variance=0.0)
    start(CONFIG, dataset_dir=str(tmp_path / "data"), weights=str(model), output=str(tmp_path / "new.pt")).run()
    (scan,) = json.loads((tmp_path / "calibration.json").read_text())["scans"]
    assert (scan["source"], scan["incident_photons"], scan["dose"]) == ("file", 5e3, None)


def test_existing_weights_are_kept_unless_asked(model, volumes, start, tmp_path):
    (tmp_path / "new.pt").write_text("mine")
    settings = {"dataset_dir": str(volumes), "weights": str(model), "output": str(tmp_path / "new.pt"), "slices": 1}
    with pytest.raises(RuntimeError) as raised:
        start(CONFIG, **settings).run()
    assert isinstance(raised.value.__cause__, ValueError) and "new.pt: exists" in str(raised.value.__cause__)
    assert (tmp_path / "new.pt").read_text() == "mine"
    start(CONFIG, **settings, overwrite="True").run()
    assert torch.load(tmp_path / "new.pt", weights_only=True)
