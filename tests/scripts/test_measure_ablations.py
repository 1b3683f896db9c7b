"""Which ablations are found, and with which weights."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def measure_ablations():
    import measure_ablations

    return measure_ablations


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"projection.a": torch.zeros(1), "refiner.b": torch.zeros(1), "fusion.c": torch.zeros(1)}, path)
    return path


def find(module, weights, trained):
    return {one.name: one for one in module.find_ablations(weights, trained, weights.parent / "scratch")}


def test_the_whole_comes_first_and_what_was_not_trained_is_skipped_with_its_reason(measure_ablations, weights):
    found = find(measure_ablations, weights, weights.parent)
    assert next(iter(found)) == "whole"
    assert found["no_mask"].skipped == "no weights: no_mask/projection.pt was not trained"
    assert found["plain"].skipped == "no weights: plain/diffusion.pt was not trained"
    assert (
        find(measure_ablations, weights, None)["no_mask"].skipped
        == "no folder of trained weights was given (--trained)"
    )
    assert all(one.skipped is None and one.weights == weights for one in found.values() if one.kind == "inference")


def test_the_config_of_an_earlier_stage_is_no_ablation_of_its_own(measure_ablations, weights):
    found = find(measure_ablations, weights, None)
    assert "no_noise_map" in found and "no_noise_map_autoencoder" not in found


@pytest.mark.parametrize(
    ("name", "part", "key", "other"),
    [("no_mask", "projection", "projection.a", "refiner.b"), ("steps_1", "diffusion", "refiner.b", "projection.a")],
)
def test_a_trained_stage_takes_the_place_of_the_shipped_one(
    measure_ablations, weights, name, part, key, other, monkeypatch
):
    folder = weights.parent / name
    folder.mkdir()
    torch.save({key.split(".")[1]: torch.ones(1)}, folder / f"{part}.pt")
    ablation = find(measure_ablations, weights, weights.parent)[name]
    joined = torch.load(ablation.weights, weights_only=True)
    assert joined[key] == 1 and joined[other] == 0 and joined["fusion.c"] == 0
    assert ablation.skipped is None
    # A row that was measured is found again only by the same version, which another run must come to, too.
    version = ablation.version
    monkeypatch.setattr("os.getpid", lambda: 1)
    assert find(measure_ablations, weights, weights.parent)[name].version == version


def test_a_model_of_its_own_is_taken_whole(measure_ablations, weights):
    folder = weights.parent / "epsilon"
    folder.mkdir()
    torch.save({"projection.a": torch.ones(1)}, folder / "model.pt")
    assert find(measure_ablations, weights, weights.parent)["epsilon"].weights == folder / "model.pt"


def test_the_page_tells_how_much_worse_each_form_is(measure_ablations, weights):
    ablations = list(find(measure_ablations, weights, None).values())
    rows = [
        {
            "patient": "ada",
            "case": "ada",
            "slice": 0,
            "dose": 0.25,
            "ablation": ablation.name,
            "stage": stage,
            "rmse_hu": 10.0 if (ablation.name, stage) == ("whole", "restored") else 20.0,
            "ssim_abdomen": 0.9,
            "hu_bias_soft_tissue": -0.25,
        }
        for ablation in ablations
        if ablation.skipped is None
        for stage in ablation.stages
    ]
    page = measure_ablations.page(rows, ablations, [0.25], {"ada": 1})
    assert "| the whole method, as shipped | 10.0 |" in page
    assert "| projection only: the prior | 20.0 (+6.02) |" in page
    assert "| latent zeroed: the decoder works from the skips alone | 20.0 (+6.02) |" in page
    assert "| the whole method, as shipped | 0.900 | -0.25 |" in page
    assert "- no_mask (stage 1 without the similarity mask" in page
