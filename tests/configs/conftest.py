"""All stages trained in turn on a phantom: one tiny epoch each, and the model that is made of them."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from .files import CONFIGS, ROOT, read

PIXEL_MM = 350 / 64


@pytest.fixture(scope="session")
def volumes(tmp_path_factory) -> Path:
    """A folder with two patients: three slices each of a soft ellipse with a bone and an air bubble, 64 x 64."""
    folder = tmp_path_factory.mktemp("volumes")
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    for name, width in (("ada", 0.7), ("ben", 0.55)):
        slices = []
        for index in range(3):
            image = np.where((x / width) ** 2 + (y / 0.6) ** 2 < 1, 40, -1000)
            image[(x - 0.2) ** 2 + y**2 < 0.02 + 0.01 * index] = 700
            image[(x + 0.25) ** 2 + (y - 0.1) ** 2 < 0.02] = -900
            slices.append(image)
        affine = np.diag([-PIXEL_MM, -PIXEL_MM, 3.0, 1.0])
        nib.save(nib.Nifti1Image(np.stack(slices).transpose(2, 1, 0).astype(np.int16), affine), folder / f"{name}.nii")
    return folder


@pytest.fixture(scope="session")
def start() -> Callable[..., ConfigWorkflow]:
    """Set up a config as ``python -m monai.bundle run`` does, with settings of the test on top."""

    def start(config: str, *overrides: str, **settings: Any) -> ConfigWorkflow:
        files = [str(CONFIGS / name) for name in (config, *overrides)]
        kind = "train" if config.startswith("train") else "inference"
        if kind == "inference":
            settings = {"geometry": read("smoke.json")["geometry"], "device": torch.device("cpu"), **settings}
        # The logging config would take pytest's handlers away.
        workflow = ConfigWorkflow(files, workflow_type=kind, logging_file=False, **settings)
        workflow.initialize()
        return workflow

    return start


@pytest.fixture(scope="session")
def stages(volumes, start, tmp_path_factory) -> SimpleNamespace:
    """Output folder of every stage, trained one after the other with smoke.json."""
    output = tmp_path_factory.mktemp("stages")
    projection, autoencoder, diffusion = (output / name for name in ("projection", "autoencoder", "diffusion"))
    weights = {}
    for folder in (projection, autoencoder, diffusion):
        config = f"train_{folder.name}.json"
        start(config, "smoke.json", dataset_dir=str(volumes), output_dir=str(folder), **weights).run()
        weights[f"{folder.name}_weights"] = str(folder / f"{folder.name}.pt")
        if folder is projection:
            weights = {"projection_weights": str(projection / "projection.pt")}
    return SimpleNamespace(projection=projection, autoencoder=autoencoder, diffusion=diffusion, weights=weights)


@pytest.fixture(scope="session")
def model(stages, volumes, tmp_path_factory) -> Path:
    """The weight file that ``scripts/assemble_model.py`` makes of the trained stages."""
    folder = tmp_path_factory.mktemp("model")
    config = folder / "inference.json"
    smoke = {key: read("smoke.json")[key] for key in ("geometry", "device")}
    config.write_text(json.dumps({**read("inference.json"), **smoke}))
    arguments = {
        "--projection": stages.projection / "projection.pt",
        "--diffusion": stages.diffusion / "diffusion.pt",
        "--dataset_dir": volumes,
        "--config": config,
        "--output": folder / "model.pt",
    }
    script = ROOT / "scripts" / "assemble_model.py"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [str(script), *(str(word) for pair in arguments.items() for word in pair)])
        patch.setattr(sys, "path", list(sys.path))
        runpy.run_path(str(script), run_name="__main__")
    return folder / "model.pt"
