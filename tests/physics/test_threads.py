"""The operators in forked processes and in several Python threads."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.utils.data import DataLoader

from bundle.physics import FanBeamProjector, FilteredBackprojection

from .phantoms import gaussian_image, gaussian_sinogram, scan


class Projections:
    """A dataset that computes its items: slice k times k."""

    def __init__(self, project: FanBeamProjector, image: torch.Tensor) -> None:
        self.project, self.image = project, image

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.project(index * self.image)[0]


def test_data_loader_workers_can_project():
    project, image = FanBeamProjector(scan(64)), gaussian_image(scan(64)).float()
    expected = project(image)  # threads have run in this process before it forks
    loader = DataLoader(Projections(project, image), num_workers=2, multiprocessing_context="fork", timeout=60)
    for k, sinogram in enumerate(loader):
        assert torch.allclose(sinogram, k * expected, rtol=1e-5)


def test_a_forked_process_can_use_threads_of_its_own():
    project, image = FanBeamProjector(scan(64)), gaussian_image(scan(64)).float()
    expected = project(image)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    child = context.Process(target=lambda: results.put(project(image).numpy()))
    child.start()
    child.join(60)
    if child.is_alive():
        child.kill()
    assert child.exitcode == 0
    assert torch.equal(torch.from_numpy(results.get()), expected)


def test_python_threads_do_not_disturb_each_other():
    project, fbp = FanBeamProjector(scan(64), "numba"), FilteredBackprojection(scan(64), backend="numba")
    image, sinogram = gaussian_image(scan(64)).float(), gaussian_sinogram(scan(64)).float()
    one, other = project(image), fbp(sinogram)
    with ThreadPoolExecutor(4) as pool:
        sinograms, images = (list(pool.map(f, [x] * 8)) for f, x in ((project, image), (fbp, sinogram)))
    assert all(torch.equal(result, one) for result in sinograms)
    assert all(torch.equal(result, other) for result in images)


def test_the_number_of_threads_does_not_change_the_result():
    project, fbp = FanBeamProjector(scan(64), "numba"), FilteredBackprojection(scan(64), backend="numba")
    image, sinogram = gaussian_image(scan(64)).float(), gaussian_sinogram(scan(64)).float()
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append((project(image), project.adjoint(sinogram), fbp(sinogram)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*results))
