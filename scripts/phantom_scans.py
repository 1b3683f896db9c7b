"""What the scripts that measure on phantoms share: the scanner of configs/evaluate.json, its noise, and its methods."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import ROOT, SETTINGS, checksum, method_versions
from methods import Method, load_methods
from monai.bundle import ConfigParser
from torch import Tensor

from bundle.evaluation import RowStore
from bundle.peers import Scan
from bundle.physics import FanBeamGeometry, Phantom, simulate_low_dose
from bundle.transforms import noise_seed

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that both scripts take."""
    parser.add_argument("--weights", type=Path, default=ROOT / "models" / "model.pt")
    parser.add_argument("--methods", nargs="+", help="names in scripts/methods.py; with them docs/*.md stays as it is")
    parser.add_argument("--output", type=Path, help="folder of the report (default docs/results; quick: output/quick)")
    parser.add_argument("--store", type=Path, default=ROOT / "output" / "results", help="folder of the measured rows")
    parser.add_argument("--quick", action="store_true", help="few and small scans: to see that all works")
    parser.add_argument("--fresh", action="store_true", help="measure again what the store already holds")


class Bench:
    """The scanner, its noise, and the methods that are measured on phantoms.

    Args:
        args: of :func:`add_arguments`.
        names: of the methods, where ``--methods`` does not say; None: all.
    """

    def __init__(self, args: argparse.Namespace, names: Sequence[str] | None = None) -> None:
        config = ConfigParser(ConfigParser.load_config_file(str(ROOT / "configs" / "evaluate.json")))
        config.update({"weights": str(args.weights)})
        self.config = config
        self.geometry: FanBeamGeometry = config.get_parsed_content("geometry")
        self.windows: dict[str, Sequence[float]] = config.get_parsed_content("windows")
        self.photons, self.variance = float(config["photons"]), float(config["electronic_variance"])
        self.mu_water = float(config["mu_water"])
        self.output = args.output or (ROOT / "output" / "quick" if args.quick else ROOT / "docs" / "results")
        self.output.mkdir(parents=True, exist_ok=True)
        self.methods = load_methods(config, args.weights, args.methods or names)
        self.versions = method_versions(list(self.methods), config, Path(args.weights))

    def usable(self, names: Sequence[str] | None = None) -> dict[str, Method]:
        """Methods that can run, of these names (None: all)."""
        return {
            name: method
            for name, method in self.methods.items()
            if method.skipped is None and (names is None or name in names)
        }

    def key(self, method: Method) -> Row:
        """What a row says of its method."""
        return {"method": method.name, "weights": self.versions[method.name]}

    def skipped(self) -> list[str]:
        """What was not measured, and why; no file's place on this machine."""
        return [f"Skipped: {m.title}: {m.skipped.replace(f'{ROOT}/', '')}" for m in self.methods.values() if m.skipped]

    def zoomed(self, size: int, cells: int) -> FanBeamGeometry:
        """The middle of the image grid, seen by the middle cells: all that a small object needs."""
        return dataclasses.replace(self.geometry, num_cells=cells).with_grid((size, size), self.geometry.pixel_size)

    def line_integrals(self, phantom: Phantom, geometry: FanBeamGeometry) -> Tensor:
        """Noise-free line integrals ``(1, 1, V, D)``."""
        return phantom.line_integrals(geometry, mu_water=self.mu_water)

    def scan(
        self, name: str, line_integrals: Tensor, geometry: FanBeamGeometry, dose: float, seeds: Sequence[int]
    ) -> Scan:
        """One scan a seed of the same object; the noise belongs to the object's name, the dose and the seed."""
        noisy = [
            simulate_low_dose(
                line_integrals,
                self.photons,
                dose=dose,
                electronic_variance=self.variance,
                generator=torch.Generator().manual_seed(noise_seed(seed, name, 0, dose)),
            )
            for seed in seeds
        ]
        return Scan(
            sinogram=torch.cat(noisy),
            geometry=geometry,
            incident_photons=self.photons * dose,
            electronic_variance=self.variance,
            mu_water=self.mu_water,
        )

    def setting(self, *more: Any) -> str:
        """Checksum of scanner, noise, windows, and whatever else a row follows from."""
        return checksum(repr([self.config[name] for name in SETTINGS]), *map(repr, more))

    def scanner(self) -> str:
        """The scanner in words, for a report."""
        g = self.geometry
        return (
            f"{g.num_views} views of {g.num_cells} cells of {g.cell_pitch:g} mm, {self.photons:g} photons a ray at "
            f"100 %, electronic variance {self.variance:g}"
        )


class Kept:
    """Rows of a measurement: those that the store holds are taken, the others added.

    Args:
        store: where they are kept.
        fresh: take none.
    """

    def __init__(self, store: RowStore, fresh: bool) -> None:
        self.store, self.fresh = store, fresh
        self._now: list[Row] = []

    def find(self, key: Mapping[str, Any]) -> list[Row]:
        """Rows of this key; with ``--fresh`` only those of this run."""
        if self.fresh:
            return [row for row in self._now if all(row.get(name) == value for name, value in key.items())]
        return self.store.rows(**key)

    def add(self, row: Row) -> Row:
        """Keep a row."""
        self.store.add(row)
        self._now.append(row)
        return row
