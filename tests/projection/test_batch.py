"""Stage 1 inside MONAI's engines."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from torch import Tensor

from bundle.physics import (
    FanBeamGeometry,
    FilteredBackprojection,
    attenuation_to_hu,
    line_integral_variance,
    simulate_low_dose,
)
from bundle.projection import (
    AlphaRamp,
    ContextualSubsampler,
    FiniteLoss,
    PrepareReconstruction,
    PrepareSubPair,
    PrepareThinnedPair,
    ReconstructionInferer,
    SimilarityLoss,
    SinogramDenoiser,
)

from .conftest import DOSE, ELECTRONIC_VARIANCE, PHOTONS

GEOMETRY = FanBeamGeometry(
    source_to_center=746.02,
    source_to_detector=1361.2,
    num_views=24,
    num_cells=36,
    cell_pitch=30.0,
    image_shape=(16, 16),
    pixel_size=20.0,
)


class OnlySinogram(dict):
    """A batch that fails when anything but the noisy sinogram is read."""

    def __getitem__(self, key):
        assert key == "sinogram", f"training read {key!r}"
        return super().__getitem__(key)

    def get(self, key, default=None):
        return self[key] if key in self else default

    def values(self):
        raise AssertionError("training read all of the batch")

    items = values


def train(batch, epochs: int = 1, steps: int = 1, features: int = 8) -> SinogramDenoiser:
    """A denoiser trained on this batch over and over by MONAI's trainer."""
    torch.manual_seed(0)
    denoiser = SinogramDenoiser(features=features)
    loss = SimilarityLoss(photons=PHOTONS, dose=DOSE, electronic_variance=ELECTRONIC_VARIANCE)
    SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        epoch_length=steps,
        train_data_loader=[batch],
        network=denoiser,
        optimizer=torch.optim.Adam(denoiser.parameters(), 5e-3),
        loss_function=loss,
        prepare_batch=PrepareSubPair(ContextualSubsampler(seed=0), denoiser),
        train_handlers=[AlphaRamp(loss)],
        decollate=False,
    ).run()
    return denoiser


def test_the_denoised_sinogram_is_sampled_like_the_noisy_one(noisy):
    sub_input, target = PrepareSubPair(ContextualSubsampler(seed=0), lambda y: 2 * y)({"sinogram": noisy})
    assert target["input"] is sub_input
    torch.testing.assert_close(target["denoised_input"], 2 * target["input"])
    torch.testing.assert_close(target["denoised_target"], 2 * target["target"])


def test_the_targets_carry_no_gradient(noisy):
    _, target = PrepareSubPair(ContextualSubsampler(), SinogramDenoiser(features=4))({"sinogram": noisy})
    assert not any(part.requires_grad for part in target.values())


def test_training_never_reads_a_clean_image_or_sinogram(noisy, clean):
    train(OnlySinogram(sinogram=noisy, reference=clean, clean=clean))


def test_what_stands_beside_the_sinogram_changes_no_weight(noisy, clean):
    plain = train({"sinogram": noisy}).state_dict()
    beside = train({"sinogram": noisy, "reference": clean, "label": clean, "image": clean}).state_dict()
    assert all(torch.equal(plain[name], beside[name]) for name in plain)


def test_training_on_noise_alone_comes_closer_to_the_truth(noisy: Tensor, clean: Tensor):
    """Error in units of the local noise, of whole sinograms that training saw only in noisy halves."""
    denoiser = train({"sinogram": noisy}, epochs=3, steps=20)
    sigma = SimilarityLoss(photons=PHOTONS, dose=DOSE, electronic_variance=ELECTRONIC_VARIANCE).noise_level(clean)

    def error(y: Tensor) -> float:
        return float(((y - clean) / sigma).square().mean().sqrt())

    with torch.no_grad():
        assert error(denoiser(noisy)) < 0.9 * error(noisy)


