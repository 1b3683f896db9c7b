"""Laws of the unrolled latent diffusion and its training."""

from __future__ import annotations

import pytest
import torch
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.inferers import DiffusionInferer, SimpleInferer

from bundle.autoencoder import DistillationAutoencoder, PrepareDistillationPair, StructureLoss
from bundle.diffusion import DistillationLoss, LatentRefiner, LatentTransformer, PosteriorMeanScheduler


def images(*shape, seed=1):
    return 300 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def small(prediction_type="sample", **options):
    """A refiner whose zero-started layers are random, as after training."""
    torch.manual_seed(0)
    autoencoder = DistillationAutoencoder(channels=(6, 8, 8), latent_channels=4, skip_channels=(2, 2, 2))
    torch.nn.init.normal_(autoencoder.decoder.head.weight, std=0.1)
    for _ in range(40):
        autoencoder.train().encode(images(2, 1, 32, 32))
    denoiser = LatentTransformer(4, 4, width=8, depth=1, num_heads=2)
    torch.nn.init.normal_(denoiser.head.weight, std=0.1)
    torch.nn.init.normal_(denoiser.blocks[0].modulation.weight, std=0.1)
    return LatentRefiner(autoencoder, denoiser, PosteriorMeanScheduler(prediction_type=prediction_type), **options)


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
def test_the_unrolled_steps_are_those_of_monais_inferer(prediction_type):
    refiner = small(prediction_type).eval()
    noise, condition = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)
    expected = DiffusionInferer(refiner.scheduler).sample(
        noise, refiner.denoiser, conditioning=condition, mode="concat", verbose=False
    )
    torch.testing.assert_close(refiner.denoise(noise, condition), expected)


def test_restoring_is_deterministic_and_leaves_the_random_state_alone():
    refiner, image = small().eval(), images(1, 1, 24, 24)
    state = torch.get_rng_state()
    assert torch.equal(refiner(image), refiner(image))
    assert torch.equal(state, torch.get_rng_state())


