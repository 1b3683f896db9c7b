"""The tables of the phantoms from rows whose answers are known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from bundle.evaluation import TISSUES

NAMES = ("fbp_ram-lak", "restored")


@pytest.fixture
def report():
    from tasks_report import NOISE_FREE, Report

    def anatomy(method, dose, noise, rmse):
        tissues = {f"{what}_{t}": value for t in TISSUES for what, value in (("hu_bias", -rmse / 10), ("pixels", 50))}
        scores = {f"{what}_{w}": rmse for what in ("ssim", "psnr") for w in ("abdomen", "chest", "head")}
        key = {"part": "anatomy", "phantom": "abdomen 0", "dose": dose, "noise": noise, "method": method}
        return {**key, "rmse_hu": rmse, **scores, **tissues}

    observed = {"part": "rods", "rod": "3 mm", "dose": 0.25, "channels": "10", "mask": "regions", "n": 200}
    observed |= {"n_background": 200, "confidence": 0.95, "low": 0.5, "high": 0.9}
    rows = [
        anatomy(m, d, k, error * (1 + k) / d) for m, error in zip(NAMES, (10, 5)) for d in (0.25, 1.0) for k in (0, 1)
    ]
    rows += [
        anatomy(NOISE_FREE, None, None, 4.0),
        {**observed, "method": "fbp_ram-lak", "auc": 0.8},
        {**observed, "method": "restored", "auc": 0.7, "gain": -0.1, "gain_low": -0.2, "gain_high": 0.05},
        {"method": "fbp_ram-lak", "ttf50": 0.5, "ttf10": 1.0, "cnr": 10.0, "contrast": 350.0, "background_noise": 35.0},
        {"method": "restored", "ttf50": 0.4, "ttf10": None, "cnr": None, "contrast": 349.0, "background_noise": 0.0},
    ]
    discs = {"part": "inserts", "insert": "+350 HU", "n": 40, "detail_pixels": 1000, "background_pixels": 2000}
    rows = [*rows[:-2], *({**discs, **row} for row in rows[-2:])]
    rows += [
        {
            "part": "noise",
            "dose": 0.25,
            "method": m,
            "mask": "middle",
            "n": 9,
            "variance": s**2,
            "peak": 0.5,
            "mean_frequency": 0.4,
        }
        for m, s in zip(NAMES, (30.0, 6.0))
    ]
    methods = {name: SimpleNamespace(name=name, title=name.upper()) for name in NAMES}
    bench = SimpleNamespace(
        methods=methods,
        windows={"abdomen": (-150, 250), "chest": (-1000, 200), "head": (0, 80)},
        geometry=SimpleNamespace(image_shape=(512, 512)),
        scanner=lambda: "a scanner",
    )
    return Report(rows, bench)


def test_a_cell_is_the_mean_over_scans_with_lowest_and_highest(report):
    page = report.page("")
    assert "n = 2 scans a dose: abdomen 0, 2 noise realisation(s) each" in page
    assert "| RESTORED | 30.0 (20.0 to 40.0) | 7.5 (5.0 to 10.0) |" in page
    # Without noise every dose is the same.
    assert "| FBP, Ram-Lak, without any noise | 4.0 | 4.0 |" in page


def test_detectability_stands_beside_what_the_fbp_has_on_the_same_noise(report):
    page = report.page("")
    assert "| RESTORED | 0.700 (0.500 to 0.900) |" in page
    assert "| ... less FBP, held out | -0.100 (-0.200 to +0.050) |" in page
    assert page.count("less FBP, held out") == 1


def test_sharpness_is_also_a_share_and_what_is_never_reached_is_a_dash(report):
    lines = report.transfer()
    assert any("| RESTORED | 0.400 (80%) |" in line for line in lines)
    assert any("| RESTORED | - |" in line for line in lines)


def test_contrast_stands_with_its_parts_its_places_and_how_many(report):
    text = "\n".join(report.contrast())
    assert "| FBP_RAM-LAK | 10.0 (350.0 / 35.0) |" in text
    assert "| RESTORED | - (349.0 / 0.0) |" in text
    assert "40 scans at 25% dose" in text and "(1000 pixels in all)" in text and "1.75 (2000)" in text
    assert text in report.page("")


def test_the_contrast_of_a_disc_is_what_was_drawn():
    """Its blurred rim counts for neither."""
    from measure_tasks import _contrast

    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(80.0), indexing="ij")
    distance = torch.hypot(rows - 30.5, columns - 41)
    disc = torch.where(distance < 10.5, 120.0, 0.0)
    disc[(distance > 8.5) & (distance < 12)] = 900
    noise = 20 * torch.randn(50, 64, 80, generator=torch.Generator().manual_seed(0))
    found = _contrast(disc + noise, (30.5, 41), 10)
    assert found["contrast"] == pytest.approx(120, abs=1)
    assert found["background_noise"] == pytest.approx(20, rel=0.01)
    assert found["cnr"] == pytest.approx(found["contrast"] / found["background_noise"])
    assert found["detail_pixels"] == pytest.approx(50 * torch.pi * 8**2, rel=0.05)


def test_lung_is_asked_of_chests_alone(report):
    (row,) = (line for line in report.bias()[-1].splitlines() if line.startswith("| RESTORED"))
    assert row.split("|")[2 + list(TISSUES).index("lung")].strip() == "-"


def test_noise_is_told_by_its_size_and_its_frequencies(report):
    assert "| RESTORED | 6.0 | 0.500 | 0.400 |" in "\n".join(report.noise(""))
