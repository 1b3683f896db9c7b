"""No result without what it was measured on."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from bundle.evaluation import (
    Contrast,
    Detectability,
    Drift,
    NoisePower,
    ResidualAnatomy,
    Result,
    TaskTransfer,
    TissueStatistics,
    hu_drift,
    noise_power_spectrum,
    residual_anatomy,
    score_stages,
    tissue_statistics,
)

from .phantoms import body, noise

KINDS = (Contrast, Detectability, Drift, NoisePower, ResidualAnatomy, TaskTransfer, TissueStatistics)


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_of_a_result_must_be_given(kind):
    assert issubclass(kind, Result)
    for field in dataclasses.fields(kind):
        assert field.default is field.default_factory is dataclasses.MISSING
    with pytest.raises(TypeError, match="mask.*n"):
        kind()


@pytest.mark.parametrize(
    ("stated", "match"),
    [
        ({"mask": " ", "n": 1}, "mask must say"),
        ({"mask": "body", "n": -1}, "n must be"),
        ({"mask": "b", "n": 1.0}, "n"),
    ],
)
def test_a_mask_without_words_and_an_n_that_is_no_count_are_refused(stated, match):
    with pytest.raises(ValueError, match=match):
        Result(**stated)


def test_a_range_that_is_none_is_refused():
    with pytest.raises(ValueError, match="range_hu"):
        TissueStatistics(mask="eroded", n=1, tissue="lung", range_hu=(0.0, 0.0), bias=None, std=None)


def test_scores_of_a_stage_state_windows_masks_and_n():
    scores = score_stages({"fbp": body()}, body(), {"abdomen": (-150, 250)})["fbp"]
    assert scores["windows"] == {"abdomen": (-150, 250)} and scores["n"] == 2
    said = " ".join(scores["masks"])
    for metric in scores["mean"]:
        assert metric.replace("abdomen", "<window>") in said or "pixels" in metric


def test_results_are_rows_of_json():
    reference = body()
    image = reference + noise(10.0, reference)
    results = [
        tissue_statistics(image, reference)[0]["soft_tissue"],
        hu_drift(image, reference)[0]["bone"],
        residual_anatomy(image, reference)[0],
        noise_power_spectrum(torch.randn(2, 8, 8), 0.7),
    ]
    for result in results:
        row = json.loads(json.dumps(result.row(), allow_nan=False))
        assert row["mask"] and row["n"] >= 0
