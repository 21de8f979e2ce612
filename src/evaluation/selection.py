"""Choosing one of N candidates for each control."""

import torch

from cellfluxrl.rewards.energy import pairwise


def select_best(scores: torch.Tensor) -> torch.Tensor:
    """
    The candidate with the highest score for each control.

    Args:
        scores (`torch.Tensor` of shape `(M, N)`): Of N candidates of M controls.

    Returns:
        `torch.Tensor` of shape `(M,)`, int64.
    """
    return scores.argmax(dim=1)


def select_match(vectors: torch.Tensor, reference: torch.Tensor, sweeps: int = 6) -> torch.Tensor:
    """
    One candidate for each control such that the chosen set is distributed as real cells are.

    Minimises the energy distance between the statistics of the chosen set and the reference by coordinate descent:
    each control in turn takes the candidate with the smallest mean distance to the reference minus mean distance to
    the chosen set.

    Args:
        vectors (`torch.Tensor` of shape `(M, N, D)`): Scaled statistics of N candidates of M controls.
        reference (`torch.Tensor` of shape `(R, D)`): Scaled statistics of real cells.
        sweeps (`int`, defaults to 6): At most this many passes over the controls; it stops when nothing changes.

    Returns:
        `torch.Tensor` of shape `(M,)`, int64.

    Example:
        >>> candidates = torch.tensor([[[0.0], [9.0]], [[1.0], [9.0]]])
        >>> select_match(candidates, torch.tensor([[0.0], [1.0]])).tolist()
        [0, 0]
    """
    controls, candidates, _ = vectors.shape
    flat = vectors.reshape(controls * candidates, -1)
    to_reference = pairwise(flat, reference).mean(dim=1).view(controls, candidates)
    chosen = to_reference.argmin(dim=1)
    if controls == 1:
        return chosen
    rows = torch.arange(controls, device=vectors.device)
    # Sum of the distances from every candidate to the chosen set, kept up to date as choices change.
    to_chosen = pairwise(flat, vectors[rows, chosen]).sum(dim=1).view(controls, candidates)
    for _ in range(sweeps):
        changed = False
        for m in range(controls):
            own = vectors[m]
            to_others = to_chosen[m] - pairwise(own, own[chosen[m]][None])[:, 0]
            # The set is all there is, so its mean includes the distance of a cell to itself, which is 0: dividing by
            # controls - 1, as for a sample of something larger, would let in one outlier for free.
            best = (to_reference[m] - to_others / controls).argmin()
            if best != chosen[m]:
                moved = pairwise(flat, torch.stack([own[best], own[chosen[m]]]))
                to_chosen += (moved[:, 0] - moved[:, 1]).view(controls, candidates)
                chosen[m] = best
                changed = True
        if not changed:
            break
    return chosen
