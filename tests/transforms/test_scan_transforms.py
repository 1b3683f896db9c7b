"""From found scans to noisy line integrals and their reconstructions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset, decollate_batch
from monai.transforms import Compose, DeleteItemsd, RandWeightedCropd, SelectItemsd
from torch import nn

from bundle.io import ScanFrame, find_scans, write_sinogram
from bundle.physics import (
    FanBeamGeometry,
    FanBeamProjector,
    FilteredBackprojection,
    attenuation_to_hu,
    hu_to_attenuation,
    line_integral_variance,
    log_bias,
    simulate_low_dose,
    thin_line_integrals,
)
from bundle.transforms import (
    LoadScand,
    RandMixd,
    RandThinCountsd,
    ReconstructPaird,
    RemovedNoised,
    SimulateScand,
    ThinCountsd,
    TissueWeightd,
    noise_seed,
    tissue_weight,
    training_slices,
)


class Unchanged(nn.Module):
    """A denoiser that changes nothing."""

    def forward(self, sinogram, incident_photons=None, electronic_variance=None):
        return sinogram


@pytest.fixture
def simulate(geometry):
    def make(**options):
        return SimulateScand(geometry, **({"photons": 1e5, "electronic_variance": 10.0, "dose": 0.25} | options))

    return make


@pytest.fixture
def stack(scans):
    return LoadScand()(scans[0])


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


def test_input_items_are_not_changed(stack, simulate):
    before = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in stack.items()}
    noisy = simulate()(stack)
    kept = noisy["sinogram"].clone()
    ReconstructPaird(Unchanged())(noisy)
    assert stack.keys() == before.keys() and "fbp" not in noisy
    assert all(torch.equal(stack[key], before[key]) for key in ("image_hu", "slice"))
    assert torch.equal(noisy["sinogram"], kept)


class Smooth(nn.Module):
    """Stands for a denoiser: has a weight, behaves otherwise in training, and tells how it was called."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.calls = []

    def forward(self, sinogram, **noise):
        self.calls.append((tuple(sinogram.shape), self.training, torch.is_grad_enabled()))
        return self.scale * sinogram


def test_pair_is_the_fbp_of_the_sinogram_and_of_its_denoised_form(stack, simulate):
    denoiser = Smooth().train()
    item = ReconstructPaird(denoiser, slices_per_batch=2)(simulate()(stack))
    geometry = FanBeamGeometry.from_json(item["geometry"])
    expected = FilteredBackprojection(geometry)(item["sinogram"][0][:, None])[:, 0]
    assert torch.allclose(item["fbp"][0], attenuation_to_hu(expected), atol=0.02)
    assert torch.allclose(item["prior"][0], attenuation_to_hu(expected / 2), atol=0.02)
    assert denoiser.calls == [((2, 1, 90, 96), False, False)] * 2 + [((1, 1, 90, 96), False, False)]
    assert not item["prior"].requires_grad


def test_pair_of_a_single_slice_has_the_shape_of_a_slice(scans, simulate):
    item = ReconstructPaird(Unchanged(), window="hann")(simulate()(training_slices(scans)[0]))
    assert item["fbp"].shape == item["prior"].shape == item["reference"].shape == (1, 64, 64)
    assert torch.equal(item["fbp"], item["prior"])


def test_sinogram_that_does_not_fit_its_geometry_is_refused(geometry):
    item = {"sinogram": torch.zeros(1, 90, 95), "geometry": geometry.to_json()}
    with pytest.raises(ValueError, match=r"\(90, 96\), got shape \(1, 90, 95\)"):
        ReconstructPaird(Unchanged())(item)


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


def test_thinned_parts_share_no_noise_and_have_the_noise_of_their_doses():
    """Binomial parts of Poisson counts are independent, each with the variance of its own share of the photons."""
    generator = torch.Generator().manual_seed(3)
    clean = torch.full((1, 300, 400), 2.0)
    noisy = simulate_low_dose(clean, 1e5, dose=0.25, generator=generator)
    first, second = thin_line_integrals(noisy, 1e5, 0.4, dose=0.25, generator=generator)
    for part, dose in ((first, 0.1), (second, 0.15)):
        expected = line_integral_variance(clean, 1e5, dose=dose).mean()
        assert part.var().item() == pytest.approx(expected.item(), rel=0.02)
        assert part.mean().item() == pytest.approx(2.0, abs=0.001)
    correlation = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1]
    assert abs(correlation.item()) < 0.015  # five standard errors


def test_a_thinning_belongs_to_slice_and_repeat():
    item = {"sinogram": torch.full((1, 8, 9), 2.0), "name": "a", "slice": 1}
    thin = ThinCountsd(photons=1e4, dose=0.25)
    again, other = thin(dict(item))["input_sinogram"], thin({**item, "repeat": 1})["input_sinogram"]
    assert torch.equal(thin(item)["input_sinogram"], again)
    assert not torch.equal(other, again)
    assert set(item) == {"sinogram", "name", "slice"}


def test_random_thinning_states_the_noise_it_leaves():
    clean = torch.full((1, 200, 200), 4.5)
    generator = torch.Generator().manual_seed(0)
    noisy = simulate_low_dose(clean, 1e5, dose=0.25, electronic_variance=30.0, generator=generator)
    thin = RandThinCountsd(photons=1e5, dose=0.25, least=0.2, prob=1.0, electronic_variance=30.0).set_random_state(7)
    for _ in range(3):
        item = thin({"sinogram": noisy})
        photons, variance = float(item["incident_photons"]), float(item["electronic_variance"])
        assert 5000 <= photons < 25000 and variance / 30 == pytest.approx(photons / 25000)
        expected = line_integral_variance(clean, photons, electronic_variance=variance).mean().item()
        assert item["sinogram"].var().item() == pytest.approx(expected, rel=0.03)
    never = RandThinCountsd(photons=1e5, dose=0.25, prob=0.0)
    assert torch.equal(never({"sinogram": noisy})["sinogram"], noisy)
    assert never({"sinogram": noisy})["incident_photons"] == 25000
    own = never({"sinogram": noisy, "incident_photons": 7e3, "electronic_variance": 2.0})
    assert own["incident_photons"] == 7e3 and own["electronic_variance"] == 2


