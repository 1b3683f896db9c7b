"""Write noisy scans of drawn objects to train on, beside those of patients: NPZ, one slice each.

    python scripts/draw_scans.py --output DIR --number 48

Scanner, photons, electronic noise and dose are those of configs/train_projection.json, pixels of a size of their own.
The objects are bundle.physics.mixed_phantom, none of those that scripts/measure_*.py measures by. Only the noisy line
integrals are written: what is trained on them has seen no clean image of them either.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(1, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from monai.bundle import ConfigParser  # noqa: E402
from tqdm import tqdm  # noqa: E402

from bundle.io import write_sinogram  # noqa: E402
from bundle.physics import FanBeamGeometry, mixed_phantom, simulate_low_dose  # noqa: E402
from bundle.transforms import noise_seed  # noqa: E402

#: Least and greatest pixel, mm; the scanner stays.
PIXELS = (0.6, 0.8)


def main(arguments: list[str] | None = None) -> int:
    """Write the scans; those that are there already stay as they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder")
    parser.add_argument("--number", type=int, default=48, help="of scans (default 48)")
    parser.add_argument("--seed", type=int, default=0, help="of the first object; the others follow")
    args = parser.parse_args(arguments)
    if args.number < 1:
        parser.error(f"--number must be at least 1, got {args.number}")
    config = ConfigParser(ConfigParser.load_config_file(str(ROOT / "configs" / "train_projection.json")))
    scanner: FanBeamGeometry = config.get_parsed_content("geometry")
    photons, variance, dose = (float(config[name]) for name in ("photons", "electronic_variance", "dose"))
    args.output.mkdir(parents=True, exist_ok=True)
    for seed in tqdm(range(args.seed, args.seed + args.number), unit="scan"):
        path = args.output / f"mixed_{seed:04d}.npz"
        if path.exists():
            continue
        pixel = float(np.random.default_rng(seed).uniform(*PIXELS))
        geometry = scanner.with_grid(scanner.image_shape, pixel)
        phantom = mixed_phantom(seed)
        noisy = simulate_low_dose(
            phantom.line_integrals(geometry),
            photons,
            dose=dose,
            electronic_variance=variance,
            generator=torch.Generator().manual_seed(noise_seed(seed, phantom.name, 0, dose)),
        )
        write_sinogram(path, noisy[0, 0], geometry, photons=photons * dose, electronic_variance=variance)
    return 0


if __name__ == "__main__":
    sys.exit(main())