def test_monai_may_decollate_the_targets(noisy):
    denoiser, seen = SinogramDenoiser(features=4), []
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[{"sinogram": noisy}],
        network=denoiser,
        optimizer=torch.optim.Adam(denoiser.parameters()),
        loss_function=SimilarityLoss(),
        prepare_batch=PrepareSubPair(ContextualSubsampler(), denoiser),
    )
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: seen.extend(engine.state.output))
    trainer.run()
    assert len(seen) == len(noisy)
    assert seen[0]["label"]["target"].shape == (1, 32, 32)


def test_alpha_grows_to_its_maximum_and_goes_on_after_a_resume():
    loss, alphas = SimilarityLoss(), []
    engine = Engine(lambda engine, batch: alphas.append(loss.alpha))
    AlphaRamp(loss, maximum=2.0).attach(engine)
    engine.run([0], max_epochs=4)
    assert alphas == [0.5, 1.0, 1.5, 2.0]

    resumed = Engine(lambda engine, batch: alphas.append(loss.alpha))
    AlphaRamp(loss, maximum=2.0).attach(resumed)
    resumed.load_state_dict({"epoch_length": 1, "max_epochs": 4, "iteration": 2})
    resumed.run([0])
    assert alphas[4:] == [1.5, 2.0]


@pytest.mark.parametrize("loss", [float("nan"), torch.tensor([1.0, float("inf")])])
def test_a_loss_that_is_no_number_stops_the_training(loss):
    losses = iter([1.0, torch.tensor([0.5, 0.25]), loss, 1.0])
    engine = Engine(lambda engine, batch: {"loss": next(losses)})
    FiniteLoss().attach(engine)
    with pytest.raises(ValueError, match=r"step 3 \(epoch 2\): lower learning_rate"):
        engine.run([0, 1], max_epochs=2)
    assert next(losses) == 1.0


def test_a_validation_image_is_the_reconstruction_of_the_denoised_sinogram():
    sinogram = torch.rand(2, 1, *GEOMETRY.sinogram_shape)
    image_hu = ReconstructionInferer("hann")(sinogram, lambda y: y / 2, geometry=[GEOMETRY.to_json()] * 2)
    expected = attenuation_to_hu(FilteredBackprojection(GEOMETRY, window="hann")(sinogram / 2))
    torch.testing.assert_close(image_hu, expected)


def test_the_evaluator_compares_images_with_the_reference():
    reference = torch.zeros(1, 1, 16, 16)
    batch = {
        "sinogram": torch.rand(1, 1, *GEOMETRY.sinogram_shape),
        "reference": reference,
        "geometry": [GEOMETRY.to_json()],
    }
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=[batch],
        network=SinogramDenoiser(features=4),
        prepare_batch=PrepareReconstruction(),
        inferer=ReconstructionInferer(),
        decollate=False,
    )
    evaluator.run()
    assert evaluator.state.output["pred"].shape == reference.shape
    assert torch.equal(evaluator.state.output["label"], reference)


def test_two_geometries_in_a_batch_are_an_error():
    geometries = [GEOMETRY.to_json(), GEOMETRY.with_grid((8, 8), 20.0).to_json()]
    with pytest.raises(ValueError, match="same for the whole batch, got 2"):
        ReconstructionInferer()(torch.rand(2, 1, 24, 36), torch.nn.Identity(), geometry=geometries)


def test_a_batch_without_its_entries_is_an_error():
    with pytest.raises(ValueError, match="'sinogram'"):
        PrepareSubPair(ContextualSubsampler(), torch.nn.Identity())({"reference": torch.zeros(1)})
    with pytest.raises(ValueError, match="'reference'"):
        PrepareReconstruction()({"sinogram": torch.zeros(1, 1, 4, 4)})
    with pytest.raises(ValueError, match=r"\(B, 1, V, D\)"):
        PrepareSubPair(ContextualSubsampler(), torch.nn.Identity())({"sinogram": torch.zeros(1, 4, 4)})


