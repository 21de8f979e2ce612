"""The velocity network: its numbers against the original's, its own behaviour, and the reading of checkpoints."""

import argparse
import json
import pickle
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch

from cellfluxrl.models.cellflux_checkpoint import original_names
from cellfluxrl.models.unet import PRESETS, CellFluxUNet2DModel


@pytest.fixture(scope="module")
def parity_path(parity_dir):
    return parity_dir / "cellflux_unet_bbbc021_narrow.safetensors"


def randomized(unet: CellFluxUNet2DModel, seed: int = 0) -> CellFluxUNet2DModel:
    """Leave no layer at zero, so that every parameter has a say in the output."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return unet.eval()


def tiny(**overrides) -> CellFluxUNet2DModel:
    return randomized(CellFluxUNet2DModel.from_preset("tiny", **{"condition_dim": 8, **overrides}))


def original_state_dict(unet: CellFluxUNet2DModel) -> dict[str, torch.Tensor]:
    own = unet.state_dict()
    return {original: own[name].clone() for original, name in original_names(unet).items()}


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(4, 3, 16, 16, generator=generator)
    return sample, torch.tensor([0.0, 0.3, 0.7, 1.0]), torch.randn(4, 8, generator=generator)


# --- the original's numbers ---


@pytest.mark.parametrize("with_config", [False, True], ids=["inferred config", "original's config"])
def test_velocities_are_those_of_the_original(parity_path, with_config):
    with safetensors.safe_open(parity_path, "pt") as file:
        config = json.loads(file.metadata()["config"]) if with_config else None
        io = {name: file.get_tensor(f"io.{name}") for name in ("x", "t", "condition", "velocity")}
        unconditional = file.get_tensor("io.velocity_unconditional")
    unet = CellFluxUNet2DModel.from_cellflux_checkpoint(parity_path, config=config)
    with torch.no_grad():
        velocity = unet(io["x"], io["t"], io["condition"]).sample
        torch.testing.assert_close(velocity, io["velocity"], atol=1e-5, rtol=0)
        torch.testing.assert_close(unet(io["x"], io["t"]).sample, unconditional, atol=1e-5, rtol=0)
    assert (velocity - unconditional).abs().max() > 1e-2
    assert unet.config.channel_names == ("actin", "tubulin", "dna")


@pytest.mark.parametrize(
    "config",
    [
        {"attention_resolutions": (1, 2), "channel_mult": (1, 1.5)},
        {"conv_resample": True, "num_res_blocks": 2},
        {"resblock_updown": True, "channel_mult": (1, 2, 2), "attention_resolutions": (1, 4)},
        {"use_scale_shift_norm": False, "condition_dim": None},
        {"channel_mult": (1,), "attention_resolutions": ()},
        {"model_channels": 48, "channel_mult": (1.5, 49 / 48 * 8 / 7), "norm_num_groups": 1},
    ],
    ids=lambda config: ",".join(config),
)
def test_the_shapes_of_the_weights_tell_the_configuration(config, inputs):
    sample, time, condition = inputs
    unet = tiny(**{"patch_size": 1, "prediction_type": "velocity", **config})
    groups = unet.config.norm_num_groups
    loaded = CellFluxUNet2DModel.from_cellflux_checkpoint(original_state_dict(unet), {"norm_num_groups": groups})
    condition = None if unet.config.condition_dim is None else condition
    torch.testing.assert_close(loaded(sample, time, condition).sample, unet(sample, time, condition).sample)
    for name in (
        "attention_resolutions",
        "num_res_blocks",
        "resblock_updown",
        "use_scale_shift_norm",
        "condition_dim",
    ):
        assert loaded.config[name] == unet.config[name]


def test_heads_stored_in_the_legacy_order_are_reordered(inputs):
    unet = tiny(patch_size=1, prediction_type="velocity", num_heads=4)
    state_dict = original_state_dict(unet)
    for name in [name for name in state_dict if ".qkv." in name]:
        tensor = state_dict[name]
        state_dict[name] = tensor.unflatten(0, (3, 4, -1)).transpose(0, 1).flatten(0, 2)
    config = {"num_heads": 4, "norm_num_groups": 8, "use_new_attention_order": False}
    loaded = CellFluxUNet2DModel.from_cellflux_checkpoint(state_dict, config)
    torch.testing.assert_close(loaded(*inputs).sample, unet(*inputs).sample)


def test_original_names_of_each_kind_of_block():
    names = original_names(tiny(conv_resample=True))
    assert names["input_blocks.2.0.op.weight"] == "down_blocks.0.resampler.conv.weight"
    assert names["output_blocks.1.2.conv.bias"] == "up_blocks.0.resampler.conv.bias"
    assert names["middle_block.1.qkv.weight"] == "mid_block.layers.0.attention.to_qkv.weight"
    assert names["middle_block.2.out_layers.3.weight"] == "mid_block.layers.1.resnet.conv2.weight"
    names = original_names(tiny(resblock_updown=True))
    assert names["output_blocks.1.2.emb_layers.1.bias"] == "up_blocks.0.resampler.embedding_proj.bias"


# --- the network ---


def test_masked_rows_are_unconditional(inputs):
    sample, time, condition = inputs
    unet = tiny()
    mask = torch.tensor([True, False, True, False])
    with torch.no_grad():
        mixed = unet(sample, time, condition, mask).sample
        conditional, unconditional = unet(sample, time, condition).sample, unet(sample, time).sample
    torch.testing.assert_close(mixed[mask], conditional[mask])
    torch.testing.assert_close(mixed[~mask], unconditional[~mask])
    assert not torch.allclose(conditional, unconditional)


def test_target_prediction_becomes_a_velocity(inputs):
    sample, time, condition = inputs
    unet = tiny(min_time_remaining=0.2)
    with torch.no_grad():
        target = unet.predict(sample, time, condition)
        velocity = unet(sample, time, condition).sample
    for row, remaining in enumerate([1.0, 0.7, 0.3, 0.2]):
        torch.testing.assert_close(velocity[row], (target[row] - sample[row]) / remaining)


def test_time_may_be_a_number_or_of_any_dtype(inputs):
    sample, _, condition = inputs
    unet = tiny()
    times = [0.25, torch.tensor(0.25), torch.full((4,), 0.25, dtype=torch.float64)]
    first, *others = [unet(sample, time, condition, return_dict=False)[0] for time in times]
    for other in others:
        torch.testing.assert_close(other, first)
    assert not torch.allclose(unet(sample, 0.75, condition).sample, first)


def test_saves_and_loads(tmp_path, inputs):
    unet = tiny()
    unet.save_pretrained(tmp_path)
    loaded = CellFluxUNet2DModel.from_pretrained(tmp_path)
    assert (tmp_path / "diffusion_pytorch_model.safetensors").is_file()
    assert loaded.config.prediction_type == "target"
    torch.testing.assert_close(loaded(*inputs).sample, unet(*inputs).sample, rtol=0, atol=0)


@pytest.mark.parametrize(("name", "low", "high"), [("bbbc021", 56_201_219, 56_201_219), ("small", 2e6, 2.5e6)])
def test_preset_sizes(name, low, high):
    with torch.device("meta"):
        unet = CellFluxUNet2DModel.from_preset(name)
    assert low <= sum(parameter.numel() for parameter in unet.parameters()) <= high


def test_the_tiny_preset_is_tiny_and_unknown_ones_are_refused():
    assert sum(p.numel() for p in CellFluxUNet2DModel.from_preset("tiny").parameters()) < 150_000
    with pytest.raises(ValueError, match=r"unknown preset 'smal'; did you mean 'small'\?"):
        CellFluxUNet2DModel.from_preset("smal")
    assert "dropout" in PRESETS["bbbc021"]


def test_gradients_reach_every_parameter(inputs):
    sample, time, condition = inputs
    unet = tiny(num_heads=2, channel_mult=(1, 2), resblock_updown=True)
    unet(sample, time, condition).sample.square().mean().backward()
    for name, parameter in unet.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_gradient_checkpointing_changes_no_gradient(inputs):
    unet = tiny().train()
    calls = []
    unet.mid_block.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    gradients = []
    for prepare in (unet.disable_gradient_checkpointing, unet.enable_gradient_checkpointing):
        prepare()
        unet.zero_grad()
        unet(*inputs).sample.square().mean().backward()
        gradients.append([parameter.grad for parameter in unet.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)
    assert len(calls) == 1 + 2, "the backward pass should have computed the layer again"


def test_runs_in_bfloat16(inputs):
    sample, time, condition = inputs
    unet = tiny()
    expected = unet.predict(sample, time, condition)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = unet.predict(sample, time, condition)
    assert autocast.dtype == torch.float32
    assert not torch.equal(autocast, expected)
    torch.testing.assert_close(autocast, expected, atol=0.1, rtol=0.1)
    assert unet.to(torch.bfloat16)(sample, time, condition).sample.dtype == torch.float32


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sample": torch.zeros(4, 2, 16, 16)}, r"\(4, 2, 16, 16\); expected \(N, 3, H, W\)"),
        ({"sample": torch.zeros(4, 3, 18, 16)}, "18x16 pixels; both must be multiples of 4"),
        ({"sample": torch.zeros(4, 3, 16, 16, dtype=torch.uint8)}, "torch.uint8"),
        ({"timestep": torch.zeros(3)}, r"timestep has shape \(3,\)"),
        ({"condition": torch.zeros(4, 9)}, r"condition has shape \(4, 9\); expected \(4, 8\)"),
        ({"condition": torch.zeros(1, 8)}, r"condition has shape \(1, 8\); expected \(4, 8\)"),
        ({"condition_mask": torch.ones(4)}, "torch.float32; expected .* torch.bool"),
        ({"condition": None, "condition_mask": torch.ones(4, dtype=torch.bool)}, "without a condition"),
    ],
)
def test_wrong_inputs_are_named(changed, message):
    arguments = {"sample": torch.zeros(4, 3, 16, 16), "timestep": 0.5, "condition": torch.zeros(4, 8), **changed}
    with pytest.raises(ValueError, match=message):
        tiny()(**arguments)


def test_an_unconditional_network_refuses_a_condition(inputs):
    with pytest.raises(ValueError, match="this network is unconditional"):
        tiny(condition_dim=None)(*inputs)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"norm_num_groups": 5}, "norm_num_groups 5 does not divide a width of 16"),
        ({"num_heads": 3}, "num_heads 3 does not divide"),
        ({"num_head_channels": 7}, "num_head_channels 7 does not divide"),
        ({"attention_resolutions": (2, 8)}, r"attention_resolutions \[8\] never occur"),
        ({"prediction_type": "targt"}, "did you mean 'target'"),
        ({"in_channels": 6, "out_channels": 6}, "names 3 channels, but in_channels is 6"),
        ({"out_channels": 6}, "out_channels is 6 and in_channels is 3"),
        ({"min_time_remaining": 0.0}, "min_time_remaining"),
    ],
)
def test_wrong_configurations_are_named(config, message):
    with pytest.raises(ValueError, match=message):
        CellFluxUNet2DModel.from_preset("tiny", **config)


# --- checkpoints of the original ---

TINY_ORIGINAL = {"patch_size": 1, "prediction_type": "velocity"}


def ema_inside(raw, averaged):
    return {"model": {"num_updates": torch.tensor(7)} | {f"model.{k}": v for k, v in raw.items()} | shadows(averaged)}


def shadows(averaged):
    return {f"shadow_params.{number}": tensor for number, tensor in enumerate(averaged.values())}


EMA_LAYOUTS = {
    "inside the state dict": ema_inside,
    "numbered": lambda raw, averaged: {"model": raw, "model_ema": shadows(averaged)},
    "a list": lambda raw, averaged: {"model": raw, "ema": {"decay": 0.999, "shadow_params": list(averaged.values())}},
    "by name": lambda raw, averaged: {
        "model": {f"module.{k}": v for k, v in raw.items()},
        "ema": {f"module.{k}": v for k, v in averaged.items()},
    },
}


@pytest.mark.parametrize("layout", EMA_LAYOUTS)
def test_ema_weights_of_a_saved_checkpoint(layout, tmp_path, inputs, caplog):
    raw, averaged = tiny(**TINY_ORIGINAL), randomized(tiny(**TINY_ORIGINAL), seed=2)
    checkpoint = EMA_LAYOUTS[layout](original_state_dict(raw), original_state_dict(averaged))
    path = tmp_path / "checkpoint.pth"
    torch.save({**checkpoint, "epoch": 3, "args": argparse.Namespace(lr=1e-4, dataset="bbbc021")}, path)

    caplog.set_level("INFO")
    for use_ema, expected in ((True, averaged), (False, raw)):
        loaded = CellFluxUNet2DModel.from_cellflux_checkpoint(path, {"norm_num_groups": 8}, use_ema=use_ema)
        torch.testing.assert_close(loaded(*inputs).sample, expected(*inputs).sample)
        assert ("moving average" if use_ema else "raw weights") in caplog.messages[-1]


def test_an_ema_in_another_order_is_refused():
    state_dict = original_state_dict(tiny(**TINY_ORIGINAL))
    backwards = {"model": state_dict, "ema": list(state_dict.values())[::-1]}
    with pytest.raises(ValueError, match=r"shadow_params\.0 has shape .* time_embed\.0\.weight"):
        CellFluxUNet2DModel.from_cellflux_checkpoint(backwards)
    with pytest.raises(ValueError, match="EMA has 1 tensors"):
        CellFluxUNet2DModel.from_cellflux_checkpoint({**backwards, "ema": [torch.zeros(1)]})


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, protocol=2))]
)
def test_a_malicious_pickle_is_refused_and_not_executed(save, tmp_path):
    trace = tmp_path / "executed"
    path = tmp_path / "checkpoint.pth"
    save({"model": {}, "args": Malicious(trace)}, path)
    with pytest.raises(ValueError, match="refused to read"):
        CellFluxUNet2DModel.from_cellflux_checkpoint(path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Malicious(trace)))
    assert trace.exists(), "the pickle of this test would do nothing anyway"


def test_checkpoint_errors_name_what_is_wrong(tmp_path):
    load = CellFluxUNet2DModel.from_cellflux_checkpoint
    state_dict = original_state_dict(tiny(**TINY_ORIGINAL))
    config = {"norm_num_groups": 8}
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        load(tmp_path / "nowhere.pth")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.safetensors"):
        load(tmp_path / "empty.safetensors")
    with pytest.raises(ValueError, match=r"'time_embed\.0\.weight' is missing among fc\.weight"):
        load({"fc.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"lacks 1 weights of this network: out\.0\.bias"):
        load({name: tensor for name, tensor in state_dict.items() if name != "out.0.bias"}, config)
    with pytest.raises(ValueError, match=r"1 weights too many: label_emb\.weight"):
        load({**state_dict, "label_emb.weight": torch.zeros(1)}, config)
    with pytest.raises(ValueError, match=r"time_embed\.0\.weight has shape \(64, 16\) .* needs \(128, 32\)"):
        load(state_dict, {**config, "model_channels": 32, "channel_mult": (0.5, 0.5)})
    with pytest.raises(ValueError, match="did you mean 'num_heads'"):
        load(state_dict, {**config, "num_head": 2})
    with pytest.raises(ValueError, match="num_classes=10 is not supported"):
        load(state_dict, {**config, "num_classes": 10})
    with pytest.raises(ValueError, match="num_heads_upsample=2"):
        load(state_dict, {**config, "num_heads_upsample": 2})
    with pytest.raises(ValueError, match="unknown preset"):
        load(state_dict, "bbbc")
