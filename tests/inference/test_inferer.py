"""Stacks of slices, as MONAI's evaluator runs them."""

from __future__ import annotations

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator

from bundle.inference import STAGES, PrepareScan, StackInferer

from .parts import SCANNER, restorer


def stack(slices: int = 5) -> torch.Tensor:
    return torch.rand((1, slices, *SCANNER.sinogram_shape), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("slices_per_batch", [1, 2, 8])
def test_chunks_do_not_change_the_result(slices_per_batch):
    network, sinogram = restorer(), stack()
    inferer = StackInferer(slices_per_batch, progress=False)
    output = inferer(sinogram[None], network, geometry=[SCANNER.to_json()])
    expected = network.restore(sinogram.transpose(0, 1))
    assert output.shape == (1, 4, 5, 32, 32)
    for channel, stage in enumerate(STAGES):
        torch.testing.assert_close(output[0, channel], getattr(expected, stage)[:, 0], rtol=1e-4, atol=0.1)


def test_seconds_belong_to_the_last_stack():
    inferer, network = StackInferer(progress=False), restorer()
    inferer(stack(2)[None], network)
    first = inferer.seconds
    inferer(stack(3)[None], network)
    assert set(inferer.seconds) == set(STAGES) and inferer.num_slices == 3
    assert inferer.seconds is not first


def test_progress_is_shown_in_slices(capsys):
    StackInferer(2)(stack(3)[None], restorer())
    assert "3/3" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(1, 1, 60, 48), (2, 1, 3, 60, 48), (1, 1, 0, 60, 48)])
def test_a_batch_that_is_no_stack_is_named(shape):
    with pytest.raises(ValueError, match="slices, views, cells"):
        StackInferer(progress=False)(torch.zeros(shape), restorer())


def test_one_stack_has_one_geometry():
    with pytest.raises(ValueError, match="one geometry"):
        StackInferer(progress=False)(stack()[None], restorer(), geometry=[SCANNER.to_json()] * 2)


def test_no_slices_at_once_is_no_plan():
    with pytest.raises(ValueError, match="slices_per_batch"):
        StackInferer(0)


@pytest.mark.parametrize("decollate", [False, True])
@pytest.mark.parametrize("measured", [False, True])
def test_the_evaluator_runs_simulated_and_measured_scans(decollate, measured):
    other = SCANNER.with_grid((24, 40), 10.0)
    item = {"sinogram": stack(2), "geometry": other.to_json(), "name": "one", "path": ["a", "b", "c"]}
    if not measured:
        item["reference"] = torch.zeros(1, 2, 24, 40)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([item]), batch_size=1),
        network=restorer(),
        inferer=StackInferer(progress=False),
        prepare_batch=PrepareScan(),
        decollate=decollate,
    )
    evaluator.run()
    output = evaluator.state.output[0] if decollate else evaluator.state.output
    assert output["pred"].shape[-3:] == (2, 24, 40)
    assert (output["label"] is None) == measured


def test_a_batch_without_a_sinogram_is_named():
    with pytest.raises(ValueError, match="'sinogram', got \\['image'\\]"):
        PrepareScan()({"image": torch.zeros(1)})


def test_the_noise_of_a_scan_goes_with_it():
    batch = {"sinogram": stack(2)[None], "incident_photons": torch.tensor([3e4]), "electronic_variance": [12.0]}
    *_, keywords = PrepareScan()(batch)
    assert keywords == {"geometry": None, "incident_photons": 3e4, "electronic_variance": 12.0}
    *_, unknown = PrepareScan()({"sinogram": stack(2)[None]})
    assert unknown["incident_photons"] is None and unknown["electronic_variance"] is None


def test_a_scan_with_its_own_electronic_noise_is_restored_by_it():
    network = restorer()
    own = network.restore(stack(2).transpose(0, 1) + 3, None, 500.0, 40.0)
    network.electronic_variance = 40.0
    torch.testing.assert_close(own.restored, network.restore(stack(2).transpose(0, 1) + 3, None, 500.0).restored)
