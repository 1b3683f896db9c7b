"""Peers are tuned on slices that are given, from dose to dose, and what is tuned stays."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from bundle.peers import FbpPeer, Scan


@pytest.fixture
def tune_peers():
    import tune_peers

    return tune_peers


@pytest.mark.parametrize("start", [0.0, 3.0, 9.0])
def test_climbing_finds_the_least_of_a_valley(tune_peers, start):
    best, tried = tune_peers.climb(range(10), start, lambda value: (value - 6) ** 2)
    assert best == 6
    assert {5, 6, 7} <= set(tried)
    assert all(tried[value] == (value - 6) ** 2 for value in tried)


def test_a_best_at_the_end_of_a_grid_is_told(tune_peers):
    inside = {"window": "hann", "cutoff": 1.0, "strength": tune_peers.STEPS[5]}
    assert not tune_peers.at_a_border("tv", inside)
    assert tune_peers.at_a_border("tv", {**inside, "strength": tune_peers.STEPS[-1]})
    assert tune_peers.at_a_border("fbp_hann", {"window": "hann", "cutoff": tune_peers.CUTOFFS[0]})
    assert tune_peers.at_a_border("nlm", {**inside, "patch_size": 15, "patch_distance": 5})


def test_tuning_follows_the_noise_of_the_slices(tune_peers, scan):
    reference = FbpPeer()(Scan(sinogram=torch.ones_like(scan.sinogram), geometry=scan.geometry))
    slices = tune_peers.Slices([scan], [reference])
    chosen, error, seen = tune_peers.tune("tv", slices, {})
    assert error == pytest.approx(min(value for tried in seen.values() for value in tried.values()))
    assert error < slices.score("fbp_hann", chosen["window"], chosen["cutoff"])


def test_strengths_of_the_same_patients_are_kept_and_of_others_not(tune_peers, tmp_path):
    head = {"patients": {"a": [1, 2]}, "grid": {"strength": (0.1, 0.2)}}
    path = tmp_path / "strengths.json"
    assert tune_peers.kept_rows(path, head) == {}
    row = {"dose": 0.25, "chosen": {"tv": {"strength": 0.1}}}
    path.write_text(json.dumps({**head, "doses": [row]}))
    assert tune_peers.kept_rows(path, head) == {0.25: row}
    assert tune_peers.kept_rows(path, {**head, "patients": {"b": [1, 2]}}) == {}
    assert tune_peers.kept_rows(path, {**head, "grid": {"strength": (0.1, 0.3)}}) == {}


class Scanner:
    """Makes the same slices at every dose, and remembers which doses were asked for."""

    def __init__(self, slices):
        self.slices = slices
        self.doses = []

    def __call__(self, dose):
        self.doses.append(dose)
        return self.slices


@pytest.fixture
def scanner(tune_peers, scan):
    reference = FbpPeer()(Scan(sinogram=torch.ones_like(scan.sinogram), geometry=scan.geometry))
    return Scanner(tune_peers.Slices([scan], [reference]))


def last_of(found):
    *_, rows = found
    return rows


def test_a_stopped_tuning_goes_on_where_it_was(tune_peers, scanner):
    methods, doses = ["fbp_hann", "tv"], (0.25, 1.0)
    whole = last_of(tune_peers.tune_doses({}, doses, methods, scanner))
    assert scanner.doses == [1.0, 0.25]
    first = copy.deepcopy(next(tune_peers.tune_doses({}, doses, methods, scanner)))
    assert set(first) == {1.0}
    scanner.doses.clear()
    assert last_of(tune_peers.tune_doses(first, doses, methods, scanner)) == whole
    assert scanner.doses == [0.25]


def test_a_method_that_is_new_is_tuned_alone_and_the_others_stay(tune_peers, scanner):
    rows = last_of(tune_peers.tune_doses({}, [0.25], ["fbp_hann"], scanner))
    kept = {"cutoff": "as it was"}
    rows[0.25]["chosen"]["fbp_hann"] = kept
    rows = last_of(tune_peers.tune_doses(rows, [0.25], ["fbp_hann", "tv"], scanner))
    assert rows[0.25]["chosen"]["fbp_hann"] is kept
    assert rows[0.25]["rmse_hu"]["tv"] <= rows[0.25]["rmse_hu"]["fbp_ram-lak"]
    assert set(rows[0.25]["tried"]) == {"fbp_hann", "tv"}


def test_nothing_is_scanned_where_all_is_tuned(tune_peers, scanner):
    rows = last_of(tune_peers.tune_doses({}, [0.25], ["fbp_hann"], scanner))
    scanner.doses.clear()
    assert list(tune_peers.tune_doses(rows, [0.25], ["fbp_hann"], scanner)) == []
    assert scanner.doses == []
