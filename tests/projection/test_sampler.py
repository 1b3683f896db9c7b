"""Laws of the contextual sub-data sampler."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.projection import ContextualSubsampler

size = st.integers(1, 9)
seeds = st.integers(0, 2**16)


def coordinates(batch: int, views: int, cells: int) -> torch.Tensor:
    """View and cell number of every sample as two channels (B, 2, V, D)."""
    grid = torch.stack(torch.meshgrid(torch.arange(views), torch.arange(cells), indexing="ij")).double()
    return grid.expand(batch, -1, -1, -1)


@settings(deadline=None, max_examples=40)
@given(h=size, w=size, seed=seeds)
def test_input_and_target_are_direct_neighbours_within_their_cell(h, w, seed):
    where = coordinates(3, 2 * h, 2 * w)
    first, second = ContextualSubsampler(seed=seed)(where)(where)
    assert torch.equal((first - second).abs().sum(1), torch.ones(3, h, w))
    for half in (first, second):
        assert torch.equal(half.div(2, rounding_mode="floor"), coordinates(3, h, w))


@settings(deadline=None, max_examples=40)
@given(views=size, cells=size, seed=seeds)
def test_odd_sinograms_repeat_their_last_line(views, cells, seed):
    where = coordinates(2, views, cells)
    plan = ContextualSubsampler("all", seed=seed)(where)
    whole = torch.nn.functional.pad(where, (0, cells % 2, 0, views % 2), mode="replicate")
    even = type(plan)(plan.input_positions, plan.target_positions, tuple(whole.shape[2:]))
    assert plan(where)[0].shape == (2, 2, -(-views // 2), -(-cells // 2))
    assert all(torch.equal(a, b) for a, b in zip(plan(where), even(whole), strict=True))


def test_a_plan_samples_every_sinogram_alike():
    y = torch.rand(2, 1, 10, 12)
    plan = ContextualSubsampler(seed=0)(y)
    for a, b in zip(plan(y), plan(3 * y + 1), strict=True):
        torch.testing.assert_close(3 * a + 1, b)


def test_the_same_seed_gives_the_same_masks_and_a_next_draw_others():
    sampler, shape = ContextualSubsampler(seed=7), (2, 1, 16, 16)
    first, second = sampler.draw(shape), sampler.draw(shape)
    again = sampler.set_random_state(7).draw(shape)
    assert torch.equal(first.input_positions, again.input_positions)
    assert torch.equal(first.target_positions, again.target_positions)
    assert not torch.equal(first.input_positions, second.input_positions)


def test_without_a_seed_the_global_random_state_decides():
    plans = []
    for _ in range(2):
        torch.manual_seed(3)
        plans.append(ContextualSubsampler().draw((1, 1, 8, 8)))
    assert torch.equal(plans[0].target_positions, plans[1].target_positions)


@pytest.mark.parametrize(("pairs", "num_pairs"), [("adjacent", 8), ("all", 12)])
def test_every_allowed_pair_of_positions_is_equally_likely(pairs, num_pairs):
    """Chi-square over the ordered pairs, loosely; many items, since a pair of steps is drawn for each.

    Of six pairs of steps four are adjacent and fall on eight pairs of positions, two are diagonal and fall on four.
    """
    plan = ContextualSubsampler(pairs, seed=0).draw((4000, 1, 4, 4))
    counts = torch.bincount((4 * plan.input_positions + plan.target_positions).flatten(), minlength=16).double()
    seen = counts[counts > 0]
    assert len(seen) == num_pairs
    expected = seen.sum() / num_pairs
    # One item's four cells share their steps, not their start: hence the wide limit.
    assert ((seen - expected) ** 2 / expected).sum() < 5 * num_pairs


def test_cells_and_items_are_drawn_apart():
    positions = ContextualSubsampler(seed=0).draw((2, 1, 64, 64)).input_positions
    assert 0.15 < (positions[0] == positions[1]).double().mean() < 0.35
    assert 0.15 < (positions[:, 1:] == positions[:, :-1]).double().mean() < 0.35


def test_wrong_shapes_and_pairs_are_named():
    with pytest.raises(ValueError, match="pairs must be one of"):
        ContextualSubsampler("diagonal")
    with pytest.raises(ValueError, match="sinogram_shape"):
        ContextualSubsampler().draw((4, 4))
    with pytest.raises(ValueError, match="plan's shape"):
        ContextualSubsampler().draw((1, 1, 4, 4))(torch.zeros(1, 1, 4, 6))
