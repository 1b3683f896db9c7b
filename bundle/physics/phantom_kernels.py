"""Loops over ellipses that numpy would need huge arrays for, compiled by numba.

``ellipses`` is ``(N, 9)``, float64: x, y, the four entries of the matrix to the unit circle, the inner and the outer
radius of the edge (both 1: sharp), and what the ellipse adds.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit


@njit(nogil=True, cache=True, error_model="numpy")
def add_chords(ellipses, angles, fan, source_to_center, total):
    """Add each ellipse's value times the length of the ray in it to ``total``, ``(V, D)``.

    A soft edge is the difference of two terms ``max(R^2 - r^2, 0)``, whose integral along a ray that passes the centre
    at distance q is ``4/3 (R^2 - q^2)^(3/2)``.
    """
    cosines, sines = np.cos(fan), np.sin(fan)
    for view in range(len(angles)):
        sin_b, cos_b = math.sin(angles[view]), math.cos(angles[view])
        source_x, source_y = source_to_center * sin_b, -source_to_center * cos_b
        for n in range(len(ellipses)):
            x, y, xx, xy, yx, yy, inner, outer, value = ellipses[n]
            to_x, to_y = x - source_x, y - source_y
            # Only cells that can see the circle around it: small ellipses have few.
            longest = math.sqrt((xx * xx + xy * xy + yx * yx + yy * yy) / (xx * yy - xy * yx) ** 2)
            middle = math.atan2(to_x * cos_b + to_y * sin_b, to_y * cos_b - to_x * sin_b)
            half = math.asin(min(1.0, outer * longest / math.hypot(to_x, to_y)))
            start_x, start_y = -(xx * to_x + xy * to_y), -(yx * to_x + yy * to_y)
            weight = value / (outer * outer - inner * inner) if outer > inner else value
            for cell in range(np.searchsorted(fan, middle - half), np.searchsorted(fan, middle + half)):
                dx = sines[cell] * cos_b - cosines[cell] * sin_b
                dy = sines[cell] * sin_b + cosines[cell] * cos_b
                step_x, step_y = xx * dx + xy * dy, yx * dx + yy * dy
                square = step_x * step_x + step_y * step_y
                across = start_x * step_y - start_y * step_x
                nearest = across * across / square
                far, near = max(outer * outer - nearest, 0.0), max(inner * inner - nearest, 0.0)
                if outer > inner:
                    length = 4 / 3 * (far * math.sqrt(far) - near * math.sqrt(near))
                else:
                    length = 2 * math.sqrt(far)
                total[view, cell] += weight * length / math.sqrt(square)


@njit(nogil=True, cache=True, error_model="numpy")
def add_means(ellipses, left, top, size, samples, image):
    """Add each ellipse's value times its share of every pixel to ``image``, ``(H, W)``.

    Along a line across the rows an ellipse is an interval, and a soft edge a parabola: exact. Each pixel is cut into
    ``samples`` lines. ``left`` and ``top``: outer edge of the first pixel; ``size``: of a pixel.
    """
    rows, columns = image.shape
    for n in range(len(ellipses)):
        x, y, xx, xy, yx, yy, inner, outer, value = ellipses[n]
        # r^2 = a dx^2 + 2 b dx dy + c dy^2
        a, b, c = xx * xx + yx * yx, xx * xy + yx * yy, xy * xy + yy * yy
        rest_y = c - b * b / a
        tall = outer / math.sqrt(rest_y)
        soft = outer > inner
        weight = value / (size * samples) / (outer * outer - inner * inner if soft else 1.0)
        first = max(math.floor((y - tall - top) / size), 0)
        last = min(math.floor((y + tall - top) / size) + 1, rows)
        for line in range(first * samples, last * samples):
            dy = top + (line + 0.5) * size / samples - y
            middle = x - b / a * dy
            for term in range(2 if soft else 1):
                radius, sign = (outer, 1.0) if term == 0 else (inner, -1.0)
                rest = radius * radius - rest_y * dy * dy
                if rest <= 0:
                    continue
                half = math.sqrt(rest / a)
                begin = max(math.floor((middle - half - left) / size), 0)
                end = min(math.floor((middle + half - left) / size) + 1, columns)
                for column in range(begin, end):
                    edge = left + column * size - middle
                    low, high = max(edge, -half), min(edge + size, half)
                    if soft:
                        share = rest * (high - low) - a / 3 * (high**3 - low**3)
                    else:
                        share = high - low
                    image[line // samples, column] += sign * weight * share