@pytest.mark.parametrize("fractions", [(0.0, 0.5), (0.6, 0.4), (0.5, 1.0), (0.5,)])
def test_thinning_refuses_fractions_that_leave_nothing(fractions):
    with pytest.raises(ValueError, match="fractions"):
        ThinCountsd(photons=1e4, dose=0.25, fractions=fractions)


def test_a_mix_lies_between_the_noisy_image_and_its_prior():
    fbp, prior = torch.full((1, 4, 4), 10.0), torch.zeros(1, 4, 4)
    mix = RandMixd(prob_prior=0.3).set_random_state(0)
    mixed = [mix({"fbp": fbp, "input_prior": prior, "prior": prior}) for _ in range(200)]
    values = torch.tensor([item["fbp"].max() for item in mixed])
    assert ((values >= 0) & (values <= 10)).all()
    assert 0.2 < (values == 0).float().mean() < 0.4
    assert "input_prior" not in mixed[0] and fbp.min() == 10


def test_the_two_parts_of_a_scan_know_their_photons():
    noisy = 0.5 * torch.rand(1, 8, 8)
    item = ThinCountsd(photons=1e4, dose=0.25, fractions=(0.3, 0.3))({"sinogram": noisy, "name": "one", "slice": 0})
    assert item["input_photons"] == pytest.approx(750)
    assert item["input_photons"] + item["target_photons"] == pytest.approx(2500)


def test_a_measured_scan_brings_its_own_photons(geometry, tmp_path):
    noisy = 0.5 * torch.rand(geometry.sinogram_shape)
    path = write_sinogram(tmp_path / "scan.npz", noisy, geometry, photons=4000.0, electronic_variance=3.0)
    (item,) = training_slices([{"path": str(path), "kind": "sinogram", "name": "scan", "patient": "one"}])
    assert (item["incident_photons"], item["electronic_variance"]) == (4000.0, 3.0)
    parts = ThinCountsd(photons=1e4, dose=0.25, fractions=(0.3, 0.3), electronic_variance=99.0)(item)
    assert parts["input_photons"] == pytest.approx(1200)
    again = ThinCountsd(photons=4000.0, dose=1.0, fractions=(0.3, 0.3), electronic_variance=3.0)(item)
    assert torch.equal(parts["input_sinogram"], again["input_sinogram"])
    bare = write_sinogram(tmp_path / "bare.npz", noisy, geometry)
    (item,) = training_slices([{"path": str(bare), "kind": "sinogram", "name": "bare", "patient": "one"}])
    assert "incident_photons" not in item and "electronic_variance" not in item


def test_known_photons_take_the_bias_of_the_logarithm_out_of_image_and_prior(geometry):
    noisy = 3 + 0.1 * torch.rand(1, *geometry.sinogram_shape)
    item = {"sinogram": noisy, "geometry": geometry.to_json(), "incident_photons": 400.0}
    raw = ReconstructPaird(Unchanged())(item)
    corrected = ReconstructPaird(Unchanged(), electronic_variance=10.0)(item)
    bias = log_bias(noisy, 400.0, electronic_variance=10.0)
    expected = FilteredBackprojection(geometry)((noisy - bias)[None])[0]
    torch.testing.assert_close(corrected["prior"], attenuation_to_hu(expected), rtol=1e-4, atol=0.01)
    torch.testing.assert_close(corrected["fbp"], corrected["prior"])
    assert not torch.equal(raw["fbp"], corrected["fbp"])
    del item["incident_photons"]
    torch.testing.assert_close(ReconstructPaird(Unchanged(), electronic_variance=10.0)(item)["fbp"], raw["fbp"])


def test_removed_noise_is_what_the_image_has_and_its_prior_has_not():
    prior = torch.randn(1, 2, 16, 16)
    item = RemovedNoised()({"fbp": prior - 2, "prior": prior})
    torch.testing.assert_close(item["noise"], torch.full_like(prior, -2.0))


def test_the_denoiser_is_told_the_noise_of_each_part(geometry):
    told = []

    class Listening(nn.Module):
        def forward(self, sinogram, **noise):
            told.append(noise)
            return sinogram

    noisy = 3 + 0.1 * torch.rand(1, *geometry.sinogram_shape)
    item = {"sinogram": noisy, "geometry": geometry.to_json(), "name": "a", "slice": 0}
    ReconstructPaird(Listening())(item)
    assert told == [{}]
    parts = ThinCountsd(photons=1e4, dose=0.25, fractions=(0.4, 0.4), electronic_variance=10.0)(item)
    ReconstructPaird(
        Listening(),
        input_key="input_sinogram",
        target_key="target_sinogram",
        input_prior_key="input_prior",
        electronic_variance=10.0,
    )(parts)
    assert [(n["incident_photons"], n["electronic_variance"]) for n in told[1:]] == [(1000, 4), (1500, 6)]


@pytest.mark.parametrize("arguments", [{"electronic_variance": -1.0}, {"input_prior_key": "input_prior"}])
def test_a_pair_that_cannot_be_is_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ReconstructPaird(Unchanged(), **arguments)