def test_an_image_is_restored_the_same_alone_and_in_a_batch():
    refiner, image = small().eval(), images(3, 1, 16, 24)
    alone = torch.cat([refiner(image[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(refiner(image), alone, atol=1e-2, rtol=1e-5)


def test_the_seed_decides_the_starting_noise():
    like = torch.zeros(2, 4, 3, 3)
    noise = small(seed=0).fixed_noise(like)
    assert torch.equal(noise, small(seed=0).fixed_noise(like)) and torch.equal(noise[0], noise[1])
    assert not torch.equal(noise, small(seed=1).fixed_noise(like))


@pytest.mark.parametrize("size", [(8, 8), (17, 30), (9, 1)])
def test_any_size_is_restored_in_its_size(size):
    assert small().eval()(images(1, 1, *size)).shape == (1, 1, *size)


def test_the_image_loss_reaches_the_denoiser_in_every_step_and_never_the_encoder_of_the_target():
    refiner = small().train()
    answers = []

    def keep(module, inputs, output):
        output.retain_grad()
        answers.append(output)

    refiner.denoiser.register_forward_hook(keep)
    target = images(2, 1, 16, 16, seed=2).requires_grad_()
    refined = refiner(images(2, 1, 16, 16), target)
    StructureLoss()(refined["image"], target.detach()).backward()
    unrolled, extra = answers[:5], answers[5:]
    assert all(answer.grad.abs().sum() > 0 for answer in unrolled)
    assert len(extra) == 1 and extra[0].grad is None  # the answer at a random step serves the other term alone
    assert all(p.grad is not None for p in refiner.denoiser.parameters())
    assert all(p.grad is not None for p in refiner.autoencoder.decoder.parameters())
    assert all(p.grad is not None for p in refiner.autoencoder.encoder.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in refiner.target_encoder.parameters())
    assert target.grad is None


@pytest.mark.parametrize("train_encoder", [True, False])
def test_the_encoder_of_the_target_stays_as_it_was_while_the_rest_trains(train_encoder):
    refiner = small(train_encoder=train_encoder)
    parts = {"own": refiner.autoencoder.encoder, "target": refiner.target_encoder}
    before = {part: {k: v.clone() for k, v in encoder.state_dict().items()} for part, encoder in parts.items()}
    assert all(torch.equal(value, before["target"][name]) for name, value in before["own"].items())
    optimizer = torch.optim.Adam([p for p in refiner.parameters() if p.requires_grad], 1e-2)
    refiner.train()
    assert not any(encoder.training for encoder in parts.values()) and refiner.autoencoder.decoder.training
    for _ in range(2):
        optimizer.zero_grad()
        target = images(2, 1, 16, 16, seed=2)
        DistillationLoss(StructureLoss())(refiner(images(2, 1, 16, 16), target), target).backward()
        optimizer.step()
    same = {
        part: all(torch.equal(value, before[part][name]) for name, value in encoder.state_dict().items())
        for part, encoder in parts.items()
    }
    assert same == {"own": not train_encoder, "target": True}
    # The statistics of the latent are those of stage 2 in both.
    norms = [encoder.latent_norm.state_dict() for encoder in parts.values()]
    assert all(torch.equal(value, norms[1][name]) for name, value in norms[0].items())


class Silent(torch.nn.Module):
    """A denoiser that always says zero."""

    def forward(self, x, timesteps, context=None):
        return torch.zeros_like(x[:, : x.shape[1] // 2])


def test_the_restored_image_depends_on_the_denoised_latent():
    refiner, image = small().eval(), images(1, 1, 16, 16)
    silent = LatentRefiner(refiner.autoencoder, Silent(), refiner.scheduler).eval()
    skips = refiner.autoencoder.encode(image)[1]
    zero = refiner.autoencoder.restore(image, torch.zeros(1, 4, 2, 2), skips)
    torch.testing.assert_close(silent(image), zero)
    assert (refiner(image) - zero).abs().max() > 1


@pytest.mark.parametrize("prediction_type", ["sample", "epsilon"])
def test_the_loss_is_the_image_loss_plus_the_weighted_error_of_the_denoiser(prediction_type):
    refiner, target = small(prediction_type).train(), images(2, 1, 16, 16, seed=2)
    refined = refiner(images(2, 1, 16, 16), target)
    error = (refined["prediction"] - refined["prediction_target"]).square().mean()
    expected = StructureLoss()(refined["image"], target) + 0.3 * error
    torch.testing.assert_close(DistillationLoss(StructureLoss(), 0.3)(refined, target), expected)


def test_the_denoiser_should_answer_the_latent_of_the_target():
    refiner, target = small().train(), images(2, 1, 16, 16, seed=2)
    expected = refiner.autoencoder.encode(target)[0]
    torch.testing.assert_close(refiner(images(2, 1, 16, 16), target)["prediction_target"], expected)


def test_the_loss_refuses_an_image_alone():
    with pytest.raises(ValueError, match="call the refiner with a target"):
        DistillationLoss(StructureLoss())(images(1, 1, 8, 8), images(1, 1, 8, 8))


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="epsilon_weight"):
        DistillationLoss(StructureLoss(), -0.1)


def test_a_target_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="target must have the shape"):
        small()(images(1, 1, 16, 16), images(1, 1, 8, 8))


def test_the_stock_trainer_and_evaluator_run_stage_three():
    refiner = small()
    data = [
        {key: images(2, 1, 16, 16, seed=seed + i) for seed, key in enumerate(("fbp", "prior", "reference"))}
        for i in range(3)
    ]
    before = refiner.denoiser.embed.weight.clone()
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=data,
        network=refiner,
        optimizer=torch.optim.Adam([p for p in refiner.parameters() if p.requires_grad], 1e-3),
        loss_function=DistillationLoss(StructureLoss()),
        inferer=SimpleInferer(),
        prepare_batch=PrepareDistillationPair(),
    )
    trainer.run()
    assert trainer.state.iteration == 3 and torch.isfinite(torch.tensor(trainer.state.output[0]["loss"]))
    assert trainer.state.output[0]["pred"]["image"].shape == (1, 16, 16)
    assert not torch.equal(before, refiner.denoiser.embed.weight)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=data,
        network=refiner,
        prepare_batch=PrepareDistillationPair(reference_key="reference", pass_target=False),
    )
    evaluator.run()
    assert evaluator.state.output[0]["pred"].shape == (1, 16, 16)
    torch.testing.assert_close(evaluator.state.output[0]["label"], data[-1]["reference"][0])
