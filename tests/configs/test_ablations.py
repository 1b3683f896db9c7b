"""Every ablation is an override that fits the configs that it names, and changes them."""

from __future__ import annotations

import ast
import inspect
import json
import re
from pydoc import locate
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

from .files import CONFIGS, INFER, OVERRIDES, REFERENCE, TRAIN, merged, references, strings

ABLATIONS = sorted((CONFIGS / "ablations").glob("*.json"))
USES = [(path, name) for path in ABLATIONS for name in json.loads(path.read_text())["_for_"]]


def changed(path, name) -> dict[str, Any]:
    """The config that the ablation is given after: the one that it names, with the override that it names."""
    return merged(name, *json.loads(path.read_text()).get("_after_", ()))


def override(path) -> dict[str, Any]:
    return {key: value for key, value in json.loads(path.read_text()).items() if not key.startswith("_")}


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.stem)
def test_an_ablation_says_what_it_takes_away_and_from_which_configs(path):
    content = json.loads(path.read_text())
    assert content["_about_"].startswith("Ablation: ")
    assert content["_for_"] and set(content["_for_"]) <= {*TRAIN, *INFER}
    assert set(content.get("_after_", ())) <= set(OVERRIDES)
    # What a user restores with is what was measured.
    assert ("evaluate.json" in content["_for_"]) == ("inference.json" in content["_for_"])


@pytest.mark.parametrize(("path", "name"), USES, ids=lambda value: getattr(value, "stem", value))
def test_an_ablation_changes_a_value_that_the_config_has(path, name):
    for key, value in override(path).items():
        *parents, last = re.split("#|::", key)
        block = changed(path, name)
        for part in parents:
            assert part in block, f"{name} has no {key}"
            block = block[part]
        if last in block:
            assert block[last] != value, key
        else:
            # An argument that the config leaves at its default.
            argument = inspect.signature(locate(block["_target_"])).parameters[last]
            assert argument.default is not inspect.Parameter.empty


@pytest.mark.parametrize(("path", "name"), USES, ids=lambda value: getattr(value, "stem", value))
def test_an_ablation_refers_to_what_is_there(path, name):
    config = ConfigParser.load_config_files([str(CONFIGS / name), str(path)])
    assert {re.split("#|::", reference)[0] for reference in references(config)} <= set(config)
    for text in strings(override(path)):
        if text.startswith("$"):
            ast.parse(REFERENCE.sub("reference", text[1:]))


def restored(workflow, item) -> torch.Tensor:
    network = workflow.parser.get_parsed_content("network").eval()
    # Hardly trained, the decoder answers all but nothing, whatever it is given.
    torch.nn.init.constant_(network.refiner.autoencoder.decoder.head.weight, 0.01)
    return network.restore(item["sinogram"][0, :, None], item["geometry"]).restored


@pytest.mark.parametrize("name", ["lambda_0", "fusion_after", "latent_zeroed", "latent_of_input", "skips_zeroed"])
def test_an_ablation_of_inference_changes_what_the_model_makes(name, model, volumes, start):
    settings = {"dataset_dir": str(volumes), "weights": str(model), "slices": 1}
    whole = start("evaluate.json", **settings)
    ablated = start("evaluate.json", f"ablations/{name}.json", **settings)
    item = whole.dataset[0]
    assert (restored(whole, item) - restored(ablated, item)).abs().max() > 1e-3


def test_the_stages_without_skips_learn_none(stages, volumes, start, tmp_path):
    weights = {"projection_weights": stages.weights["projection_weights"]}
    settings = {"dataset_dir": str(volumes), "output_dir": str(tmp_path), **weights}
    start("train_autoencoder.json", "ablations/no_skips_autoencoder.json", "smoke.json", **settings).run()
    settings["autoencoder_weights"] = str(tmp_path / "autoencoder.pt")
    start("train_diffusion.json", "ablations/no_skips.json", "smoke.json", **settings).run()
    for name in ("autoencoder.pt", "diffusion.pt"):
        trained = torch.load(tmp_path / name, weights_only=True)
        heads = [value for key, value in trained.items() if "skip_heads" in key]
        assert heads and not any(value.any() for value in heads)
