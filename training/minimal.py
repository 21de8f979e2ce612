"""CellFluxRL in one file, on the plane: a base by flow matching, then post-training by DiffusionNFT.

    python training/minimal.py

A cell is a point: controls lie at the origin, treated cells at eight phenotypes on a circle; the reward asks for one.
docs/method.md has the formulas, `training/rl.py` does the same to images, and a test compares the updates of the two.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

PHENOTYPES, WANTED, RADIUS, SPREAD, CONTROL_SPREAD, SOURCE_NOISE = 8, 2, 4.0, 0.2, 0.3, 1.0
ANGLES = torch.arange(PHENOTYPES) * 2 * math.pi / PHENOTYPES
CENTERS = RADIUS * torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)
BASE_STEPS, BASE_BATCH, BASE_RATE = 1500, 256, 2e-3
ITERATIONS, CONTROLS, ROLLOUTS = 40, 16, 16  # a group: the rollouts of one control
SOLVER_STEPS, INNER_STEPS, RATE = 10, 2, 1e-3
MIXING_WEIGHT, KL_WEIGHT, CLIP, FLOOR = 1.0, 0.001, 2.0, 0.02


# 1. The data
def draw_sources(count: int, generator: torch.Generator, rollouts: int = 1) -> torch.Tensor:
    """Controls, each `rollouts` times, with noise: without it, one control would have one treated cell."""
    controls = (CONTROL_SPREAD * torch.randn(count, 2, generator=generator)).repeat_interleave(rollouts, dim=0)
    return controls + SOURCE_NOISE * torch.randn(controls.shape, generator=generator)


def draw_treated(count: int, generator: torch.Generator) -> torch.Tensor:
    phenotype = torch.randint(PHENOTYPES, (count,), generator=generator)
    return CENTERS[phenotype] + SPREAD * torch.randn(count, 2, generator=generator)


def reward(cells: torch.Tensor) -> torch.Tensor:
    """1 for cells of the wanted phenotype, as real ones vary; all of those are equally good."""
    distance, phenotype = torch.cdist(cells, CENTERS).min(dim=1)
    return ((phenotype == WANTED) & (distance < 4 * SPREAD)).float()


# 2. The velocity v(x, t), and cells that follow it
class Velocity(nn.Module):
    def __init__(self, width: int = 96):
        super().__init__()
        hidden = nn.Linear(width, width)
        self.layers = nn.Sequential(nn.Linear(5, width), nn.SiLU(), hidden, nn.SiLU(), nn.Linear(width, 2))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        t = t.expand(len(x))[:, None]
        return self.layers(torch.cat([x, t, (math.pi * t).sin(), (math.pi * t).cos()], dim=1))


@torch.no_grad()
def sample(velocity: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Solve dx/dt = v(x, t) from t = 0 to 1 by Euler's method."""
    for k in range(SOLVER_STEPS):
        x = x.add(velocity(x, torch.tensor(k / SOLVER_STEPS)), alpha=1 / SOLVER_STEPS)
    return x


# 3. The base: flow matching on the paths x_t = (1 - t) x_0 + t x_1, whose velocity is u = x_1 - x_0
def on_path(x_0: torch.Tensor, x_1: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (1 - t[:, None]) * x_0 + t[:, None] * x_1, x_1 - x_0


def train_base(generator: torch.Generator) -> nn.Module:
    velocity = Velocity()
    optimizer = torch.optim.AdamW(velocity.parameters(), lr=BASE_RATE, weight_decay=0.0)
    for _ in range(BASE_STEPS):
        x_0, x_1 = draw_sources(BASE_BATCH, generator), draw_treated(BASE_BATCH, generator)  # independently
        x_t, u = on_path(x_0, x_1, t := torch.rand(BASE_BATCH, generator=generator))
        loss = (velocity(x_t, t) - u).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return velocity


# 4. Post-training: DiffusionNFT
def preferences(rewards: torch.Tensor) -> torch.Tensor:
    """R = 1/2 + 1/2 clip(A / 2, -1, 1), A the reward above the mean of its group, in standard deviations."""
    groups = rewards.double().view(CONTROLS, ROLLOUTS)
    advantage = groups - groups.mean(dim=1, keepdim=True)
    advantage = advantage / advantage.square().mean().sqrt().clamp(min=1e-12)
    return (0.5 + 0.5 * (advantage / CLIP).clamp(-1, 1)).float().flatten()


def matching_error(v: torch.Tensor, u: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """How far from the rollout v leads: the mean square of (1 - t) (v - u), in units of its own size."""
    error = (1 - t)[:, None] * (v - u)
    return error.square().mean(dim=1) / error.detach().abs().mean(dim=1).clamp(min=FLOOR)


def nft_loss(v: torch.Tensor, v_old: torch.Tensor, u: torch.Tensor, t: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
    """The implicit positive policy goes towards rollouts with r > 1/2, the negative one towards the others."""
    b = MIXING_WEIGHT
    positive = matching_error((1 - b) * v_old + b * v, u, t)
    negative = matching_error((1 + b) * v_old - b * v, u, t)
    return (r * positive + (1 - r) * negative) / b


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    for a, m in zip(average.parameters(), model.parameters(), strict=True):
        a.lerp_(m, 1 - decay)


def post_train(base: nn.Module, generator: torch.Generator, iterations: int = ITERATIONS) -> list[nn.Module]:
    """The trained policy, the `old` one that samples, and the average that is kept."""
    model, old, average = (copy.deepcopy(base) for _ in range(3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    for i in range(iterations):
        x_1 = sample(old, draw_sources(CONTROLS, generator, ROLLOUTS))
        r = preferences(reward(x_1))
        for _ in range(INNER_STEPS):
            # Fresh controls, never a rollout's own start: base training pairs them independently, too.
            x_0, t = draw_sources(len(x_1), generator), torch.rand(len(x_1), generator=generator)
            x_t, u = on_path(x_0, x_1, t)
            v = model(x_t, t)
            with torch.no_grad():
                v_old, v_base = old(x_t, t), base(x_t, t)
            loss = (nft_loss(v, v_old, u, t, r) + KL_WEIGHT * (v - v_base).square().mean(dim=1)).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        follow(old, model, decay=min(0.7, 0.005 * i))
        follow(average, model, decay=min(0.95, (1 + i) / (10 + i)))
    return [model, old, average]


def summary(velocity: nn.Module) -> dict[str, float]:
    """Of new cells: the mean reward, and the spread of those of the wanted phenotype (that of real ones: 0.2)."""
    cells = sample(velocity, draw_sources(2000, torch.Generator().manual_seed(1)))
    return {"reward": float(reward(cells).mean()), "spread": float(cells[reward(cells) > 0].std(dim=0).mean())}


def main() -> None:
    generator = torch.manual_seed(0)
    base = train_base(generator)
    _, _, trained = post_train(base, generator)
    for name, velocity in (("base", base), ("post-trained", trained)):
        print(f"{name:12}", *(f"{key} {value:.3f}" for key, value in summary(velocity).items()), sep="  ")


if __name__ == "__main__":
    main()
