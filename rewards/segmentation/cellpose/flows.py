"""From the flows that a Cellpose network predicts to labelled masks, for a whole batch of images at a time.

Cellpose [1]_ predicts for every pixel the direction to the centre of its object. Pixels that follow the flows end up
together in the middle of their object, so that each heap of them makes a mask. A mask is discarded where the flows
that lead to its centre differ from the predicted ones. The steps are those of the package `cellpose`; three
things make them an order of magnitude faster on many small images:

* pixels that have come within half a pixel of each other move on as one, so that after some tens of steps only a
  few are left to be moved;
* heaps are found in all images at once;
* the flows of masks are computed for many masks at once, each in a separate patch.

No step mixes images: the masks of an image never depend on the batch it came in.

References:
    .. [1] Stringer, Wang, Michaelos, Pachitariu, "Cellpose: a generalist algorithm for cellular segmentation",
       Nature Methods 18, 100 (2021).
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage as ndi

from cellfluxrl.rewards.segmentation.labelling import fill_holes, remove_small

_STEPS_BETWEEN_MERGES = 8
_MERGED_PER_PIXEL = 2  # points in the same half of a pixel, in rows and columns, are merged
_PEAK_DISTANCE = 2  # pixels; as in Cellpose, like the next three
_PEAK_HEIGHT = 10
_HEAP_HEIGHT = 2
_HEAP_REACH = 5  # pixels
_MASKS_PER_GROUP = 16  # whose patches then stay in the processor's cache


def masks_from_flows(
    flows: torch.Tensor,
    foreground: torch.Tensor,
    steps: int,
    flow_threshold: float = 0.4,
    min_size: int = 15,
    max_size_fraction: float = 1.0,
) -> np.ndarray:
    """Turn the flows of N images into (N, H, W) int32 labels, 1 to K in each image, 0 for the background.

    Args:
        flows: (N, 2, H, W) float32, the step to take from each pixel, in rows and columns of pixels.
        foreground: (N, H, W) booleans, the pixels that belong to objects.
        steps: How many steps the pixels take.
        flow_threshold: Largest mean squared difference between the flows of a mask and those predicted; 0 keeps all.
        min_size: Smaller masks are removed, in square pixels.
        max_size_fraction: Masks of a larger part of the image are removed.
    """
    count, height, width = foreground.shape
    labels = np.zeros((count, height, width), dtype=np.int32)
    if not foreground.any():
        return labels
    flows = flows * foreground[:, None]
    labels[foreground.cpu().numpy()] = label_heaps(*follow_flows(flows, foreground, steps), (count, height, width))
    large = np.bincount(labels.ravel()) > max_size_fraction * height * width
    labels[large[labels]] = 0
    if flow_threshold > 0:
        bad = np.concatenate([[False], flow_errors(labels, flows.cpu().numpy()) > flow_threshold])
        labels[bad[labels]] = 0
    labels = _distinct(remove_small(labels, min_size))
    strip = labels.reshape(-1, width)
    for k, box in enumerate(ndi.find_objects(strip), start=1):
        filled = fill_holes((strip[box] == k)[None])[0]
        strip[box][filled] = k
    return remove_small(labels, min_size)


def follow_flows(flows: torch.Tensor, foreground: torch.Tensor, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Move each of P pixels of the foreground along (N, 2, H, W) flows, by Euler's method with bilinear interpolation.

    Returns the (P,) images and the (P, 2) rows and columns, rounded down, where they end, at the border at the latest.
    """
    height, width = flows.shape[-2:]
    last = torch.tensor([width - 1, height - 1], device=flows.device)
    # In the units of grid_sample: columns before rows, from -1 at the first to 1 at the last pixel.
    pixel = torch.where(last > 0, 2 / last, 0)
    velocity = flows.flip(1) * pixel[:, None, None]
    image, row, column = foreground.nonzero(as_tuple=True)
    points = torch.stack([column, row], dim=1) * pixel - 1
    owner = torch.arange(len(points), device=points.device)  # which of the points each pixel is one with
    first_image = image
    for done in range(0, steps, _STEPS_BETWEEN_MERGES):
        points = _move(points, image, velocity, min(_STEPS_BETWEEN_MERGES, steps - done))
        kept, merged = _merge(points, image, last)
        points, image, owner = points[kept], image[kept], merged[owner]
    # Rounding must not lift a point at the border, or one that never moved, over to the pixel before.
    pixels = ((points + 1) * (last / 2) + 1e-4).long()[owner]
    return first_image.cpu().numpy(), pixels.flip(1).cpu().numpy()


