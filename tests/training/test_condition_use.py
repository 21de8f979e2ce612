import pytest
import torch

from cellfluxrl.flow.paths import PathSample
from cellfluxrl.training.condition_use import condition_use


class Toy(torch.nn.Module):
    """Moves every pixel by the first entry of the condition, times `use`."""

    def __init__(self, use: float):
        super().__init__()
        self.use = use

    def forward(self, sample, time, condition, return_dict=False):
        shift = 0 if condition is None else self.use * condition[:, 0].view(-1, 1, 1, 1)
        return (torch.ones_like(sample) + shift,)


def use_of(model, condition, generator):
    sample = torch.zeros(len(condition), 3, 4, 4)
    velocity = 1 + condition[:, 0].view(-1, 1, 1, 1) + 0.1 * torch.randn(sample.shape, generator=generator)
    path = PathSample(sample, sample + velocity, torch.zeros(len(condition)))
    return condition_use(model, path, condition, generator)


def test_a_network_that_ignores_the_compound_is_found_out(generator):
    use = use_of(Toy(0.0), torch.randn(40, 2, generator=generator), generator)
    assert use["swapped_cosine"] == pytest.approx(1)
    assert use["swapped_loss_increase"] == pytest.approx(0)


def test_a_network_that_uses_the_compound_loses_by_a_swap(generator):
    use = use_of(Toy(1.0), torch.randn(40, 2, generator=generator), generator)
    assert use["swapped_cosine"] < 0.9
    assert use["swapped_loss_increase"] > 10


def test_only_cells_whose_compound_changed_are_compared(generator):
    condition = torch.zeros(200, 1)
    condition[:100] = 2.0
    use = use_of(Toy(1.0), condition, generator)
    # Swapped between shifts of 0 and 2, the error is 4 instead of the noise's 0.01.
    assert use["swapped_loss_increase"] == pytest.approx(400, rel=0.1)


def test_a_single_compound_is_swapped_for_none(generator):
    use = use_of(Toy(1.0), torch.full((20, 1), 3.0), generator)
    assert use["swapped_loss_increase"] == pytest.approx(900, rel=0.2)
