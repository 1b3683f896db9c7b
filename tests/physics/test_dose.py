"""Photon noise: its size, its mean, its seed."""

from __future__ import annotations

import math

import pytest
import torch

from bundle.physics import (
    check_fractions,
    expected_log_bias,
    line_integral_variance,
    log_bias,
    simulate_low_dose,
    thin_line_integrals,
)

SCANNER = {"electronic_variance": 10.0}
PHOTONS, SAMPLES = 1.5e5, 200_000
# Standard deviation of noisy line integrals by dose, at p = 2, 4, 5, 6.
TABLE = {
    1.0: (0.0070, 0.0191, 0.0316, 0.0526),
    0.25: (0.0141, 0.0384, 0.0641, 0.109),
    0.10: (0.0222, 0.0614, 0.104, 0.185),
}
CASES = [(dose, p, std) for dose, row in TABLE.items() for p, std in zip((2.0, 4.0, 5.0, 6.0), row)]


def noisy(p: float, photons: float = PHOTONS, seed: int = 0, **options) -> torch.Tensor:
    line_integrals = torch.full((SAMPLES,), p, dtype=torch.float64)
    return simulate_low_dose(line_integrals, photons, generator=torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize(("dose", "p", "std"), CASES)
def test_first_order_noise_is_that_of_the_scanner(dose, p, std):
    variance = line_integral_variance(torch.tensor(p), PHOTONS, dose=dose, **SCANNER)
    assert math.sqrt(variance) == pytest.approx(std, rel=0.01)


@pytest.mark.parametrize(("dose", "p", "std"), CASES)
def test_simulated_noise_has_the_first_order_variance(dose, p, std):
    first_order = line_integral_variance(torch.tensor(p, dtype=torch.float64), PHOTONS, dose=dose, **SCANNER).item()
    # Four standard errors of a sample variance, and the logarithm's next order, about 2.5 times the variance.
    tolerance = 4 * math.sqrt(2 / SAMPLES) + 3 * first_order
    assert noisy(p, dose=dose, **SCANNER).var().item() == pytest.approx(first_order, rel=tolerance)


@pytest.mark.parametrize("p", [0.0, 2.0, 4.0, 5.0])
def test_the_mean_is_raised_by_half_the_variance_only(p):
    variance = line_integral_variance(torch.tensor(p, dtype=torch.float64), PHOTONS, dose=0.25, **SCANNER).item()
    error = 4 * math.sqrt(variance / SAMPLES) + 2 * variance**2
    assert noisy(p, dose=0.25, **SCANNER).mean().item() == pytest.approx(p + variance / 2, abs=error)


@pytest.mark.parametrize("electronic_variance", [0.0, 10.0])
@pytest.mark.parametrize("counts", [3.0, 8.0, 20.0, 100.0, 299.0, 301.0, 5000.0])
def test_the_bias_of_the_logarithm_is_that_of_simulated_scans(counts, electronic_variance):
    p = math.log(PHOTONS / counts)
    scans = noisy(p, electronic_variance=electronic_variance)
    bias = log_bias(scans.mean()[None], PHOTONS, electronic_variance=electronic_variance).item()
    # The mean passes through the inverse: its error counts up to three times where photons are fewest.
    error = 3 * 4 * scans.std().item() / math.sqrt(SAMPLES)
    assert bias == pytest.approx(scans.mean().item() - p, abs=error)


def test_what_is_added_to_the_noise_free_is_taken_from_the_mean():
    p = torch.linspace(0, math.log(PHOTONS / 2.5), 40, dtype=torch.float64)
    added = expected_log_bias(p, PHOTONS, **SCANNER)
    torch.testing.assert_close(log_bias(p + added, PHOTONS, **SCANNER), added, rtol=1e-3, atol=1e-6)
    scans = noisy(9.0, **SCANNER)
    found = expected_log_bias(torch.tensor([9.0]), PHOTONS, **SCANNER).item()
    assert found == pytest.approx(scans.mean().item() - 9.0, abs=4 * scans.std().item() / math.sqrt(SAMPLES))


@pytest.mark.parametrize("fractions", [(0.5,), (0.0, 0.5), (0.6, 0.5), (0.5, 1.0)])
def test_shares_that_cannot_be_are_refused(fractions):
    with pytest.raises(ValueError, match="fractions must be two growing numbers"):
        check_fractions(fractions)


def test_many_photons_leave_half_the_variance_as_bias():
    p = torch.linspace(0, 4, 50, dtype=torch.float64)
    half = line_integral_variance(p, 1e6, **SCANNER) / 2
    torch.testing.assert_close(log_bias(p + half, 1e6, **SCANNER), half, rtol=2e-3, atol=0)


def test_no_photon_left_is_corrected_as_the_least_count():
    starved = log_bias(torch.tensor([20.0, 30.0]), PHOTONS, **SCANNER)
    assert starved[0] == starved[1] and torch.isfinite(starved).all()


@pytest.mark.parametrize("keywords", [{"dose": 0.0}, {"electronic_variance": -1.0}, {"floor": 0.0}])
def test_a_bias_of_no_scanner_is_refused(keywords):
    with pytest.raises(ValueError, match=next(iter(keywords))):
        log_bias(torch.zeros(3), PHOTONS, **keywords)


def test_a_quarter_of_the_dose_is_a_quarter_of_the_photons():
    assert torch.equal(noisy(3.0, dose=0.25), noisy(3.0, photons=PHOTONS / 4))


def test_the_same_seed_gives_the_same_noise_and_another_does_not():
    first = noisy(3.0, seed=5, **SCANNER)
    assert torch.equal(first, noisy(3.0, seed=5, **SCANNER))
    assert not torch.equal(first, noisy(3.0, seed=6, **SCANNER))


@pytest.mark.parametrize("floor", [0.5, 1.0, 4.0])
def test_no_count_falls_below_the_floor(floor):
    low_dose = noisy(12.0, dose=0.25, floor=floor, **SCANNER)
    assert low_dose.max().item() == pytest.approx(math.log(PHOTONS / 4 / floor))


def test_shape_and_dtype_stay_and_the_input_is_not_changed():
    line_integrals = torch.rand(2, 1, 5, 7)
    before = line_integrals.clone()
    low_dose = simulate_low_dose(line_integrals, PHOTONS, dose=0.25, **SCANNER)
    assert low_dose.shape == line_integrals.shape and low_dose.dtype == torch.float32
    assert torch.equal(line_integrals, before) and not torch.equal(low_dose, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"photons": 0.0}, "photons must be a positive number, got 0.0"),
        ({"photons": -1.0}, "photons must be a positive number, got -1.0"),
        ({"dose": 0.0}, "dose must be a positive number, got 0.0"),
        ({"dose": -0.25}, "dose must be a positive number, got -0.25"),
        ({"dose": math.nan}, "dose must be a positive number, got nan"),
        ({"floor": 0.0}, "floor must be positive, got 0.0"),
        ({"electronic_variance": -1.0}, "electronic_variance must be zero or more, got -1.0"),
    ],
)
def test_an_impossible_scanner_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        simulate_low_dose(torch.zeros(3), **({"photons": PHOTONS} | options))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_line_integrals_must_be_finite(value):
    with pytest.raises(ValueError, match="line_integrals has NaN or infinite values"):
        simulate_low_dose(torch.tensor([1.0, value]), PHOTONS)
    with pytest.raises(ValueError, match="line_integrals has NaN or infinite values"):
        thin_line_integrals(torch.tensor([1.0, value]), PHOTONS, 0.5)


