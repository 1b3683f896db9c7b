"""Patches that look alike are filtered together, each frequency by its own signal and noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from bundle.inference import collaborative_wiener

SIZE = 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cosines(size: int) -> np.ndarray:
    """Orthonormal DCT-II."""
    place = np.arange(size)
    matrix = np.cos(np.pi * (place + 0.5) * place[:, None] / size) * np.sqrt(2 / size)
    matrix[0] /= np.sqrt(2)
    return matrix


def tiles(amplitude: float, count: int = 8) -> Tensor:
    """The same patch side by side: one cosine of unit norm, times the amplitude."""
    matrix = cosines(SIZE)
    patch = amplitude * np.outer(matrix[1], matrix[2])
    return torch.from_numpy(np.tile(patch, (count, count))).float()[None, None]


def plainly(image, pilot, noise, strength, size, step, radius, count, width) -> np.ndarray:
    """The definition, one patch after the other, in float64."""
    height, length = image.shape

    def corners(extent: int) -> list[int]:
        return sorted({*range(0, extent - size + 1, step), extent - size})

    matrix = cosines(size)
    rows, columns = corners(height), corners(length)

    def coefficients(of: np.ndarray, top: int, left: int) -> np.ndarray:
        return matrix @ of[top : top + size, left : left + size] @ matrix.T

    power = np.array([[coefficients(noise, top, left) ** 2 for left in columns] for top in rows])
    near_rows, near_columns = (
        np.exp(-0.5 * ((np.arange(n)[:, None] - np.arange(n)) / width) ** 2) for n in (len(rows), len(columns))
    )
    variance = np.einsum("rs,cd,sdij->rcij", near_rows, near_columns, power)
    variance /= near_rows.sum(1)[:, None, None, None] * near_columns.sum(1)[None, :, None, None]
    kaiser = np.kaiser(size, 2.0)
    total, weights = np.zeros_like(image), np.zeros_like(image)
    for r, top in enumerate(rows):
        for c, left in enumerate(columns):
            own = pilot[top : top + size, left : left + size]
            found = []
            for y in range(max(top - radius, 0), min(top + radius, height - size) + 1):
                for x in range(max(left - radius, 0), min(left + radius, length - size) + 1):
                    distance = ((pilot[y : y + size, x : x + size] - own) ** 2).sum()
                    found.append((-1.0 if (y, x) == (top, left) else distance, y, x))
            places = [place for _, *place in sorted(found)[:count]]
            places = places[: 2 ** int(np.log2(len(places)))]
            across = np.ones((1, 1))
            while len(across) < len(places):
                across = np.kron([[1, 1], [1, -1]], across)
            across = across / np.sqrt(len(places))
            group, signal = (
                np.einsum("mn,nij->mij", across, np.array([coefficients(of, *place) for place in places]))
                for of in (image, pilot)
            )
            gain = signal**2 / (signal**2 + strength * variance[r, c] + 1e-6)
            gain[0, 0, 0] = 1
            back = matrix.T @ np.einsum("nm,nij->mij", across, gain * group) @ matrix
            weight = np.outer(kaiser, kaiser) / (gain**2 * variance[r, c]).sum()
            for (y, x), patch in zip(places, back):
                total[y : y + size, x : x + size] += weight * patch
                weights[y : y + size, x : x + size] += weight
    return total / weights


@pytest.mark.parametrize(
    ("shape", "size", "step", "radius", "count"),
    [((20, 23), 4, 2, 5, 8), ((17, 12), 6, 3, 10, 16), ((9, 30), 5, 4, 3, 1), ((7, 7), 6, 1, 2, 16)],
)
def test_it_does_what_its_formula_says(shape, size, step, radius, count):
    image, pilot, noise = (10 * random(*shape, seed=seed) for seed in range(3))
    settings = (1.5, size, step, radius, count, 2.0)
    found = collaborative_wiener(image[None, None], pilot[None, None], noise[None, None], *settings)
    expected = plainly(*(of.double().numpy() for of in (image, pilot, noise)), *settings)
    np.testing.assert_allclose(found[0, 0].numpy(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", [(1, 1, 64, 64), (2, 1, 37, 51), (1, 1, 6, 90)])
def test_noise_that_counts_for_nothing_leaves_the_image(shape):
    image = random(*shape)
    # A pilot far above the floor that its power has.
    same = collaborative_wiener(image, 1000 * random(*shape, seed=1), random(*shape, seed=2), 0.0, step=2)
    torch.testing.assert_close(same, image, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("count", [1, 4, 16])
@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_what_patches_share_counts_as_often_as_there_are_of_them(strength, count):
    """The coefficient of ``count`` equal patches has ``count`` times the power of one, and the noise of one."""
    signal, noise = tiles(3.0), tiles(2.0)
    filtered = collaborative_wiener(signal, signal, noise, strength, SIZE, SIZE, 3 * SIZE, count)
    gain = count * 9 / (count * 9 + strength * 4)
    torch.testing.assert_close(filtered, gain * signal, rtol=1e-4, atol=1e-4)


def test_the_mean_of_a_group_stays():
    """A pilot that is wrong by a constant changes nothing, and flat ground keeps its level."""
    image, pilot, noise = (20 * random(1, 1, 48, 48, seed=seed) for seed in range(3))
    filtered = collaborative_wiener(image, pilot, noise)
    raised = collaborative_wiener(image + 500, pilot, noise)
    torch.testing.assert_close(raised, filtered + 500, rtol=1e-3, atol=1e-2)
    flat = collaborative_wiener(image + 500, torch.full_like(image, 40.0), noise)
    assert flat.mean().item() == pytest.approx(500 + image.mean().item(), abs=1)
    assert flat.std() < 0.4 * image.std()


def test_slices_around_are_searched_too():
    signal = 10 * torch.sin(torch.arange(48.0) / 3).view(1, 1, 48, 1).expand(1, 1, 48, 48)
    noisy = [signal + 20 * random(1, 1, 48, 48, seed=seed) for seed in range(3)]
    noise = noisy[0] - signal

    def error(*around: Tensor) -> Tensor:
        pairs = [(image, 0.5 * signal) for image in around]
        return (collaborative_wiener(noisy[0], 0.5 * signal, noise, radius=2, around=pairs) - signal).square().mean()

    assert error(*noisy[1:]) < 0.8 * error()
    # The same slice again has the same noise: as if it were not there.
    assert error(noisy[0], noisy[0]) == error()


def test_the_filter_is_linear_in_the_image_and_keeps_its_inputs():
    first, second, pilot, noise = (random(2, 1, 40, 40, seed=seed) for seed in range(4))
    before = [image.clone() for image in (first, pilot, noise)]

    def filtered(image: Tensor) -> Tensor:
        return collaborative_wiener(image, pilot, noise)

    torch.testing.assert_close(
        filtered(2 * first - second), 2 * filtered(first) - filtered(second), rtol=1e-4, atol=1e-4
    )
    assert all(torch.equal(*pair) for pair in zip((first, pilot, noise), before))
    torch.testing.assert_close(filtered(first)[1:], collaborative_wiener(first[1:], pilot[1:], noise[1:]))


def test_the_number_of_threads_changes_nothing():
    image, pilot, noise = (random(1, 1, 80, 70, seed=seed) for seed in range(3))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(collaborative_wiener(image, pilot, noise))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"strength": -1.0}, "strength must be 0 or more, got -1.0"),
        ({"strength": float("nan")}, "strength must be 0 or more, got nan"),
        ({"size": 1}, "size must be 2 pixels or more and fit into the image, got 1"),
        ({"size": 30}, "size must be 2 pixels or more and fit into the image, got 30"),
        ({"step": 0}, "step must be 1 to size, 6, got 0"),
        ({"step": 7}, "step must be 1 to size, 6, got 7"),
        ({"radius": 0}, "radius must be 1 pixel or more, got 0"),
        ({"count": 12}, "count must be a power of two, got 12"),
        ({"count": 0}, "count must be a power of two, got 0"),
        ({"width": 0.0}, "width must be positive, got 0.0"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(setting, message):
    image = random(1, 1, 24, 24)
    with pytest.raises(ValueError, match=f"^{message}"):
        collaborative_wiener(image, image, image, **setting)


@pytest.mark.parametrize("name", ["pilot", "noise", "around"])
def test_an_image_of_another_shape_is_refused(name):
    image, other = random(1, 1, 24, 24), random(1, 1, 24, 25)
    given = {"pilot": image, "noise": image} | {name: [(image, other)] if name == "around" else other}
    with pytest.raises(ValueError, match=rf"^image and {name}.* must both be \(B, 1, H, W\)"):
        collaborative_wiener(image, **given)
