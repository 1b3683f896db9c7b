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
    MixedPrecisionInferer,
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
    """A batch that fails when anything but the noisy sinogram and its noise is read."""

    def __getitem__(self, key):
        assert key in ("sinogram", "incident_photons", "electronic_variance"), f"training read {key!r}"
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
    prepare = PrepareSubPair(ContextualSubsampler(seed=0), lambda y: 2 * y)
    sub_input, target, positional, keywords = prepare({"sinogram": noisy})
    assert not positional and not keywords
    assert target["input"] is sub_input
    torch.testing.assert_close(target["denoised_input"], 2 * target["input"])
    torch.testing.assert_close(target["denoised_target"], 2 * target["target"])


def test_the_targets_carry_no_gradient(noisy):
    prepare = PrepareSubPair(ContextualSubsampler(), SinogramDenoiser(features=4))
    target = prepare({"sinogram": noisy})[1]
    assert not any(part.requires_grad for part in target.values())


def test_the_noise_that_a_batch_states_reaches_denoiser_and_loss(noisy):
    told = []

    def denoiser(y, **noise):
        told.append(noise)
        return y

    batch = {"sinogram": noisy, "incident_photons": torch.tensor([1e4, 2e4]), "electronic_variance": torch.ones(2)}
    _, target, _, keywords = PrepareSubPair(ContextualSubsampler(), denoiser)(batch)
    for noise in (told[0], target, keywords):
        assert noise["incident_photons"].flatten().tolist() == [1e4, 2e4]
        assert noise["electronic_variance"].shape == (2, 1, 1, 1)


def test_training_never_reads_a_clean_image_or_sinogram(noisy, clean):
    noise = {"incident_photons": torch.full((len(noisy),), 1e4), "electronic_variance": torch.zeros(len(noisy))}
    train(OnlySinogram(sinogram=noisy, reference=clean, clean=clean, **noise))


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


class TestMixedPrecision:
    """The network in half of the bits, everything else in float32."""

    def test_the_answer_is_that_of_float32_but_for_rounding_and_so_are_the_gradients(self, noisy):
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(1, 2, 3)
        exact, rounded = (MixedPrecisionInferer(name)(noisy, layer) for name in ("float32", "bfloat16"))
        assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
        torch.testing.assert_close(rounded, exact, rtol=2e-2, atol=2e-2)
        rounded.sum().backward()
        assert layer.weight.grad.dtype == torch.float32

    def test_a_dictionary_of_answers_becomes_float32(self, noisy):
        answers = MixedPrecisionInferer("bfloat16")(noisy, lambda y: {"half": y @ y.mT, "twice": 2 * y})
        assert {answer.dtype for answer in answers.values()} == {torch.float32}

    def test_another_precision_is_refused(self):
        with pytest.raises(ValueError, match="precision must be float32 or bfloat16, got 'float16'"):
            MixedPrecisionInferer("float16")


class TestThinnedPair:
    """Input and target of independent photons."""

    def noisy(self, p: float, seed: int = 0, size: int = 300) -> Tensor:
        clean = torch.full((2, 1, size, size), p)
        noise = {"electronic_variance": ELECTRONIC_VARIANCE, "generator": torch.Generator().manual_seed(seed)}
        return simulate_low_dose(clean, PHOTONS, dose=DOSE, **noise)

    def prepare(self, denoiser=None, **options) -> PrepareThinnedPair:
        # What a denoiser learns to give: the mean of its input.
        mean = denoiser or (lambda y, **noise: y.mean(dim=(2, 3), keepdim=True).expand_as(y))
        return PrepareThinnedPair(mean, **{"fractions": (0.2, 0.8), **options})

    def batch(self, sinogram: Tensor) -> dict[str, Tensor]:
        photons = torch.full((len(sinogram),), PHOTONS * DOSE)
        return {
            "sinogram": sinogram,
            "incident_photons": photons,
            "electronic_variance": torch.full_like(photons, ELECTRONIC_VARIANCE),
        }

    @pytest.mark.parametrize("p", [2.0, 6.0, 8.0])
    def test_the_parts_have_one_mean_and_no_noise_in_common(self, p):
        torch.manual_seed(0)
        first, target, *_ = self.prepare(fractions=(0.5, 0.8))(self.batch(self.noisy(p)))
        for one, other in zip(first, target["target"]):
            error = 4 * (one.var() / one.numel() + other.var() / other.numel()).sqrt()
            assert abs(one.mean() - other.mean()) < error
            common = ((one - one.mean()) * (other - other.mean())).mean() / (one.std() * other.std())
            # Of few counts the parts are uncorrelated, but their logarithms not quite.
            assert abs(common) < (4 / one.numel() ** 0.5 if p < 7 else 0.03)

    def test_the_noise_stated_is_that_of_each_part(self):
        torch.manual_seed(0)
        first, target, _, noise = self.prepare()(self.batch(self.noisy(3.0)))
        for part, stated in ((first, noise), (target["target"], target)):
            photons, variance = (stated[name] for name in ("incident_photons", "electronic_variance"))
            expected = line_integral_variance(torch.tensor(3.0), photons, electronic_variance=variance)
            torch.testing.assert_close(part.var(dim=(1, 2, 3)), expected.flatten(), rtol=0.03, atol=0)
        total = noise["incident_photons"] + target["incident_photons"]
        torch.testing.assert_close(total, torch.full_like(total, PHOTONS * DOSE))

    def test_the_denoiser_is_told_the_noise_of_the_input(self):
        told = []

        def denoiser(y, **noise):
            told.append(noise)
            return y

        _, _, _, noise = self.prepare(denoiser)(self.batch(self.noisy(2.0, size=8)))
        assert all(torch.equal(told[0][name], noise[name]) for name in noise) and len(noise) == 2

    def test_photons_that_nobody_knows_cannot_be_parted(self):
        with pytest.raises(ValueError, match="incident_photons.*to part the photons"):
            self.prepare()({"sinogram": self.noisy(2.0, size=8)})

    def test_the_batch_stays_as_it_is_and_the_seed_decides(self):
        sinogram = self.noisy(4.0, size=8)
        before = sinogram.clone()
        torch.manual_seed(3)
        first = self.prepare()(self.batch(sinogram))[0]
        torch.manual_seed(3)
        again = self.prepare()(self.batch(sinogram))[0]
        other = self.prepare()(self.batch(sinogram))[0]
        assert torch.equal(sinogram, before) and torch.equal(first, again) and not torch.equal(first, other)

    def test_the_loss_of_the_true_mean_is_the_noise_of_the_target(self):
        torch.manual_seed(0)
        first, target, *_ = self.prepare()(self.batch(self.noisy(3.0)))
        # What the target says of its noise wins over what the loss was told.
        loss = SimilarityLoss(0.0, None, photons=1.0, dose=1.0, ramp_weight=0.5)
        assert loss(torch.full_like(first, 3.0), target).item() == pytest.approx(1.5, rel=0.02)

    def test_shares_that_cannot_be_are_refused(self):
        with pytest.raises(ValueError, match="fractions must be two growing numbers"):
            self.prepare(fractions=(0.9, 0.1))

    def test_a_batch_without_sinogram_is_refused(self):
        with pytest.raises(ValueError, match="'sinogram'"):
            self.prepare()({"image": torch.zeros(1, 1, 4, 4)})
