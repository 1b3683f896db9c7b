"""From found scans to noisy line integrals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset, decollate_batch
from monai.transforms import Compose, DeleteItemsd, RandWeightedCropd, SelectItemsd

from bundle.io import ScanFrame, find_scans
from bundle.physics import (
    FanBeamGeometry,
    FanBeamProjector,
    FilteredBackprojection,
    attenuation_to_hu,
    hu_to_attenuation,
    line_integral_variance,
)
from bundle.transforms import (
    LoadScand,
    TissueWeightd,
    noise_seed,
    tissue_weight,
    training_slices,
)


def clean_sinogram(image_hu, pixel_size, geometry):
    """Noise-free line integrals of ``(S, H, W)``."""
    own = geometry.with_grid(tuple(image_hu.shape[-2:]), pixel_size)
    return FanBeamProjector(own)(hu_to_attenuation(image_hu[:, None]))[:, 0], own


def test_loaded_scan_has_its_pixels_and_the_way_back(stack, phantom):
    assert torch.equal(stack["image_hu"], torch.from_numpy(phantom).float()[None])
    assert stack["slice"].tolist() == [0, 1, 2, 3, 4] and stack["pixel_size"] == 3.0
    assert ScanFrame.from_json(stack["scan"]).stack_shape == phantom.shape


def test_budget_takes_evenly_spaced_slices_from_the_middle(scans, phantom):
    item = LoadScand(slices=2)(scans[0])
    assert item["slice"].tolist() == [1, 3]
    assert torch.equal(item["image_hu"][0], torch.from_numpy(phantom[[1, 3]]).float())
    frame = ScanFrame.from_json(item["scan"])
    assert frame.stack_shape == (2, 64, 64) and frame.affine[2][2:] == (4.0, 2.0)
    assert LoadScand(slices=99)(scans[0])["slice"].tolist() == [0, 1, 2, 3, 4]


def test_scan_passes_through_the_stock_loader(scans, simulate):
    data = Dataset(scans, Compose([LoadScand(), simulate()]))
    batch = next(iter(DataLoader(data, batch_size=1)))
    assert batch["sinogram"].shape == (1, 1, 5, 90, 96) and batch["name"] == ["one"]
    (item,) = decollate_batch(batch)
    assert ScanFrame.from_json(item["scan"]).shape == (64, 64, 5)
    assert FanBeamGeometry.from_json(item["geometry"]).image_shape == (64, 64)


def test_measured_scan_is_loaded_and_passes_the_simulation_unchanged(measured, geometry, simulate):
    folder, sinogram = measured
    item = LoadScand()(find_scans(folder)[0])
    after = simulate()(item)
    assert torch.equal(after["sinogram"], sinogram[None]) and "reference" not in after and "dose" not in after
    assert FanBeamGeometry.from_json(after["geometry"]) == geometry
    assert ScanFrame.from_json(item["scan"]).stack_shape == (3, 32, 32)
    assert LoadScand(slices=1)(find_scans(folder)[0])["sinogram"].shape == (1, 1, 90, 96)


def test_noise_around_the_clean_line_integrals_is_that_of_the_dose(stack, simulate, geometry):
    item = simulate()(stack)
    clean, own = clean_sinogram(stack["image_hu"][0], 3.0, geometry)
    assert FanBeamGeometry.from_json(item["geometry"]) == own and item["dose"] == 0.25
    variance = line_integral_variance(clean, 1e5, dose=0.25, electronic_variance=10.0)
    standard = (item["sinogram"][0] - clean) / variance.sqrt()
    assert standard.mean().abs() < 0.05 and standard.std() == pytest.approx(1, abs=0.03)


def test_reference_is_the_fbp_of_the_clean_line_integrals(stack, simulate, geometry):
    clean, own = clean_sinogram(stack["image_hu"][0], 3.0, geometry)
    expected = attenuation_to_hu(FilteredBackprojection(own)(clean[:, None]))[:, 0]
    assert torch.allclose(simulate()(stack)["reference"][0], expected, atol=0.02)
    assert "reference" not in simulate(reference=False)(stack)


def test_reference_can_be_the_object_itself(stack, simulate):
    reference = simulate(reference_of="object")(stack)["reference"]
    assert torch.equal(reference, stack["image_hu"].clamp_min(-1000))
    with pytest.raises(ValueError, match=r"reference_of \(restore_to in the configs\) must be one of .*'fbp'"):
        simulate(reference_of="fbp")


def test_nothing_clean_but_the_reference_stays_in_the_item(stack, simulate, geometry):
    item = simulate(reference=False)(stack)
    clean, _ = clean_sinogram(stack["image_hu"][0], 3.0, geometry)
    assert "image_hu" not in item
    tensors = [value for value in item.values() if isinstance(value, torch.Tensor) and value.is_floating_point()]
    assert [tensor.shape for tensor in tensors] == [(1, 5, 90, 96)]
    # Where a ray crossed the disc, not one value is the clean one.
    assert not ((tensors[0][0] == clean) & (clean > 1)).any()


def test_noise_belongs_to_the_slice_whatever_the_order_batch_or_selection(scans, simulate):
    whole = simulate()(LoadScand()(scans[0]))["sinogram"][0]
    batched = simulate(slices_per_batch=2)(LoadScand()(scans[0]))["sinogram"][0]
    chosen = simulate()(LoadScand(slices=2)(scans[0]))["sinogram"][0]
    single = {item["slice"]: simulate()(item)["sinogram"][0] for item in reversed(training_slices(scans[:1]))}
    assert torch.equal(whole, batched)
    assert torch.equal(whole[[1, 3]], chosen)
    assert torch.equal(whole, torch.stack([single[index] for index in range(5)]))


def test_noise_differs_between_slices_scans_doses_and_seeds(scans, simulate):
    one, other = training_slices(scans, every=5)
    assert torch.equal(one["image_hu"], other["image_hu"])
    draws = [
        simulate()(one),
        simulate()(other),
        simulate()(one | {"slice": 1}),
        simulate(seed=1)(one),
        simulate()(one | {"dose": 0.250001}),
    ]
    for index, first in enumerate(draws):
        for second in draws[:index]:
            gap = (first["sinogram"] - second["sinogram"]).abs()
            assert gap.mean() > 1e-3


def test_noise_seed_is_fixed_for_all_time():
    """A known answer: models are compared over years on the same noise."""
    assert noise_seed(0, "one", 3, 0.25) == 27995725303549148


def test_dose_of_the_item_wins(stack, simulate):
    item = simulate(dose=0.25)(stack | {"dose": 0.05})
    assert item["dose"] == 0.05
    assert torch.equal(item["sinogram"], simulate(dose=0.05)(stack)["sinogram"])


@pytest.mark.parametrize("dose", [0.0, -0.1, math.nan, math.inf])
def test_dose_that_is_not_positive_is_refused(dose, stack, simulate):
    with pytest.raises(ValueError, match="dose must be a positive number"):
        simulate(dose=dose)
    with pytest.raises(ValueError, match="dose must be a positive number"):
        simulate()(stack | {"dose": dose})


def test_wrong_arguments_are_refused_by_name(stack, simulate):
    with pytest.raises(ValueError, match="photons"):
        simulate(photons=0)
    with pytest.raises(ValueError, match="slices_per_batch"):
        simulate(slices_per_batch=0)
    with pytest.raises(ValueError, match=r"image_hu must be .* got shape \(64, 64\)"):
        simulate()(stack | {"image_hu": torch.zeros(64, 64)})
    with pytest.raises(ValueError, match="slice has 5 indices"):
        simulate()(stack | {"image_hu": torch.zeros(1, 2, 64, 64)})
    with pytest.raises(ValueError, match="slices must be"):
        LoadScand(slices=0)
    with pytest.raises(ValueError, match="every"):
        training_slices([], every=0)


def test_training_slices_read_a_volume_once_and_share_its_memory(scans, phantom):
    items = training_slices(scans, every=2)
    assert [(item["name"], item["slice"]) for item in items] == [(n, s) for n in ("one", "two") for s in (0, 2, 4)]
    assert items[0]["image_hu"].untyped_storage().data_ptr() == items[1]["image_hu"].untyped_storage().data_ptr()
    assert torch.equal(items[1]["image_hu"][0], torch.from_numpy(phantom[2]).float())
    assert set(items[0]) == {"image_hu", "pixel_size", "slice", "repeat", "name", "patient"}


def test_training_slices_of_a_measured_scan_are_sinograms(measured):
    folder, sinogram = measured
    items = training_slices(find_scans(folder))
    assert torch.equal(torch.cat([item["sinogram"] for item in items]), sinogram)
    assert set(items[0]) == {"sinogram", "geometry", "slice", "repeat", "name", "patient"}


def test_weight_is_high_in_the_patient_low_in_air_and_never_zero(scans, simulate):
    sinogram = simulate()(training_slices(scans)[0])["sinogram"]
    weight = tissue_weight(sinogram, width=5)
    assert weight.shape == sinogram.shape
    assert torch.allclose(weight[:, :, 40:56], torch.ones(1), atol=1e-4)
    assert torch.allclose(weight[:, :, :4], torch.tensor(0.05), atol=1e-4)
    with pytest.raises(ValueError, match="least"):
        tissue_weight(sinogram, least=0.0)
    with pytest.raises(ValueError, match="width"):
        tissue_weight(sinogram, width=4)


def test_crops_for_training_come_from_the_patient_and_batch_flat(scans, simulate):
    """The chain that the training configs use, with MONAI's own cache, crop and loader."""
    transforms = Compose(
        [
            simulate(reference=False),
            SelectItemsd(keys=["sinogram", "name", "slice"]),
            TissueWeightd("sinogram", width=5),
            RandWeightedCropd(keys="sinogram", w_key="weight", spatial_size=(16, 8), num_samples=3),
            DeleteItemsd(keys="weight"),
        ]
    )
    transforms.set_random_state(0)
    data = CacheDataset(training_slices(scans), transforms, num_workers=1, progress=False)
    batches = list(DataLoader(data, batch_size=2))
    assert [tuple(batch["sinogram"].shape) for batch in batches] == [(6, 1, 16, 8)] * 5
    middles = np.concatenate([batch["sinogram"][:, 0, 8, 4].numpy() for batch in batches])
    assert (middles > 0.2).mean() > 0.8
