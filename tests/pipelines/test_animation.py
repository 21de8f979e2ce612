"""Animations that viewers can open, with as many frames as were given."""

import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image

from cellfluxrl.pipelines import animation
from cellfluxrl.pipelines.animation import save_animation


@pytest.fixture
def trajectory() -> torch.Tensor:
    """Five different frames of two images of 8 x 6 pixels."""
    return torch.linspace(-1.2, 1.2, 5)[:, None, None, None, None] * torch.ones(5, 2, 3, 8, 6)


@pytest.mark.parametrize("ending", [".gif", ".webp", ".png"])
def test_each_time_is_a_frame_with_the_images_side_by_side(trajectory, tmp_path, ending):
    path = tmp_path / f"cells{ending}"
    save_animation(trajectory, path, fps=10, scale=3, hold=0.5)
    with Image.open(path) as picture:
        assert picture.size == (3 * 2 * 6, 3 * 8)
        assert picture.n_frames == 5
        levels, durations = [], []
        for frame in range(5):
            picture.seek(frame)
            levels.append(np.asarray(picture.convert("RGB")).mean())
            durations.append(picture.info.get("duration"))
    np.testing.assert_allclose(levels, [0, 51, 127.5, 204, 255], atol=2)
    if ending != ".webp":  # Pillow does not say how long a frame of it lasts
        assert durations == [100, 100, 100, 100, 600]


def test_pictures_become_frames(tmp_path):
    pictures = [Image.new("RGB", (8, 6), (level, 0, 0)) for level in (0, 100, 200)]
    save_animation(pictures, tmp_path / "cells.gif", scale=1)
    with Image.open(tmp_path / "cells.gif") as picture:
        assert (picture.size, picture.n_frames) == ((8, 6), 3)


@pytest.mark.skipif(importlib.util.find_spec("av") is None, reason="needs PyAV: pip install 'cellfluxrl[video]'")
def test_mp4_has_every_frame(trajectory, tmp_path):
    import imageio.v3 as imageio

    save_animation(trajectory, tmp_path / "cells.mp4", fps=10, hold=0.5)
    video = imageio.imread(tmp_path / "cells.mp4", plugin="pyav")
    assert video.shape == (5 + 5, 32, 48, 3)
    np.testing.assert_allclose(video.mean(axis=(1, 2, 3))[:5], [0, 51, 127.5, 204, 255], atol=4)


def test_mp4_without_its_library_says_what_to_install(trajectory, tmp_path, monkeypatch):
    monkeypatch.setattr(animation.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"'cells.mp4' needs PyAV: pip install 'cellfluxrl\[video\]'"):
        save_animation(trajectory, tmp_path / "cells.mp4")


@pytest.mark.parametrize(
    ("frames", "arguments", "message"),
    [
        (
            torch.zeros(2, 3, 8, 8),
            {"path": "cells.gfi"},
            r"unknown ending of an animation '.gfi'; did you mean '.gif'",
        ),
        (torch.zeros(2, 3, 8, 8), {"fps": 0}, "fps=0"),
        (torch.zeros(2, 3, 8, 8), {"scale": 0}, "scale=0"),
        (torch.zeros(2, 3, 8, 8), {"hold": -1}, "hold=-1"),
        (torch.zeros(2, 5, 8, 8), {}, r"got \(2, 5, 8, 8\); of more channels choose three"),
        (torch.zeros(3, 8, 8), {}, r"got \(3, 8, 8\)"),
        ([], {}, "no frames"),
        ([Image.new("RGB", (4, 4)), Image.new("RGB", (4, 8))], {}, r"one size; got \['\(4, 4\)', '\(4, 8\)'\]"),
        (["frame.png"], {}, "PIL images of one size; got"),
    ],
)
def test_what_cannot_be_animated_is_refused(tmp_path, monkeypatch, frames, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        save_animation(frames, **{"path": "cells.gif", **arguments})
    assert not list(tmp_path.iterdir())
