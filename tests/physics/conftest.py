"""Every law holds for every backend and every scan."""

from __future__ import annotations

import pytest

from .phantoms import SCANS, scan


@pytest.fixture(params=["numba", "torch"])
def backend(request):
    return request.param


@pytest.fixture(params=SCANS.values(), ids=SCANS.keys())
def geometry(request):
    return scan(32, **request.param)
