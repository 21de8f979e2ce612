"""Low-rank adapters in the velocity network."""

import builtins
import copy

import pytest
import torch

from cellfluxrl.models.unet import CellFluxUNet2DModel
from cellfluxrl.rl.lora import add_lora, merged


@pytest.fixture
def unet():
    torch.manual_seed(0)
    unet = CellFluxUNet2DModel.from_preset("tiny", condition_dim=4).eval()
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return unet


def velocity(unet):
    generator = torch.Generator().manual_seed(1)
    images, condition = (torch.randn(size, generator=generator) for size in ((2, 3, 16, 16), (2, 4)))
    return unet(images, 0.5, condition).sample


def test_adapters_change_nothing_at_first_train_alone_and_merge_into_the_plain_network(unet):
    pytest.importorskip("peft")
    plain, before = copy.deepcopy(unet), velocity(unet).detach()
    add_lora(unet, rank=2)
    torch.testing.assert_close(velocity(unet), before)
    trained = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    assert sum(p.numel() for p in trained.values()) < sum(p.numel() for p in plain.parameters())

    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    for _ in range(2):
        velocity(unet).square().mean().backward()
        assert all(p.grad is not None for p in trained.values())
        optimizer.step()
    assert (velocity(unet) - before).abs().max() > 1e-3

    result = merged(unet)
    assert result.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(velocity(result), velocity(unet), atol=1e-5, rtol=1e-4)
    plain.load_state_dict(result.state_dict())
    torch.testing.assert_close(velocity(plain), velocity(result))


def test_the_adapters_of_every_process_start_the_same(unet):
    pytest.importorskip("peft")
    weights = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        weights.append(add_lora(copy.deepcopy(unet), rank=2, seed=5).state_dict())
        assert torch.initial_seed() == noise
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_network_without_adapters_is_only_copied(unet):
    result = merged(unet)
    assert all(torch.equal(value, unet.state_dict()[name]) for name, value in result.state_dict().items())
    assert result is not unet


def test_what_cannot_be_done_is_said(unet, monkeypatch):
    with pytest.raises(ValueError, match="lora_rank must be at least 1, got 0"):
        add_lora(unet, rank=0)
    real = builtins.__import__

    def without_peft(name, *args, **kwargs):
        if name == "peft":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_peft)
    with pytest.raises(ImportError, match=r"use_lora needs peft: pip install 'cellfluxrl\[lora\]'"):
        add_lora(unet, rank=2)
