"""Calibration: what is measured, on which photons, and what is left on disk."""

from __future__ import annotations

import json
import logging
import math

import pytest
import torch

from bundle.inference import (
    CalibrationImages,
    RestorerCalibration,
    SelfCorrectingFusion,
    calibrate_fusions,
    calibration_images,
    load_weights,
    scan_noise,
)
from bundle.io import write_sinogram
from bundle.physics import FanBeamProjector, hu_to_attenuation, simulate_low_dose

from .parts import SCANNER, Unchanged, restorer

PHOTONS, ELECTRONIC = 1e4, 10.0


def scan(photons: float = PHOTONS, slices: int = 2, seed: int = 0) -> torch.Tensor:
    """Noisy line integrals ``(S, V, D)`` of water that fades out softly: an edge would count as noise."""
    x, y = (torch.from_numpy(c) for c in SCANNER.pixel_coordinates())
    disc = torch.exp(-(((x[None] ** 2 + y[:, None] ** 2) / 110**2) ** 2)).float()
    clean = FanBeamProjector(SCANNER)(hu_to_attenuation(disc * 1000 - 1000)[None, None]).expand(slices, -1, -1, -1)
    generator = torch.Generator().manual_seed(seed)
    return simulate_low_dose(clean[:, 0], photons, electronic_variance=ELECTRONIC, generator=generator)


def simulated(name: str = "ada", **changes) -> dict:
    """An item as the transforms give it."""
    item = {
        "name": name,
        "patient": name,
        "kind": "ct",
        "path": f"{name}.nii",
        "sinogram": scan()[None],
        "slice": torch.tensor([3, 5]),
        "geometry": SCANNER.to_json(),
        "dose": 0.25,
        "incident_photons": PHOTONS,
    }
    return item | changes


def measured(folder, **known) -> dict:
    path = write_sinogram(folder / "ben.npz", scan(), SCANNER, **known)
    item = simulated("ben", kind="sinogram", path=str(path))
    return {key: value for key, value in item.items() if key not in ("dose", "incident_photons")}


def uncalibrated(**changes):
    return restorer(**{"fusion": SelfCorrectingFusion(), "output_fusion": SelfCorrectingFusion(), **changes})


def test_both_parts_show_the_same_slices_with_independent_noise():
    network = uncalibrated(projection=Unchanged())
    images = calibration_images(network, scan(), SCANNER, PHOTONS)
    assert images.low_dose.shape == images.prior.shape == images.independent.shape == (2, 1, 32, 32)
    # The slices are alike, so their difference is noise; a fifth of the photons has twice that of four fifths.
    kept, left = ((image[0] - image[1])[:, 10:22, 10:22] for image in (images.low_dose, images.independent))
    assert left.std() / kept.std() == pytest.approx(2, rel=0.25)
    assert abs(float((kept * left).mean() / (kept.std() * left.std()))) < 0.25


