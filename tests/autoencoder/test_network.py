"""Laws of the stage-2 autoencoder."""

from __future__ import annotations

import pytest
import torch

from bundle.autoencoder import DistillationAutoencoder, StructureLoss
from bundle.autoencoder.network import _local_size


def small(seed=0, random_head=False, **arguments):
    torch.manual_seed(seed)
    network = DistillationAutoencoder(channels=(8, 12, 16), latent_channels=4, skip_channels=(2, 2, 2), **arguments)
    if random_head:
        torch.nn.init.normal_(network.decoder.head.weight, std=0.1)
    return network


def images(*shape, seed=1):
    return 300 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_an_untrained_autoencoder_returns_its_input():
    image = images(2, 1, 24, 16)
    torch.testing.assert_close(small()(image, images(2, 1, 24, 16, seed=2)), image)


@pytest.mark.parametrize("size", [(8, 8), (1, 9), (17, 30), (33, 8)])
def test_any_size_comes_back_in_its_size(size):
    network = small(random_head=True).eval()
    image = images(1, 1, *size)
    latent, skips = network.encode(image)
    coarse = [-(-length // 8) for length in size]
    assert list(latent.shape) == [1, 4, *coarse]
    assert [list(skip.shape[-2:]) for skip in skips] == [[factor * n for n in coarse] for factor in (4, 2, 1)]
    assert network(image).shape == image.shape


def test_padding_does_not_reach_the_restored_image_when_the_image_already_repeats_its_border():
    network = small(random_head=True).eval()
    image = images(1, 1, 13, 21)
    padded = torch.nn.functional.pad(image, (0, 3, 0, 3), mode="replicate")
    torch.testing.assert_close(network(image), network(padded)[..., :13, :21])


def test_the_latent_has_unit_variance_in_every_channel_while_training():
    latent, _ = small().train().encode(images(4, 1, 32, 32))
    torch.testing.assert_close(latent.var(dim=(0, 2, 3), unbiased=False), torch.ones(4), atol=5e-3, rtol=0)
    torch.testing.assert_close(latent.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)


def test_statistics_kept_from_training_normalise_the_latent_of_the_target():
    network = small().train()
    image, target = images(4, 1, 32, 32), 40 + 2 * images(4, 1, 32, 32, seed=2)
    for _ in range(250):
        network(image, target)
    latent, _ = network.eval().encode(target)
    torch.testing.assert_close(latent.var(dim=(0, 2, 3)), torch.ones(4), atol=3e-2, rtol=0)


def test_the_latent_comes_from_the_target_and_the_skips_from_the_image():
    network = small(random_head=True).eval()
    image, target = images(1, 1, 16, 16), images(1, 1, 16, 16, seed=2)
    expected = network.restore(image, network.encode(target)[0], network.encode(image)[1])
    torch.testing.assert_close(network(image, target), expected)
    torch.testing.assert_close(network(image), network(image, image))


def test_training_makes_the_decoder_use_the_latent():
    """After a few steps a zero latent gives another image, and a worse one."""
    network = small().train()
    loss_function = StructureLoss()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    clean = images(4, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    noisy = clean + images(4, 1, 32, 32, seed=2)
    for _ in range(30):
        optimizer.zero_grad()
        loss_function(network(noisy, clean), clean).backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        latent, skips = network.encode(clean)[0], network.encode(noisy)[1]
        with_latent = loss_function(network.restore(noisy, latent, skips), clean)
        without = loss_function(network.restore(noisy, torch.zeros_like(latent), skips), clean)
    assert with_latent < 0.98 * without


def test_hounsfield_scale_is_one_constant():
    """Scaling images and scale_hu alike scales the result alike."""
    image = images(1, 1, 16, 16)
    single = small(random_head=True, scale_hu=250.0).eval()
    double = small(random_head=True, scale_hu=500.0).eval()
    torch.testing.assert_close(double(2 * image), 2 * single(image))


def test_noise_reaches_the_skips_of_a_network_that_wants_it_and_of_no_other():
    image, noise = images(1, 1, 16, 16), images(1, 1, 16, 16, seed=2).abs()
    told, untold = small().eval(), small(noise_aware=False).eval()
    assert not torch.equal(told.encode(image)[1][0], told.encode(image, noise)[1][0])
    assert torch.equal(untold.encode(image)[1][0], untold.encode(image, noise)[1][0])
    torch.testing.assert_close(told.encode(image), told.encode(image, torch.zeros_like(image)))


def test_the_level_of_noise_is_its_root_mean_square_around_a_pixel():
    noise = torch.zeros(1, 1, 16, 16)
    noise[..., 8, 8] = -7.0
    level = _local_size(noise)
    torch.testing.assert_close(level[..., 5:12, 5:12], torch.ones(1, 1, 7, 7))
    assert level.sum().item() == pytest.approx(49)
    torch.testing.assert_close(_local_size(torch.full((1, 1, 9, 9), -3.0)), torch.full((1, 1, 9, 9), 3.0))


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="noise must have the shape"):
        small()(torch.zeros(1, 1, 16, 16), noise=torch.zeros(1, 1, 16, 24))


def test_no_gradient_reaches_a_detached_target():
    network = small(random_head=True)
    target = images(1, 1, 16, 16).requires_grad_()
    network(images(1, 1, 16, 16, seed=2), target.detach()).sum().backward()
    assert target.grad is None


@pytest.mark.parametrize("image", [torch.zeros(1, 16, 16), torch.zeros(1, 2, 16, 16)])
def test_images_of_another_shape_are_refused(image):
    with pytest.raises(ValueError, match="image must be"):
        small()(image)


def test_a_target_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="target must have the shape"):
        small()(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 24))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"channels": (8, 8)}, "channels"),
        ({"skip_channels": (2, 0, 2)}, "skip_channels"),
        ({"scale_hu": 0}, "scale_hu"),
    ],
)
def test_wrong_arguments_are_named(arguments, name):
    with pytest.raises(ValueError, match=name):
        DistillationAutoencoder(**arguments)
