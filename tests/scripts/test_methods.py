"""Every method of the comparison is listed, and what can't run says why."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from bundle.peers import FbpPeer

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def read(name: str) -> dict:
    return json.loads((CONFIGS / name).read_text(encoding="utf-8"))


@pytest.fixture
def methods():
    import methods

    return methods


@pytest.fixture
def config(smoke_geometry) -> ConfigParser:
    return ConfigParser({**read("evaluate.json"), "geometry": smoke_geometry, "device": torch.device("cpu")})


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
