"""Laws of the latent transformer."""

from __future__ import annotations

import pytest
import torch

from bundle.diffusion import LatentTransformer


def small(randomise=True, **arguments):
    torch.manual_seed(0)
    network = LatentTransformer(3, 3, width=8, depth=2, num_heads=2, **arguments)
    if randomise:  # what training does to the layers that start at zero
        for block in network.blocks:
            torch.nn.init.normal_(block.modulation.weight)
        torch.nn.init.normal_(network.head.weight)
    return network.eval()


@pytest.mark.parametrize(("shortcut", "channels"), [("condition", slice(3, 6)), ("noisy", slice(0, 3))])
def test_an_untrained_denoiser_repeats_one_of_its_inputs(shortcut, channels):
    x = torch.randn(2, 6, 5, 4)
    out = small(randomise=False, shortcut=shortcut)(x, torch.tensor([0, 4]))
    torch.testing.assert_close(out, x[:, channels])


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (4, 9)])
def test_any_latent_size_comes_back_in_its_size(size):
    assert small()(torch.randn(2, 6, *size), torch.tensor([1, 2])).shape == (2, 3, *size)


def test_other_time_steps_give_other_answers():
    network, x = small(), torch.randn(1, 6, 4, 4)
    answers = [network(x, torch.tensor([float(t)])) for t in range(5)]
    for first, second in zip(answers, answers[1:], strict=False):
        assert (first - second).abs().max() > 1e-2


def test_one_time_step_stands_for_the_whole_batch():
    network, x = small(), torch.randn(3, 6, 4, 4)
    torch.testing.assert_close(network(x, torch.tensor([2.0])), network(x, torch.tensor([2, 2, 2])))


def test_images_of_a_batch_do_not_see_each_other():
    network, x = small(), torch.randn(2, 6, 4, 6)
    steps = torch.tensor([1, 3])
    alone = torch.cat([network(x[:1], steps[:1]), network(x[1:], steps[1:])])
    torch.testing.assert_close(network(x, steps), alone, atol=1e-5, rtol=1e-5)


def test_attention_mixes_channels_by_the_softmax_of_their_cosines():
    """Restormer's transposed attention, written out head by head."""
    attention = small().blocks[0].attention
    x = torch.randn(2, 8, 3, 5)
    query, key, value = attention.qkv_dwconv(attention.qkv(x)).flatten(2).chunk(3, dim=1)
    expected = []
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        cosine = torch.cosine_similarity(query[:, part, None], key[:, None, part], dim=-1)
        expected.append((cosine * attention.temperature[head]).softmax(-1) @ value[:, part])
    expected = attention.project_out(torch.cat(expected, dim=1).reshape(2, 8, 3, 5))
    torch.testing.assert_close(attention(x), expected, atol=1e-5, rtol=1e-4)


def test_every_parameter_learns_once_the_gates_are_open():
    network = small()
    network(torch.randn(2, 6, 4, 4), torch.tensor([1, 3])).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


@pytest.mark.parametrize(
    ("x", "timesteps", "context", "name"),
    [
        (torch.zeros(2, 5, 4, 4), torch.zeros(2), None, "x must"),
        (torch.zeros(2, 6, 4, 4), torch.zeros(3), None, "timesteps"),
        (torch.zeros(2, 6, 4, 4), torch.zeros(2), torch.zeros(2, 1), "context"),
    ],
)
def test_wrong_inputs_are_named(x, timesteps, context, name):
    with pytest.raises(ValueError, match=name):
        small()(x, timesteps, context)


@pytest.mark.parametrize(
    "arguments",
    [{"width": 9}, {"shortcut": "none"}, {"condition_channels": 2}, {"depth": 0}, {"patch_size": 0}],
)
def test_wrong_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="must|equal channels"):
        LatentTransformer(**arguments)