class TestThinnedPair:
    """Input and target of independent photons."""

    def noisy(self, p: float, seed: int = 0, size: int = 300) -> Tensor:
        clean = torch.full((2, 1, size, size), p)
        noise = {"electronic_variance": ELECTRONIC_VARIANCE, "generator": torch.Generator().manual_seed(seed)}
        return simulate_low_dose(clean, PHOTONS, dose=DOSE, **noise)

    def prepare(self, denoiser=None, **options) -> PrepareThinnedPair:
        # What a denoiser learns to give: the mean of its input.
        mean = denoiser or (lambda y: y.mean(dim=(2, 3), keepdim=True).expand_as(y))
        options = {"fractions": (0.2, 0.8), **options}
        return PrepareThinnedPair(mean, PHOTONS, DOSE, ELECTRONIC_VARIANCE, **options)

    @pytest.mark.parametrize("p", [2.0, 6.0, 8.0])
    def test_the_parts_have_one_mean_and_no_noise_in_common(self, p):
        torch.manual_seed(0)
        first, target = self.prepare(fractions=(0.5, 0.8))({"sinogram": self.noisy(p)})
        for one, other in zip(first, target["target"]):
            error = 4 * (one.var() / one.numel() + other.var() / other.numel()).sqrt()
            assert abs(one.mean() - other.mean()) < error
            common = ((one - one.mean()) * (other - other.mean())).mean() / (one.std() * other.std())
            # Of few counts the parts are uncorrelated, but their logarithms not quite.
            assert abs(common) < (4 / one.numel() ** 0.5 if p < 7 else 0.03)

    def test_the_dose_is_that_of_the_target(self):
        torch.manual_seed(0)
        _, target = self.prepare()({"sinogram": self.noisy(3.0)})
        for other, dose in zip(target["target"], target["dose"].flatten()):
            share = ELECTRONIC_VARIANCE * dose.item() / DOSE
            expected = line_integral_variance(torch.tensor(3.0), PHOTONS, dose=dose.item(), electronic_variance=share)
            assert other.var().item() == pytest.approx(expected.item(), rel=0.03)

    def test_a_lower_dose_in_the_batch_counts(self):
        batch = {"sinogram": self.noisy(2.0, size=8), "dose": torch.tensor([DOSE, DOSE / 2])}
        torch.manual_seed(0)
        _, target = self.prepare(fractions=(0.5, 0.5))(batch)
        assert target["dose"].flatten().tolist() == pytest.approx([DOSE / 2, DOSE / 4])

    def test_the_batch_stays_as_it_is_and_the_seed_decides(self):
        sinogram = self.noisy(4.0, size=8)
        before = sinogram.clone()
        torch.manual_seed(3)
        first, _ = self.prepare()({"sinogram": sinogram})
        torch.manual_seed(3)
        again, _ = self.prepare()({"sinogram": sinogram})
        other, _ = self.prepare()({"sinogram": sinogram})
        assert torch.equal(sinogram, before) and torch.equal(first, again) and not torch.equal(first, other)

    def test_the_loss_of_the_true_mean_is_the_noise_of_the_target(self):
        torch.manual_seed(0)
        first, target = self.prepare()({"sinogram": self.noisy(3.0)})
        loss = SimilarityLoss(0.0, None, PHOTONS, DOSE, ELECTRONIC_VARIANCE)
        assert loss(torch.full_like(first, 3.0), target).item() == pytest.approx(1.0, rel=0.02)

    def test_shares_that_cannot_be_are_refused(self):
        with pytest.raises(ValueError, match="fractions must be two growing numbers"):
            self.prepare(fractions=(0.9, 0.1))

    def test_a_batch_without_sinogram_is_refused(self):
        with pytest.raises(ValueError, match="'sinogram'"):
            self.prepare()({"image": torch.zeros(1, 1, 4, 4)})
