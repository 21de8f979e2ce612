"""How much a velocity network listens to the compound."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from cellfluxrl.flow.paths import PathSample


@torch.no_grad()
def condition_use(
    model: torch.nn.Module,
    path: PathSample,
    condition: torch.Tensor,
    generator: torch.Generator,
) -> dict[str, float]:
    """Swap the compound and compare.

    Unscaled fingerprints can make a network ignore the compound, with a loss that looks fine. With one compound only,
    the swap is to "no compound" (unconditional).

    Args:
        model: A velocity network as [`CellFluxUNet2DModel`].
        path: N points on the paths.
        condition: `(N, D)`; the true conditions.
        generator: Which compound takes whose place.

    Returns:
        `swapped_cosine`, the mean cosine between the velocities under the true and a swapped compound (1: the compound
        is ignored), and `swapped_loss_increase`, by what share the squared error grows (0: ignored).
    """
    order = torch.randperm(len(condition), generator=generator).to(condition.device)
    changed = (condition[order] != condition).any(dim=1)
    swapped, rows = condition[order], changed
    if not changed.any():
        swapped, rows = None, torch.ones_like(changed)
    true = model(path.x_t, path.t, condition, return_dict=False)[0].flatten(1)[rows]
    other = model(path.x_t, path.t, swapped, return_dict=False)[0].flatten(1)[rows]
    target = path.velocity.flatten(1)[rows]
    loss = (true - target).square().mean()
    return {
        "swapped_cosine": float(F.cosine_similarity(true, other).mean()),
        "swapped_loss_increase": float((other - target).square().mean() / loss - 1),
    }