def test_thinned_parts_are_scans_of_lower_dose_with_independent_noise():
    parts = thin_line_integrals(noisy(3.0), PHOTONS, 0.3, generator=torch.Generator().manual_seed(1))
    for part, dose in zip(parts, (0.3, 0.7)):
        variance = line_integral_variance(torch.tensor(3.0, dtype=torch.float64), PHOTONS, dose=dose).item()
        assert part.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / SAMPLES) + 3 * variance)
        assert part.mean().item() == pytest.approx(3 + variance / 2, abs=4 * math.sqrt(variance / SAMPLES))
    assert abs(torch.corrcoef(torch.stack(parts))[0, 1].item()) < 4 / math.sqrt(SAMPLES)


def test_thinning_loses_no_photon():
    whole = noisy(3.0)
    first, second = thin_line_integrals(whole, PHOTONS, 0.3)
    counts = 0.3 * PHOTONS * torch.exp(-first) + 0.7 * PHOTONS * torch.exp(-second)
    assert torch.allclose(counts, PHOTONS * torch.exp(-whole))


@pytest.mark.parametrize("fraction", [0.0, 1.0, math.nan])
def test_thinning_needs_a_fraction_inside_0_and_1(fraction):
    with pytest.raises(ValueError, match="fraction must be between 0 and 1, got"):
        thin_line_integrals(torch.zeros(3), PHOTONS, fraction)


@pytest.mark.parametrize("fraction", [0.2, 0.8])
def test_parts_of_a_scan_with_electronic_noise_are_uncorrelated(fraction):
    p, variance = math.log(PHOTONS / 60), 40.0
    scan = noisy(p, electronic_variance=variance)
    generator = torch.Generator().manual_seed(3)
    first, second = thin_line_integrals(scan, PHOTONS, fraction, electronic_variance=variance, generator=generator)
    naive = thin_line_integrals(scan, PHOTONS, fraction, generator=generator)
    counts = [part.neg().exp() * share * PHOTONS for part, share in ((first, fraction), (second, 1 - fraction))]
    error = 4 / math.sqrt(SAMPLES)
    assert abs(torch.corrcoef(torch.stack(counts))[0, 1]) < error + 0.01  # the floor cuts off the lowest counts
    assert torch.corrcoef(torch.stack(naive))[0, 1] > 0.1
    expected = fraction * 60 + fraction * variance
    assert counts[0].var().item() == pytest.approx(expected, rel=0.05)


def test_a_negative_electronic_variance_is_refused():
    with pytest.raises(ValueError, match="electronic_variance"):
        thin_line_integrals(torch.zeros(3), PHOTONS, 0.5, electronic_variance=-1.0)
