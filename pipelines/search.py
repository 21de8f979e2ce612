"""Searches that spend the network evaluations of N samples on the trajectory or on the source noise.

Nothing here knows of images or of a network: a sample is a tensor whose first axis counts controls and, for each, its
candidates (`control * N + candidate`), and flow and score are callables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

from cellfluxrl.flow.paths import PathSample, per_sample

MINIMUM_ROUND = 4  # with fewer neighbours in a round, as many independent samples find more

Score = Callable[[torch.Tensor], torch.Tensor]


def systematic_resample(weights: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Draw parents, int64 `(M, N)`, for M sets of N particles with `weights` `(M, N)` that sum to 1 in each row.

    Particle i is drawn on average `N weights[i]` times and never a whole time more or less (Kitagawa, 1996). The
    `offset` of each set, `(M,)`, is uniform in [0, 1). Parents increase in each row; equal weights give 0 to N - 1.

    Example:
        >>> systematic_resample(torch.tensor([[0.5, 0.0, 0.25, 0.25]]), torch.tensor([0.5])).tolist()
        [[0, 0, 2, 3]]
    """
    count = weights.shape[1]
    # In double, and away from the edges by more than its rounding: equal weights give every particle once.
    edges = weights.double().cumsum(dim=1)
    edges = edges / edges[:, -1:] * count
    positions = torch.arange(count, device=weights.device) + offset.double().clamp(1e-6, 1 - 1e-6)[:, None]
    return torch.searchsorted(edges, positions, right=True).clamp(max=count - 1)


def split_grid(grid: torch.Tensor, times: Sequence[float]) -> list[torch.Tensor]:
    """Cut a time grid, `(T,)`, at its inner points nearest to `times`: each part begins where the one before ends.

    Example:
        >>> [part.tolist() for part in split_grid(torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]), [0.5, 0.8])]
        [[0.0, 0.25, 0.5], [0.5, 0.75], [0.75, 1.0]]
    """
    if len(times) == 0 or not all(0 < time < 1 for time in times):
        raise ValueError(f"resample_times must be times between 0 and 1, got {tuple(times)}")
    if len(grid) < 3:
        raise ValueError(f"steering needs at least two steps to stop in between, got {len(grid) - 1}")
    inner = grid[1:-1]
    cuts = sorted({1 + int((inner - time).abs().argmin()) for time in times})
    edges = [0, *cuts, len(grid) - 1]
    return [grid[start : end + 1] for start, end in pairwise(edges)]


