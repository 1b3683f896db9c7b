"""Bodies drawn of ellipses: an abdomen, a chest, and objects of every kind to train on."""

# Lengths in mm, angles in radians.

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from .phantoms import Ellipse, Phantom

# Partial volume of a slice some millimetres thick makes edges of this width, mm.
_EDGE = 2.0
# Below this an ellipse is gas, without texture, HU.
_GAS = -900.0


class _Drawing:
    """Ellipses put on one another, each with the HU that it shall have rather than what it adds."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.ellipses: list[Ellipse] = []
        self.gas: list[Ellipse] = []

    def put(
        self,
        place: tuple[float, float],
        half: tuple[float, float],
        hu: float,
        on: float,
        *,
        turn: float = 0.0,
        edge: float = _EDGE,
        material: str = "water",
        name: str = "",
        shift: float = 0.0,
    ) -> Ellipse:
        """An ellipse of `hu` on a ground of `on`, its centre up to `shift` mm off in x and y."""
        x, y = (c + self.random.uniform(-shift, shift) for c in place)
        e = Ellipse(x, y, *half, hu - on, turn, min(edge, 1.6 * min(half)), material, name)
        self.ellipses.append(e)
        if hu < _GAS:
            self.gas.append(e)
        return e

    def bone(self, place: tuple[float, float], half: tuple[float, float], on: float, rind: float, **more) -> None:
        """A hard rind around marrow."""
        hard = self.random.uniform(450, 700)
        self.put(place, half, hard, on, material="bone", **more)
        marrow = tuple(h - rind for h in half)
        self.put(place, marrow, self.random.uniform(280, 350), hard, material="bone", **more)

    def canal(self, place: tuple[float, float], half: tuple[float, float], on: float) -> None:
        """A ring of bone around the spinal cord."""
        self.put(place, half, 400.0, on, material="bone")
        self.put(place, (half[0] - 3, half[1] - 2.5), 30.0, 400.0, material="bone")

    def ribs(
        self,
        wall: Ellipse,
        avoid: Sequence[Ellipse],
        center: tuple[float, float],
        path: tuple[float, float],
        angles: Sequence[float],
        on: float,
    ) -> None:
        """Ribs on both sides, at `angles` of the elliptic `path`, where they fit into the wall."""
        for side in (-1, 1):
            for angle in angles:
                x, y = center[0] + side * path[0] * math.cos(angle), center[1] + path[1] * math.sin(angle)
                turn = math.atan2(path[1] * math.cos(angle), -side * path[0] * math.sin(angle))
                half = self.random.uniform(6, 11), 3.2
                if _apart(Ellipse(x, y, *half, 1.0, turn, _EDGE), wall, avoid):
                    self.bone((x, y), half, on, 1.4, turn=turn)

    def without_texture(self, texture: Sequence[Ellipse]) -> list[Ellipse]:
        """What takes the texture out of gas again."""
        gas = []
        for e in self.gas:
            # Whole, not at its edge: gas lies well inside.
            around = sum(t.hu for t in texture if np.hypot(*(t.to_circle() @ (e.x - t.x, e.y - t.y))) < 1)
            gas.append(dataclasses.replace(e, hu=-around))
        return gas

    def scatter(
        self,
        parent: Ellipse,
        count: int,
        sizes: tuple[float, float],
        hu: tuple[float, float],
        on: float,
        *,
        avoid: Sequence[Ellipse] = (),
        power: float = 1.0,
        longest: float = 1.0,
        name: str = "",
    ) -> list[Ellipse]:
        """Up to `count` ellipses inside of `parent` that touch neither one another nor what they shall avoid.

        Args:
            parent: where.
            count: how many are tried.
            sizes: least and greatest half axis, mm; large ones come first.
            hu: least and greatest value.
            on: HU of the ground.
            avoid: ellipses that stay free.
            power: the higher, the more small ones.
            longest: greatest ratio of the half axes.
            name: of each.
        """
        found: list[Ellipse] = []
        low, high = sizes
        for size in np.sort(low + (high - low) * self.random.random(count) ** power)[::-1]:
            half = size * self.random.uniform(1, longest), size
            turn, value = self.random.uniform(0, math.pi), self.random.uniform(*hu)
            for _ in range(20):
                # Uniform over the parent's disc.
                radius, angle = math.sqrt(self.random.random()), self.random.uniform(0, 2 * math.pi)
                cosine, sine = radius * math.cos(angle), radius * math.sin(angle)
                dx, dy = np.linalg.solve(parent.to_circle(), (cosine, sine))
                edge = min(_EDGE, 1.6 * size)
                e = Ellipse(parent.x + dx, parent.y + dy, *half, value - on, turn, edge, name=name)
                if _apart(e, parent, [*avoid, *found]):
                    found.append(e)
                    break
        self.ellipses += found
        return found


def _apart(e: Ellipse, parent: Ellipse, others: Sequence[Ellipse]) -> bool:
    """Whether an ellipse with its edge lies inside of `parent` and outside of all others."""
    angles = np.linspace(0, 2 * math.pi, 24, endpoint=False)
    grown = 1 + e.softness + 0.5 / min(e.half_x, e.half_y)
    rim = np.linalg.solve(e.to_circle(), grown * np.stack((np.cos(angles), np.sin(angles)))).T + (e.x, e.y)

    def radius(points: np.ndarray, of: Ellipse) -> np.ndarray:
        return np.hypot(*(of.to_circle() @ (points - (of.x, of.y)).T))

    if radius(rim, parent).max() > 1 - parent.softness:
        return False
    near = (o for o in others if math.hypot(o.x - e.x, o.y - e.y) < o.reach + e.reach + 1)
    points = np.concatenate((rim, [(e.x, e.y)]))
    # One may lie within the other, so each is asked for the other's centre as well.
    return all(radius(points, o).min() > 1 + o.softness and radius(np.array([[o.x, o.y]]), e)[0] > grown for o in near)


def abdomen_phantom(seed: int = 0) -> Phantom:
    """An abdomen-like section of 320 x 240 mm: wall, ribs, spine, organs, bowel with gas, vessels and lesions.

    Places, sizes, HU and texture belong to the seed. Lesions are named ``lesion``.
    """
    d = _Drawing(seed)
    r = d.random
    muscle_hu, fat, liver_hu = 50.0, -100.0, r.uniform(55, 70)
    d.put((0, 0), (160, 120), 20.0, -1000.0, name="body")
    d.put((0, 0), (157.5, 117.5), fat, 20.0)
    muscle = d.put((0, 2), (142, 108), muscle_hu, fat)
    cavity = d.put((0, -16), (128, 76), fat, muscle_hu)
    # Behind the cavity.
    d.bone((0, 78), (22, 14), muscle_hu, 2.5)
    d.canal((0, 100), (12, 7), muscle_hu)
    for side in (-1, 1):
        d.put((side * 38, 84), (9, 6), fat, muscle_hu, turn=side * 0.5)
    d.ribs(muscle, [cavity], (0, -9), (135, 91), (0.15, 0.55, 0.95) if seed % 2 else (0.3, 0.75), muscle_hu)
    # Organs, in the fat of the cavity.
    liver = d.put((-66, -34), (49, 35), liver_hu, fat, turn=-0.15, shift=1.5)
    spleen = d.put((92, -10), (20, 31), r.uniform(45, 60), fat, turn=0.2, shift=1.5)
    stomach = d.put((38, -56), (30, 19), 25.0, fat, turn=0.15, shift=1.5)
    d.put((stomach.x, stomach.y - 6), (17, 7), -990.0, 25.0, turn=0.15)
    organs = [liver, spleen, stomach]
    for side in (-1, 1):
        kidney = d.put((side * 62, 26), (16, 20), r.uniform(130, 180), fat, turn=side * 0.3, shift=1.5)
        d.put((kidney.x, kidney.y), (10, 13), 90.0, kidney.hu + fat, turn=side * 0.3)
        d.put((kidney.x - side * 2, kidney.y), (4, 6), -60.0, 90.0, turn=side * 0.3)
        organs.append(kidney)
    organs.append(d.put((13, 38), (11, 11), r.uniform(140, 180), fat, shift=1, name="aorta"))
    organs.append(d.put((-20, 36), (13, 9), r.uniform(90, 130), fat, shift=1))
    organs.append(d.put((14, 8), (27, 8), 45.0, fat, turn=-0.25, shift=1))
    for _ in range(14):
        loop = d.scatter(cavity, 1, (7, 13), (40, 55), fat, avoid=organs, longest=1.4)
        organs += loop
        for e in loop:
            content = -950.0 if r.random() < 0.35 else r.uniform(-20, 150)
            d.put((e.x, e.y), (e.half_x - 2.5, e.half_y - 2.5), content, e.hu + fat, turn=e.turn)
    lesions = d.scatter(liver, 5, (3, 8), (liver_hu - 45, liver_hu - 20), liver_hu, name="lesion")
    d.scatter(liver, 30, (0.9, 3.5), (liver_hu + 30, liver_hu + 70), liver_hu, avoid=lesions, power=2.5, longest=3)
    d.scatter(cavity, 140, (0.7, 2.2), (20, 110), fat, avoid=organs, power=2, longest=3)
    d.scatter(muscle, 60, (0.8, 2), (-70, -10), muscle_hu, avoid=d.ellipses[3:], power=1.5, longest=5)
    soft = dataclasses.replace(d.ellipses[0], half_x=150, half_y=110, hu=7.0, edge=8.0)
    texture = soft, dataclasses.replace(liver, hu=4.0, edge=4.0), *d.without_texture([soft])
    return Phantom(name=f"abdomen {seed}", ellipses=tuple(d.ellipses), texture=texture, seed=seed)


def chest_phantom(seed: int = 0) -> Phantom:
    """A chest-like section of 320 x 228 mm: wall, ribs, spine, heart, lungs with vessels, airways and nodules.

    Places, sizes, HU and texture belong to the seed. Nodules are named ``lesion``.
    """
    d = _Drawing(seed)
    r = d.random
    muscle_hu, fat, lung_hu = 50.0, -100.0, r.uniform(-870, -830)
    d.put((0, 0), (160, 114), 20.0, -1000.0, name="body")
    d.put((0, 0), (157.5, 111.5), fat, 20.0)
    muscle = d.put((0, 1), (146, 103), muscle_hu, fat)
    right = d.put((-80, -2), (50, 73), lung_hu, muscle_hu, turn=0.06, name="lung")
    left = d.put((85, -2), (44, 70), lung_hu, muscle_hu, turn=-0.06, name="lung")
    d.bone((0, 72), (20, 14), muscle_hu, 2.5)
    d.canal((0, 94), (11, 6.5), muscle_hu)
    d.bone((0, -91), (16, 5), muscle_hu, 1.5)
    d.ribs(muscle, [right, left], (0, 1), (138, 92), (-0.95, -0.55, -0.15, 0.3, 0.7, 1.05), muscle_hu)
    blood = r.uniform(120, 200)
    d.put((4, -24), (28, 36), 60.0, muscle_hu, turn=0.1, shift=1, name="heart")
    d.put((-5, -30), (8, 15), blood, 60.0, turn=0.3)
    d.put((15, -20), (8, 17), blood, 60.0, turn=-0.2)
    d.put((2, -72), (17, 8), fat, muscle_hu, shift=1)
    d.put((18, 42), (11, 11), blood, muscle_hu, shift=1, name="aorta")
    d.put((-4, 44), (6, 5), 20.0, muscle_hu)
    d.put((-4, 44), (2.5, 2), -950.0, 20.0)
    for x in (-16, 12):
        d.put((x, 24), (6.5, 5.5), -990.0, muscle_hu, shift=1)
    for lung in (right, left):
        nodules = d.scatter(lung, 3, (2.5, 6), (-20, 60), lung_hu, name="lesion")
        nodules += d.scatter(lung, 2, (5, 9), (lung_hu + 200, lung_hu + 350), lung_hu, avoid=nodules)
        airways = d.scatter(lung, 6, (2, 3.5), (-150, 0), lung_hu, avoid=nodules, longest=1.5)
        for e in airways:
            d.put((e.x, e.y), (0.6 * e.half_x, 0.6 * e.half_y), -980.0, e.hu + lung_hu, turn=e.turn)
        taken = nodules + airways
        d.scatter(lung, 90, (0.8, 3.5), (0, 60), lung_hu, avoid=taken, power=5, longest=2.5)
    d.scatter(muscle, 60, (0.8, 2), (-70, -10), muscle_hu, avoid=d.ellipses[3:], power=1.5, longest=5)
    soft = dataclasses.replace(d.ellipses[0], half_x=150, half_y=106, hu=7.0, edge=8.0)
    spongy = [dataclasses.replace(e, hu=12.0, edge=6.0) for e in (right, left)]
    texture = soft, *spongy, *d.without_texture([soft, *spongy])
    return Phantom(name=f"chest {seed}", ellipses=tuple(d.ellipses), texture=texture, seed=seed)


def mixed_phantom(seed: int = 0) -> Phantom:
    """A body of no anatomy, full of ellipses of every size, contrast and sharpness: to train on, not to measure by.

    Images of scanners, projected again, have no edge sharper than their kernel left, and what learns from them alone
    takes sharp edges for noise. This has edges as sharp as cells can see, faint and small details, gas, lung, fat, soft
    tissue, contrast agent and bone. Everything belongs to the seed.
    """
    d = _Drawing(seed)
    r = d.random
    base = r.uniform(-20, 60)
    half = float(r.uniform(70, 160)), float(r.uniform(65, 120))
    sharp = r.random() < 0.6
    body = d.put((0, 0), half, base, -1000.0, edge=0.0 if sharp else 2.0, shift=5.0)
    if r.random() < 0.5:
        base, fat = r.uniform(20, 60), r.uniform(-120, -80)
        d.put((body.x, body.y), (half[0] - 2.5, half[1] - 2.5), fat, body.hu - 1000)
        rind = r.uniform(6, 25)
        body = d.put((body.x, body.y), (half[0] - rind, half[1] - rind), base, fat)
        body = dataclasses.replace(body, hu=base)
    parent = dataclasses.replace(body, edge=0.0)
    taken: list[Ellipse] = []
    for low, high, count, power in ((14, 42, 7, 1.0), (4, 14, 30, 1.5), (0.8, 5, 120, 1.5)):
        for e in d.scatter(
            parent,
            int(r.integers(count // 3, count + 1)),
            (low, high),
            (0, 1),
            0.0,
            avoid=taken,
            power=power,
            longest=2.5,
        ):
            d.ellipses.remove(e)
            taken.append(_filled(d, e, base))
    # What large ellipses hold in turn.
    for e in [e for e in taken if min(e.half_x, e.half_y) > 12]:
        inside = dataclasses.replace(e, half_x=0.92 * e.half_x, half_y=0.92 * e.half_y, edge=0.0)
        for kind in d.scatter(inside, 25, (0.8, 6), (0, 1), 0.0, power=1.5, longest=2.5):
            d.ellipses.remove(kind)
            _filled(d, kind, e.hu + base)
    texture: tuple[Ellipse, ...] = ()
    if r.random() < 0.6:
        strength = float(r.uniform(2, 15))
        soft = dataclasses.replace(parent, hu=strength, edge=min(8.0, half[1] / 4))
        texture = soft, *d.without_texture([soft])
    return Phantom(name=f"mixed {seed}", ellipses=tuple(d.ellipses), texture=texture, seed=seed)


def _filled(d: _Drawing, e: Ellipse, on: float) -> Ellipse:
    """Draw the ellipse with a contrast and an edge of its own on a ground of `on`."""
    r = d.random
    sign = -1.0 if r.random() < 0.5 else 1.0
    kind = r.random()
    if kind < 0.45:
        contrast = sign * float(np.exp(r.uniform(math.log(2), math.log(40))))
    elif kind < 0.75:
        contrast = sign * r.uniform(40, 160)
    elif kind < 0.87:
        contrast = r.uniform(150, 1100)
    else:
        contrast = (-1000.0 if r.random() < 0.5 else r.uniform(-950, -600)) - on
    contrast = max(contrast, -1000.0 - on)
    edge = 0.0 if r.random() < 0.5 else float(r.uniform(0.3, 2.5))
    return d.put(
        (e.x, e.y),
        (e.half_x, e.half_y),
        on + contrast,
        on,
        turn=e.turn,
        edge=edge,
        material="bone" if contrast > 250 else "water",
    )