def _move(points: torch.Tensor, image: torch.Tensor, velocity: torch.Tensor, steps: int) -> torch.Tensor:
    """Move (P, 2) points, sorted by their image."""
    counts = torch.bincount(image, minlength=len(velocity))
    slot = torch.arange(len(points), device=points.device) - (counts.cumsum(0) - counts)[image]
    grid = points.new_zeros(len(velocity), 1, int(counts.max()), 2)
    grid[image, 0, slot] = points
    for _ in range(steps):
        step = F.grid_sample(velocity, grid, padding_mode="border", align_corners=True)
        grid.add_(step.permute(0, 2, 3, 1)).clamp_(-1, 1)
    return grid[image, 0, slot]


def _merge(points: torch.Tensor, image: torch.Tensor, last: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Find which points have met: the indices of those to keep, and for each point its place among them."""
    bins = ((points + 1) * (last / 2 * _MERGED_PER_PIXEL)).long()
    columns, rows = (last * _MERGED_PER_PIXEL + 1).tolist()
    keys, merged = torch.unique((image * rows + bins[:, 1]) * columns + bins[:, 0], return_inverse=True)
    index = torch.arange(len(points), device=points.device)
    kept = torch.full_like(keys, len(points)).scatter_reduce_(0, merged, index, "amin")
    return kept, merged


def label_heaps(image: np.ndarray, pixels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Label P points by the heap they lie in, given their images and rows and columns, (P, 2); 0 for those in none.

    A heap is a peak of the histogram of points, and what connects with it among the bins around it that hold several.
    No two images have a label but 0 in common.
    """
    count, height, width = shape
    frame = _HEAP_REACH  # so that nothing around a peak is outside, or in another image
    rows, columns = height + 2 * frame, width + 2 * frame
    where = (image * rows + pixels[:, 0] + frame) * columns + pixels[:, 1] + frame
    heights = np.bincount(where, minlength=count * rows * columns)
    strip = heights.reshape(-1, columns).astype(np.float32)
    highest = cv2.dilate(strip, np.ones((2 * _PEAK_DISTANCE + 1,) * 2, dtype=np.uint8))
    peaks = np.flatnonzero((strip == highest) & (strip > _PEAK_HEIGHT))
    if len(peaks) == 0:
        return np.zeros(len(where), dtype=np.int32)
    peaks = peaks[np.argsort(heights[peaks], kind="stable")]

    reach = np.arange(-frame, frame + 1)
    around = peaks[:, None, None] + reach[:, None] * columns + reach
    in_heap = torch.zeros(around.shape)
    in_heap[:, frame, frame] = 1
    several = torch.from_numpy(heights[around] > _HEAP_HEIGHT)
    for _ in range(_HEAP_REACH):
        in_heap = F.max_pool2d(in_heap, kernel_size=3, stride=1, padding=1) * several
    in_heap = in_heap.numpy() > 0
    labels = np.zeros(len(heights), dtype=np.int32)
    number = np.broadcast_to(np.arange(1, len(peaks) + 1, dtype=np.int32)[:, None, None], around.shape)
    np.maximum.at(labels, around[in_heap], number[in_heap])  # where two heaps meet, the higher one has it
    return labels[where]


def flow_errors(labels: np.ndarray, flows: np.ndarray) -> np.ndarray:
    """Mean squared differences, (K,), of the flows to the centres of masks 1 to K and the predicted (N, 2, H, W) ones.

    They are 0 for labels that do not occur; no two images may have a label but 0 in common.
    """
    width = labels.shape[-1]
    strip, flow_strip = labels.reshape(-1, width), flows.transpose(1, 0, 2, 3).reshape(2, -1, width)
    boxes = ndi.find_objects(strip)
    # Cellpose's number of steps: twice the height and the width of the box with a frame of one pixel.
    steps = np.array([2 * sum(side.stop - side.start + 2 for side in box) if box else 0 for box in boxes], dtype=int)
    errors = np.zeros(len(boxes))
    order = np.argsort(steps, kind="stable")[np.count_nonzero(steps == 0) :]
    for start in range(0, len(order), _MASKS_PER_GROUP):
        group = order[start : start + _MASKS_PER_GROUP]
        masks = _patches([strip[boxes[k]] == k + 1 for k in group])
        direction = mask_flows(masks, steps[group])
        for axis in range(2):
            predicted = _patches([flow_strip[axis][boxes[k]] for k in group])
            errors[group] += (masks * (direction[:, axis] - predicted) ** 2).sum(axis=(1, 2))
        errors[group] /= masks.sum(axis=(1, 2))
    return errors


def mask_flows(masks: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Compute (K, 2, H, W) flows to the centres of masks: the gradient of heat that spreads from them, of length 1.

    Each of the (K, H, W) masks must not touch the border; its heat is averaged over 3x3 pixels `steps` times, (K,) in
    ascending order.
    """
    count, height, width = masks.shape
    ninth = masks.astype(np.float32).ravel() / 9
    heat, sums, total = (np.zeros_like(ninth) for _ in range(3))
    centres = np.arange(count) * height * width + _centres(masks)
    for step in range(steps[-1]):
        first = np.searchsorted(steps, step, side="right")  # those before it are done
        # Flat arrays: the frames of zeros keep rows and masks apart.
        part = slice(first * height * width, None)
        h, s, t = heat[part], sums[part], total[part]
        heat[centres[first:]] += 1
        np.add(h[: -2 * width], h[2 * width :], out=s[width:-width])
        s[width:-width] += h[width:-width]
        np.add(s[:-2], s[2:], out=t[1:-1])
        t[1:-1] += s[1:-1]
        np.multiply(t, ninth[part], out=h)
    heat = np.pad(heat.reshape(masks.shape), ((0, 0), (1, 1), (1, 1)))
    gradient = np.stack([heat[:, 2:, 1:-1] - heat[:, :-2, 1:-1], heat[:, 1:-1, 2:] - heat[:, 1:-1, :-2]], axis=1)
    length = np.hypot(gradient[:, :1], gradient[:, 1:])
    return np.divide(gradient, length, out=np.zeros_like(gradient), where=(length > 0) & masks[:, None])


def _centres(masks: np.ndarray) -> np.ndarray:
    """Return the pixel of each (H, W) mask that is nearest to the mean of all, as an index into H * W."""
    _, height, width = masks.shape
    row, column = np.mgrid[:height, :width]
    area = masks.sum(axis=(1, 2))
    mean_row, mean_column = ((masks * axis).sum(axis=(1, 2)) / area for axis in (row, column))
    distance = (row - mean_row[:, None, None]) ** 2 + (column - mean_column[:, None, None]) ** 2
    return np.where(masks, distance, np.inf).reshape(len(masks), -1).argmin(axis=1)


def _patches(pieces: list[np.ndarray]) -> np.ndarray:
    """Stack (h, w) pieces of several sizes, each in the upper left corner inside a frame of one zero."""
    height, width = (max(piece.shape[axis] for piece in pieces) + 2 for axis in range(2))
    stack = np.zeros((len(pieces), height, width), dtype=pieces[0].dtype)
    for patch, piece in zip(stack, pieces, strict=True):
        patch[1 : 1 + piece.shape[0], 1 : 1 + piece.shape[1]] = piece
    return stack


def _distinct(labels: np.ndarray) -> np.ndarray:
    """From labels 1 to K in each image to labels that no two images have in common."""
    counts = labels.reshape(len(labels), -1).max(axis=1)
    return labels + (labels > 0) * (counts.cumsum() - counts).astype(np.int32)[:, None, None]
