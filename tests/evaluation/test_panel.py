"""The picture of a restoration."""

from __future__ import annotations

import matplotlib.image
import numpy as np
import pytest

from bundle.evaluation import PANEL_SIZE, save_panel, save_residuals

from .phantoms import body, noise


def stages():
    reference = body()
    return {
        "fbp": reference + noise(60.0, reference),
        "prior": reference + noise(30.0, reference),
        "fused": reference + noise(40.0, reference),
        "restored": reference + noise(10.0, reference),
    }


@pytest.mark.parametrize("with_reference", [True, False])
def test_the_panel_is_a_picture_of_the_stated_size(tmp_path, with_reference):
    save_panel(tmp_path / "panel.png", stages(), body() if with_reference else None, name="case")
    picture = matplotlib.image.imread(tmp_path / "panel.png")
    assert picture.shape[:2] == PANEL_SIZE[::-1]
    assert np.unique(picture[..., 0]).size > 50
    assert [path.name for path in tmp_path.iterdir()] == ["panel.png"]


@pytest.mark.parametrize("with_reference", [True, False])
def test_the_residuals_are_a_picture_of_the_stated_size(tmp_path, with_reference):
    save_residuals(tmp_path / "residuals.png", stages(), body() if with_reference else None, name="case")
    picture = matplotlib.image.imread(tmp_path / "residuals.png")
    assert picture.shape[:2] == PANEL_SIZE[::-1] and np.unique(picture[..., 0]).size > 50


def test_a_reach_that_is_none_is_named(tmp_path):
    with pytest.raises(ValueError, match="reach must be positive"):
        save_residuals(tmp_path / "residuals.png", stages(), reach=0)
    assert not list(tmp_path.iterdir())


def test_the_panel_shows_the_slice_with_most_body_unless_told(tmp_path):
    images = {name: image.clone() for name, image in stages().items()}
    for image in images.values():
        image[0] = -1000
    for name, index in (("auto", None), ("told", 1), ("other", 0)):
        save_panel(tmp_path / f"{name}.png", images, slice_index=index)
    auto, told, other = ((tmp_path / f"{name}.png").read_bytes() for name in ("auto", "told", "other"))
    assert auto == told != other


def test_an_existing_panel_is_kept_unless_asked(tmp_path):
    path = tmp_path / "panel.png"
    path.write_text("mine")
    with pytest.raises(ValueError, match="panel.png"):
        save_panel(path, stages())
    assert path.read_text() == "mine"
    save_panel(path, stages(), overwrite=True)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("kwargs", "match"), [({"slice_index": 2}, "slice_index must be 0 to 1"), ({"window": (10, 0)}, "window 'abdomen'")]
)
def test_arguments_that_cannot_be_are_named(tmp_path, kwargs, match):
    with pytest.raises(ValueError, match=match):
        save_panel(tmp_path / "panel.png", stages(), **kwargs)
    assert not list(tmp_path.iterdir())
