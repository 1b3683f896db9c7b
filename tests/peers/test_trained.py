"""Networks as methods, and a restorer whose stages cost one run."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import torch
from torch import nn

from bundle.peers import DenoisedSinogramPeer, FbpPeer, StagedPeer


class CountingRestorer(nn.Module):
    """FBP by stages, each 1 HU above the one before; counts its runs."""

    def __init__(self):
        super().__init__()
        self.runs = []

    def restore(self, sinogram, geometry, incident_photons):
        self.runs.append((len(sinogram), incident_photons))
        mean = sinogram.mean(dim=(1, 2, 3)).reshape(-1, 1, 1, 1).expand(-1, 1, *geometry.image_shape)
        return SimpleNamespace(prior=mean + 1, fused=mean + 2, restored=mean + 3)


def test_a_denoiser_that_changes_nothing_gives_the_fbp(phantom):
    scan = phantom.noisy(0.25)
    assert torch.equal(DenoisedSinogramPeer(nn.Identity())(scan), FbpPeer()(scan))


def test_the_stages_of_one_scan_cost_one_run(phantom):
    peer = StagedPeer(CountingRestorer())
    scan = phantom.noisy(0.25)
    images = [peer.stage(name)(scan) for name in ("prior", "fused", "restored")]
    assert [len(peer.restorer.runs), peer.restorer.runs[0]] == [1, (1, scan.incident_photons)]
    assert torch.allclose(images[1], images[0] + 1)
    assert torch.allclose(images[2], images[0] + 2)


def test_another_scan_is_restored_anew(phantom):
    peer = StagedPeer(CountingRestorer())
    method = peer.stage("restored")
    first, second = phantom.noisy(0.25, 0), phantom.noisy(0.25, 1)
    images = [method(scan) for scan in (first, second, first)]
    assert len(peer.restorer.runs) == 3
    assert torch.equal(images[0], images[2]) and not torch.equal(images[0], images[1])


def test_many_slices_are_restored_some_at_a_time(phantom):
    scan = phantom.noisy(0.25)
    stack = dataclasses.replace(scan, sinogram=scan.sinogram * torch.arange(1.0, 6.0).reshape(5, 1, 1, 1))
    peer = StagedPeer(CountingRestorer(), slices_per_batch=2)
    image = peer.stage("restored")(stack)
    assert [run[0] for run in peer.restorer.runs] == [2, 2, 1]
    assert image.shape == (5, 1, 64, 64)
    assert (image[1:, 0, 0, 0] > image[:-1, 0, 0, 0]).all()
