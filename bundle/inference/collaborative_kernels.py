"""The loops of :func:`bundle.inference.collaborative_wiener`, compiled by numba."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(nogil=True, cache=True, inline="always")
def _find(pilots, top, left, size, radius, count, distances, places, found_distance):
    """Fill ``places`` ``(count, 3)`` with slice, row and column of the patches most like that at ``top``, ``left``.

    The patch itself comes first. Returns how many were found.
    """
    slices, height, width = pilots.shape
    first, last = max(left - radius, 0), min(left + radius, width - size)
    columns = last - first + 1
    places[0, 0], places[0, 1], places[0, 2] = 0, top, left
    found_distance[0] = -1.0
    found = 1
    for n in range(slices):
        for row in range(max(top - radius, 0), min(top + radius, height - size) + 1):
            # All columns of a row at once: their distances lie side by side.
            for k in range(columns):
                distances[k] = 0.0
            for i in range(size):
                for j in range(size):
                    own = pilots[0, top + i, left + j]
                    for k in range(columns):
                        difference = pilots[n, row + i, first + j + k] - own
                        distances[k] += difference * difference
            for k in range(columns):
                if found == count and distances[k] >= found_distance[found - 1]:
                    continue
                if n == 0 and row == top and first + k == left:
                    continue
                at = found if found < count else count - 1
                while found_distance[at - 1] > distances[k]:
                    found_distance[at] = found_distance[at - 1]
                    for m in range(3):
                        places[at, m] = places[at - 1, m]
                    at -= 1
                found_distance[at] = distances[k]
                places[at, 0], places[at, 1], places[at, 2] = n, row, first + k
                found = min(found + 1, count)
    return found


@njit(nogil=True, cache=True, inline="always")
def _cosine(group, members, size, matrix, spare):
    """Turn every patch of ``group`` ``(members, size * size)`` by the matrix, its rows and its columns."""
    for m in range(members):
        for i in range(size):
            for v in range(size):
                total = np.float32(0.0)
                for j in range(size):
                    total += group[m, i * size + j] * matrix[v, j]
                spare[i * size + v] = total
        for u in range(size):
            for v in range(size):
                total = np.float32(0.0)
                for i in range(size):
                    total += spare[i * size + v] * matrix[u, i]
                group[m, u * size + v] = total


@njit(nogil=True, cache=True, inline="always")
def _across(group, members, size):
    """Walsh-Hadamard transform across the patches, orthonormal: its own inverse."""
    half = np.float32(0.70710678)
    step = 1
    while step < members:
        for m in range(0, members, 2 * step):
            for k in range(m, m + step):
                for p in range(size * size):
                    one, other = group[k, p], group[k + step, p]
                    group[k, p], group[k + step, p] = half * (one + other), half * (one - other)
        step *= 2


@njit(nogil=True, cache=True, error_model="numpy")
def filter_groups(
    images, pilots, variance, rows, columns, bands, cosines, taper, radius, count, strength, sums, low, high
):
    """Add every filtered patch of some bands and its weight to ``sums`` ``(bands, 2, height, W)``, float32.

    Each band of rows has an accumulator of its own, ``height`` rows from ``bands[b, 2]`` on, so the result does not
    depend on the number of threads.

    Args:
        images: slices, the filtered one first, ``(S, H, W)``, float32.
        pilots: the same of their pilots.
        variance: of the noise of each coefficient at each place, ``(R, C, size * size)``.
        rows: top row of each patch, ``(R,)``.
        columns: leftmost column of each, ``(C,)``.
        bands: first and last-but-one of ``rows`` and first row of the accumulator, ``(bands, 3)``.
        cosines: DCT, ``(size, size)``.
        taper: weight of each pixel in a patch, ``(size * size,)``.
        radius: of the search.
        count: most patches of a group, a power of two.
        strength: what the noise counts by.
        sums: where the sum and its weights are added.
        low: first band.
        high: last band but one.
    """
    size = cosines.shape[0]
    pixels = size * size
    back = cosines.T.copy()
    for b in range(low, high):
        distances = np.empty(2 * radius + 1, np.float32)
        found_distance = np.empty(count + 1, np.float32)
        places = np.empty((count, 3), np.int64)
        group, pilot = np.empty((count, pixels), np.float32), np.empty((count, pixels), np.float32)
        spare = np.empty(pixels, np.float32)
        above = bands[b, 2]
        for r in range(bands[b, 0], bands[b, 1]):
            for c in range(len(columns)):
                found = _find(pilots, rows[r], columns[c], size, radius, count, distances, places, found_distance)
                members = 1
                while 2 * members <= found:
                    members *= 2
                for m in range(members):
                    n, top, left = places[m, 0], places[m, 1], places[m, 2]
                    for i in range(size):
                        for j in range(size):
                            group[m, i * size + j] = images[n, top + i, left + j]
                            pilot[m, i * size + j] = pilots[n, top + i, left + j]
                _cosine(group, members, size, cosines, spare)
                _across(group, members, size)
                _cosine(pilot, members, size, cosines, spare)
                _across(pilot, members, size)
                passed = np.float32(1e-6)
                for m in range(members):
                    for p in range(pixels):
                        power = pilot[m, p] * pilot[m, p]
                        noise = variance[r, c, p]
                        gain = power / (power + strength * noise + np.float32(1e-6))
                        if m == 0 and p == 0:
                            gain = np.float32(1.0)
                        group[m, p] *= gain
                        passed += gain * gain * noise
                _across(group, members, size)
                _cosine(group, members, size, back, spare)
                weight = 1 / passed
                for m in range(members):
                    if places[m, 0] == 0:
                        top, left = places[m, 1] - above, places[m, 2]
                        for i in range(size):
                            for j in range(size):
                                share = weight * taper[i * size + j]
                                sums[b, 0, top + i, left + j] += share * group[m, i * size + j]
                                sums[b, 1, top + i, left + j] += share
