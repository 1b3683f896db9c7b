"""Every method of the comparison is listed, and what can't run says why."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from bundle.peers import FbpPeer, Scan
from bundle.physics import FanBeamGeometry

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def read(name: str) -> dict:
    return json.loads((CONFIGS / name).read_text(encoding="utf-8"))


GEOMETRY = {key: value for key, value in read("smoke.json")["geometry"].items() if key != "_desc_"}


@pytest.fixture
def methods():
    import methods

    return methods


@pytest.fixture
def tune_peers():
    import tune_peers

    return tune_peers


@pytest.fixture
def config() -> ConfigParser:
    return ConfigParser({**read("evaluate.json"), "geometry": GEOMETRY, "device": torch.device("cpu")})


@pytest.fixture
def scan() -> Scan:
    geometry = FanBeamGeometry(**{key: value for key, value in GEOMETRY.items() if key != "_target_"})
    sinogram = 0.01 * torch.randn(1, 1, *geometry.sinogram_shape, generator=torch.Generator().manual_seed(0))
    return Scan(sinogram=1 + sinogram, geometry=geometry, incident_photons=1e4)


@pytest.fixture
def strengths(tmp_path):
    """Two doses, tuned for FBP and TV only."""
    rows = [
        {"noise_hu": noise, "chosen": {"fbp_hann": {"window": "hann", "cutoff": cutoff}, "tv": {"strength": 1.0}}}
        for noise, cutoff in ((1e-3, 0.9), (1e6, 0.4))
    ]
    path = tmp_path / "strengths.json"
    path.write_text(json.dumps({"noise_window": "hann", "doses": rows}))
    return path


def load(methods, config, tmp_path, names=None, strengths=None):
    strengths = strengths or tmp_path / "none.json"
    return methods.load_methods(config, tmp_path / "no.pt", names, strengths=strengths, peer_weights=tmp_path)


def test_nothing_is_dropped_and_what_is_missing_is_named(methods, config, tmp_path):
    found = load(methods, config, tmp_path)
    assert list(found) == list(methods.METHODS)
    able = {name for name, method in found.items() if method.skipped is None}
    assert able == {"fbp_ram-lak", "zs_n2n"}
    assert all((found[name].call is None) == (name not in able) for name in found)
    for name in ("neighbor2neighbor", "noise2inverse", "supervised"):
        assert f"{name}.pt does not exist" in found[name].skipped
    for name in ("prior", "fused", "restored"):
        assert "no.pt does not exist" in found[name].skipped
    for name in ("fbp_hann", "nlm", "tv"):
        assert "none.json does not exist" in found[name].skipped


def test_a_missing_package_is_a_reason(methods, config, tmp_path, strengths, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm3d", None)
    (method,) = load(methods, config, tmp_path, ["bm3d"], strengths).values()
    assert method.skipped.startswith("package missing") and "requirements-bm3d.txt" in method.skipped


def test_a_method_without_its_strength_is_skipped(methods, config, tmp_path, strengths):
    (method,) = load(methods, config, tmp_path, ["nlm"], strengths).values()
    assert method.skipped.endswith("has none of nlm")


def test_an_unknown_name_is_refused(methods, config, tmp_path):
    with pytest.raises(ValueError, match=r"got \['magic'\]"):
        load(methods, config, tmp_path, ["magic"])


def test_the_tuned_cutoff_is_that_of_the_nearest_noise(methods, config, tmp_path, strengths, scan):
    (method,) = load(methods, config, tmp_path, ["fbp_hann"], strengths).values()
    noise = FbpPeer("hann").with_noise(scan)[1].item()
    assert 1e-3 < noise < 1e6
    cutoff = 0.9 if noise < (1e-3 * 1e6) ** 0.5 else 0.4
    assert torch.equal(method.call(scan), FbpPeer("hann", cutoff)(scan))


def test_trained_peers_and_all_our_stages_run(methods, config, tmp_path, scan):
    torch.save(config.get_parsed_content("projection_def").state_dict(), tmp_path / "neighbor2neighbor.pt")
    training = ConfigParser(read("train_noise2inverse.json"))
    torch.save(training.get_parsed_content("network_def").state_dict(), tmp_path / "noise2inverse.pt")
    config.ref_resolver.reset()
    restorer = config.get_parsed_content("restorer_def").state_dict()
    # Untrained but calibrated: a fusion without its calibration refuses to run.
    restorer = {key: torch.ones_like(value) if value.isnan().any() else value for key, value in restorer.items()}
    for name in ("supervised", "no"):
        torch.save(restorer, tmp_path / f"{name}.pt")
    before = json.dumps(config.get(), default=str)
    names = ["neighbor2neighbor", "noise2inverse", "prior", "fused", "restored", "supervised"]
    found = load(methods, config, tmp_path, names)
    assert json.dumps(config.get(), default=str) == before
    images = {name: method.call(scan) for name, method in found.items()}
    assert all(image.shape == (1, 1, 64, 64) and torch.isfinite(image).all() for image in images.values())
    # Both untrained, one from the other's file.
    assert torch.equal(images["restored"], images["supervised"])


@pytest.mark.parametrize("start", [0.0, 3.0, 9.0])
def test_climbing_finds_the_least_of_a_valley(tune_peers, start):
    best, tried = tune_peers.climb(range(10), start, lambda value: (value - 6) ** 2)
    assert best == 6
    assert {5, 6, 7} <= set(tried)
    assert all(tried[value] == (value - 6) ** 2 for value in tried)


def test_a_best_at_the_end_of_a_grid_is_told(tune_peers):
    inside = {"window": "hann", "cutoff": 1.0, "strength": tune_peers.STEPS[5]}
    assert not tune_peers.at_a_border("tv", inside)
    assert tune_peers.at_a_border("tv", {**inside, "strength": tune_peers.STEPS[-1]})
    assert tune_peers.at_a_border("fbp_hann", {"window": "hann", "cutoff": tune_peers.CUTOFFS[0]})
    assert tune_peers.at_a_border("nlm", {**inside, "patch_size": 15, "patch_distance": 5})


def test_tuning_follows_the_noise_of_the_slices(tune_peers, scan):
    reference = FbpPeer()(Scan(sinogram=torch.ones_like(scan.sinogram), geometry=scan.geometry))
    slices = tune_peers.Slices([scan], [reference])
    chosen, error, seen = tune_peers.tune("tv", slices, {})
    assert error == pytest.approx(min(value for tried in seen.values() for value in tried.values()))
    assert error < slices.score("fbp_hann", chosen["window"], chosen["cutoff"])


def test_strengths_of_the_same_patients_are_kept_and_of_others_not(tune_peers, tmp_path):
    head = {"patients": {"a": [1, 2]}, "grid": {"strength": (0.1, 0.2)}}
    path = tmp_path / "strengths.json"
    assert tune_peers.kept_rows(path, head) == {}
    row = {"dose": 0.25, "chosen": {"tv": {"strength": 0.1}}}
    path.write_text(json.dumps({**head, "doses": [row]}))
    assert tune_peers.kept_rows(path, head) == {0.25: row}
    assert tune_peers.kept_rows(path, {**head, "patients": {"b": [1, 2]}}) == {}
    assert tune_peers.kept_rows(path, {**head, "grid": {"strength": (0.1, 0.3)}}) == {}
