"""Trajectories and interpolations as moving pictures."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cellfluxrl.data.images import to_pil
from cellfluxrl.errors import unknown_name

FORMATS = (".gif", ".webp", ".png", ".mp4")


def save_animation(
    frames: torch.Tensor | Sequence[Image.Image], path: str | Path, fps: float = 8, scale: int = 4, hold: float = 1.0
) -> None:
    """Save what a pipeline returned as an animation.

    Args:
        frames: A trajectory of shape `(T, N, 3, H, W)`, shown side by side, or `(T, 3, H, W)`, with values in [-1, 1]
            (others are shown as black or white); or one picture for each frame, such as the images of
            [`CellFluxPipeline.interpolate`].
        path: Ends in `.gif` (256 colours), `.webp`, `.png` (animated PNG, lossless) or `.mp4`, which needs PyAV:
            `pip install "cellfluxrl[video]"`.
        fps: Frames a second. GIF rounds the time of a frame to hundredths of a second.
        scale: How many times to enlarge the images, bicubically.
        hold: For how many seconds more the last frame is shown before it starts again.

    Raises:
        ValueError: For another ending, unusable `fps`, `scale` or `hold`, no frames, or not three channels.
        ImportError: For an `.mp4` without PyAV.

    Example:
        >>> out = pipe(controls, compound="taxol", return_trajectory=True)      # doctest: +SKIP
        >>> save_animation(out.trajectory, "taxol.gif")                         # doctest: +SKIP
    """
    path = Path(path)
    if path.suffix not in FORMATS:
        raise unknown_name("ending of an animation", path.suffix, FORMATS)
    if not fps > 0 or scale < 1 or not hold >= 0:
        raise ValueError(f"fps must be positive, scale at least 1 and hold not negative: {fps=}, {scale=}, {hold=}")
    pictures = _pictures(frames)
    width, height = pictures[0].size
    pictures = [p.resize((scale * width, scale * height), Image.Resampling.BICUBIC) for p in pictures]
    pictures += [pictures[-1]] * round(hold * fps)
    if path.suffix == ".mp4":
        _save_mp4(pictures, path, fps)
        return
    if path.suffix == ".gif":
        # Pillow alone would not dither, which leaves contours in smooth cells.
        pictures = [p.quantize(palette=p.quantize(256), dither=Image.Dither.FLOYDSTEINBERG) for p in pictures]
    options = {"lossless": True} if path.suffix == ".webp" else {}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0, **options)


def _pictures(frames: torch.Tensor | Sequence[Image.Image]) -> list[Image.Image]:
    if len(frames) == 0:
        raise ValueError("there are no frames to animate")
    if not isinstance(frames, torch.Tensor):
        sizes = {getattr(frame, "size", type(frame).__name__) for frame in frames}
        if len(sizes) > 1 or not all(isinstance(frame, Image.Image) for frame in frames):
            raise ValueError(f"frames must be a tensor, or PIL images of one size; got {sorted(map(str, sizes))}")
        return [frame.convert("RGB") for frame in frames]
    if frames.ndim not in (4, 5) or frames.shape[-3] != 3:
        raise ValueError(
            f"frames must have shape (T, N, 3, H, W) or (T, 3, H, W), got {tuple(frames.shape)}; "
            "of more channels choose three, for example frames[:, :, :3]"
        )
    if frames.ndim == 5:
        frames = frames.movedim(1, -2).flatten(-2)  # the images side by side: (T, 3, H, N W)
    return to_pil(frames)


def _save_mp4(pictures: list[Image.Image], path: Path, fps: float) -> None:
    if importlib.util.find_spec("av") is None:
        raise ImportError(f"{path.name!r} needs PyAV: pip install 'cellfluxrl[video]', or save a .gif, .webp or .png")
    import imageio.v3 as imageio

    width, height = (size - size % 2 for size in pictures[0].size)  # H.264 takes even sizes
    video = np.stack([np.asarray(picture)[:height, :width] for picture in pictures])
    imageio.imwrite(path, video, plugin="pyav", codec="libx264", fps=fps)