def steer(
    source: torch.Tensor,
    grid: torch.Tensor,
    advance: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    score: Score,
    draw_source: Callable[[torch.Tensor], torch.Tensor],
    num_particles: int,
    *,
    strength: float = 20.0,
    resample_times: Sequence[float] = (0.6, 0.75, 0.9),
    generator: torch.Generator | list[torch.Generator] | None = None,
    on_resample: Callable[[torch.Tensor, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Feynman-Kac steering (Singhal et al., 2025): sequential Monte Carlo along the trajectory of each control.

    At each time t of `resample_times` the predicted targets x1_hat of all particles are scored, and each control's
    particles are resampled with weights exp(`strength` (r_t - r_prev)), which telescope to exp(`strength` r). So the
    particles follow p(x1) exp(`strength` r(x1)), in the limit of many and as far as x1_hat predicts r; with
    `strength` 0 they stay what they are. It costs what as many independent samples cost: x1_hat is that of the last
    evaluation.

    The flow is deterministic, so two copies of a particle would stay the same for ever. All but the first copy are
    therefore drawn anew,

        x_t = (1 - t) x_0' + t x1_hat    with a fresh source x_0' = control + noise.

    A flow from x_0 to x_1 has the marginal of (1 - t) x_0 + t x_1 at t, with the noise of x_0 independent of x_1 given
    the control. Were x1_hat a draw from p(x_1 | x_t), x_t would thus have that marginal exactly. It is the mean of
    that distribution, so copies lack a variance of t^2 Var[x_1 | x_t]: less than x_t has, and next to nothing towards
    t = 1, where x_t says what x_1 will be. First copies are not touched, so the best particle is never lost.

    Args:
        source: `(M * N, ...)`; x_0 of the N = `num_particles` particles of M controls.
        grid: `(T,)`; times of the solver's steps, increasing to 1.
        advance: From (x at `part[0]`, `part`) to (x at `part[-1]`, the last predicted target), for a part of the grid.
        score: From predicted targets of shape `(M * N, ...)` to rewards of shape `(M * N,)`.
        draw_source: From the int64 indices of K particles to fresh sources of shape `(K, ...)`.
        strength: lambda, in units of 1 / reward.
        resample_times: Each is moved to the nearest time of the grid.
        generator: For the resampling. From a list the first of each control is taken, so that controls do not depend
            on each other.
        on_resample: Gets which particle each one was, `(M * N,)`, and whether it is drawn anew, `(M * N,)`; for
            solvers that remember the step before, as [`CellFluxFlowMatchScheduler.resample`] does.
    """
    if not 0 <= strength < math.inf:
        raise ValueError(f"strength must be a number of at least 0, got {strength}")
    parts = split_grid(grid, resample_times)
    sample, before = source, None
    for part in parts[:-1]:
        sample, target = advance(sample, part)
        rewards = score(target).to(sample.device).double().view(-1, num_particles)
        gained = rewards if before is None else rewards - before
        parent = systematic_resample((strength * gained).softmax(dim=1), _offsets(rewards, generator))
        before = rewards.gather(1, parent)

        copied = torch.zeros_like(parent, dtype=torch.bool)
        copied[:, 1:] = parent[:, 1:] == parent[:, :-1]
        copied = copied.flatten()
        copies = copied.nonzero()[:, 0]
        first = torch.arange(len(parent), device=parent.device)[:, None] * num_particles
        parent = (first + parent).flatten()
        sample = sample[parent]
        if len(copies):
            sample[copies] = PathSample(draw_source(copies), target[parent[copies]], part[-1].double()).x_t
        if on_resample is not None:
            on_resample(parent, copied)
    return advance(sample, parts[-1])[0]


def _offsets(rewards: torch.Tensor, generator: torch.Generator | list[torch.Generator] | None) -> torch.Tensor:
    """A uniform random number for each control, from its first generator."""
    generators = generator[:: rewards.shape[1]] if isinstance(generator, list) else [generator]
    count = len(rewards) // len(generators)
    drawn = [
        torch.rand(count, generator=one, dtype=torch.float64, device=getattr(one, "device", None))
        for one in generators
    ]
    return torch.cat(drawn).to(rewards.device)


def rotate_noise(noise: torch.Tensor, fresh: torch.Tensor, angle: float) -> torch.Tensor:
    """A draw from N(0, S) whose correlation with another one, `noise`, is cos(angle): cos^2 + sin^2 = 1."""
    return math.cos(angle) * noise + math.sin(angle) * fresh


def search_noise(
    generate: Callable[[torch.Tensor], torch.Tensor],
    score: Score,
    draw_noise: Callable[[int, int], torch.Tensor],
    num_candidates: int,
    num_rounds: int = 4,
    angle: float = 0.7,
) -> torch.Tensor:
    """Search locally over the source noise: a (1 + P) evolution for each control.

    After Ma et al. (2025), "Inference-time scaling for diffusion models beyond denoising steps". The first round is P
    independent samples of each control; each further round is P neighbours ([`rotate_noise`]) of the control's best
    noise so far. All rounds together evaluate N = `num_candidates` samples of each control, and all are returned in
    the order in which they were made, `(M * N, ...)`, so the best of them is never worse than the first.

    Args:
        generate: From noise of shape `(M * P, ...)` to samples of shape `(M * P, ...)`.
        score: From samples of shape `(M * P, ...)` to rewards of shape `(M * P,)`; called once for every round.
        draw_noise: From (i, j) to fresh noise of the candidates i to j - 1 of each control, `(M * (j - i), ...)`.
        num_rounds: Rounds that they are spread over, as evenly as possible. Fewer where a round would have less than 4
            samples: up to N = 7 all are independent.
        angle: How far neighbours are, in radians: 0 is the same noise, pi / 2 unrelated.
    """
    if num_rounds < 1:
        raise ValueError(f"num_rounds must be at least 1, got {num_rounds}")
    if not 0 < angle <= math.pi / 2:
        raise ValueError(f"angle must be in (0, pi / 2], got {angle}")
    rounds = max(1, min(num_rounds, num_candidates // MINIMUM_ROUND))
    edges = [num_candidates * k // rounds for k in range(rounds + 1)]
    samples, best_noise, best_score = [], None, None
    for start, end in pairwise(edges):
        count = end - start
        noise = draw_noise(start, end)
        if best_noise is not None:
            noise = rotate_noise(best_noise.repeat_interleave(count, dim=0), noise, angle)
        generated = generate(noise)
        scores, index = score(generated).to(noise.device).view(-1, count).max(dim=1)
        rows = torch.arange(len(index), device=noise.device) * count + index
        if best_noise is None:
            best_noise, best_score = noise[rows], scores
        else:
            better = scores > best_score
            best_noise = torch.where(per_sample(better, noise), noise[rows], best_noise)
            best_score = torch.where(better, scores, best_score)
        samples.append(generated.unflatten(0, (-1, count)))
    return torch.cat(samples, dim=1).flatten(0, 1)