def test_the_parting_belongs_to_the_name_and_the_seed():
    network, sinogram = uncalibrated(), scan(slices=1)
    first, again, other = (
        calibration_images(network, sinogram, SCANNER, PHOTONS, name=name) for name in ("ada", "ada", "ben")
    )
    assert torch.equal(first.low_dose, again.low_dose) and not torch.equal(first.low_dose, other.low_dose)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_n25_is_the_noise_of_all_the_photons_whatever_was_kept(share):
    noise = torch.randn(3, 2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    low_dose, prior, independent = 40 + noise * torch.tensor([20 / math.sqrt(share), 1.0, 20.0]).view(3, 1, 1, 1, 1)
    after = calibrate_fusions(uncalibrated(), [CalibrationImages(low_dose, prior, independent, share)])
    assert after["fusion"]["noise_25"] == pytest.approx(20, rel=0.05)


def test_all_fusions_are_calibrated_and_weigh_as_they_were_measured():
    network = uncalibrated()
    images = calibration_images(network, scan(), SCANNER, PHOTONS)
    after = calibrate_fusions(network, [images])
    assert set(after) == {"fusion", "output_fusion"}
    plain = SelfCorrectingFusion().calibrate(images.low_dose, images.prior, images.independent)
    pair = images.low_dose, images.prior
    torch.testing.assert_close(network.fusion.weight(*pair), plain.weight(*pair))
    assert math.isfinite(network.restore(scan()[:, None]).restored.sum())


def test_a_network_without_output_fusion_is_calibrated_too():
    network = uncalibrated(output_fusion=None)
    images = calibration_images(network, scan(), SCANNER, PHOTONS)
    assert set(calibrate_fusions(network, [images])) == {"fusion"}


def test_images_of_another_share_are_not_mixed_in():
    image = torch.randn(1, 1, 32, 32)
    parts = [CalibrationImages(image, image, image, share) for share in (0.5, 0.8)]
    with pytest.raises(ValueError, match=r"one share of the photons, got \[0.5, 0.8\]"):
        calibrate_fusions(uncalibrated(), parts)


def test_photons_of_the_file_win_over_the_setting_and_over_the_estimate(tmp_path):
    known = scan_noise(measured(tmp_path, photons=PHOTONS, electronic_variance=3.0), incident_photons=5.0)
    assert (known.source, known.model.incident_photons, known.model.electronic_variance) == ("file", PHOTONS, 3.0)


def test_photons_of_the_setting_stand_in_for_a_file_that_does_not_say(tmp_path):
    known = scan_noise(measured(tmp_path), incident_photons=PHOTONS)
    assert (known.source, known.model.incident_photons) == ("setting", PHOTONS)


def test_photons_that_nobody_says_are_estimated(tmp_path):
    item = measured(tmp_path, electronic_variance=ELECTRONIC)
    known = scan_noise({**item, "sinogram": scan(slices=24)[None]})
    assert known.source == "estimated" and known.estimate.rays > 0
    assert known.model.incident_photons == pytest.approx(PHOTONS, rel=0.2)


def test_photons_that_nobody_can_tell_are_asked_for(tmp_path):
    item = measured(tmp_path)
    with pytest.raises(ValueError, match=r"ben: its file has no field photons.*no noise.*set incident_photons"):
        scan_noise({**item, "sinogram": torch.zeros(1, 1, 60, 48)})


def test_a_photon_number_that_the_noise_contradicts_is_warned_of(tmp_path, caplog):
    item = measured(tmp_path, photons=PHOTONS * 4, electronic_variance=ELECTRONIC)
    with caplog.at_level(logging.WARNING):
        known = scan_noise({**item, "sinogram": scan(slices=24)[None]})
    assert known.model.incident_photons == PHOTONS * 4
    assert "ben: 4e+04 incident photons a ray by its file, but its noise is that of" in caplog.text


def test_the_written_weights_hold_the_calibration_that_the_record_tells(tmp_path):
    network = uncalibrated()
    items = [simulated(), measured(tmp_path, photons=PHOTONS)]
    output = tmp_path / "new" / "model.pt"
    RestorerCalibration(network, items, output, electronic_variance=ELECTRONIC).run()
    record = json.loads((tmp_path / "new" / "calibration.json").read_text())
    again = load_weights(uncalibrated(), output)
    assert again.fusion.noise_25.item() == record["after"]["fusion"]["noise_25"] > 0
    assert again.output_fusion.noise_scale.item() == record["after"]["output_fusion"]["noise_scale"]
    assert record["before"]["fusion"]["noise_25"] is None
    assert record["slices"] == 4 and record["ramp_window"] == "ram-lak"
    first, second = record["scans"]
    assert (first["source"], first["dose"], first["slices"]) == ("simulated", 0.25, [3, 5])
    assert (second["source"], second["dose"], second["incident_photons"]) == ("file", None, PHOTONS)
    assert first["geometry"] == json.loads(SCANNER.to_json())


def test_the_record_names_the_weights_that_it_started_from(tmp_path):
    network = uncalibrated()
    weights = tmp_path / "trained.pt"
    torch.save(network.state_dict(), weights)
    record = RestorerCalibration(network, [simulated()], tmp_path / "model.pt", weights=weights).run()
    assert record["weights"]["file"] == "trained.pt" and len(record["weights"]["sha256"]) == 64


@pytest.mark.parametrize("existing", ["model.pt", "calibration.json"])
def test_what_is_there_is_kept_unless_asked(existing, tmp_path):
    (tmp_path / existing).write_text("mine")
    output = tmp_path / "model.pt"
    with pytest.raises(ValueError, match=f"{existing}: exists"):
        RestorerCalibration(uncalibrated(), [simulated()], output).run()
    assert [path.name for path in tmp_path.iterdir()] == [existing] and (tmp_path / existing).read_text() == "mine"
    RestorerCalibration(uncalibrated(), [simulated()], output, overwrite=True).run()
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt", "calibration.json"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kept_share": 1.0}, "kept_share must be between 0 and 1, got 1.0"),
        ({"incident_photons": 0.0}, "incident_photons must be a positive number, got 0.0"),
        ({"scans": []}, "at least one scan"),
        ({"scans": [simulated(sinogram=torch.zeros(1, 2, 60, 48))]}, "no body"),
    ],
)
def test_what_cannot_be_calibrated_on_leaves_nothing(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        RestorerCalibration(uncalibrated(), **{"scans": [simulated()], "output": tmp_path / "m.pt", **arguments}).run()
    assert not list(tmp_path.iterdir())
