"""The velocity network: its numbers against the original's, and its own behaviour."""

import json

import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import PlainUNet, draw_inputs, randomized, tiny
from torch.nn.attention import SDPBackend, sdpa_kernel

from cellfluxrl.models import unet as unet_module
from cellfluxrl.models.cellflux_checkpoint import convert_weights
from cellfluxrl.models.unet import CellFluxUNet2DModel, normalized_condition
from cellfluxrl.models.unet_presets import PRESETS


@pytest.fixture(scope="module")
def parity_path(parity_dir):
    return parity_dir / "cellflux_unet_bbbc021_narrow.safetensors"


@pytest.fixture
def inputs():
    return draw_inputs()


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


def test_the_plain_network_of_these_tests_is_the_original(parity_path):
    with safetensors.safe_open(parity_path, "pt") as file:
        config = json.loads(file.metadata()["config"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for not_ours in ("dims", "num_classes", "use_checkpoint", "with_fourier_features"):
        del config[not_ours]
    plain = PlainUNet(**config).eval()
    plain.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    x, t, condition = (tensors[f"io.{name}"] for name in ("x", "t", "condition"))
    with torch.no_grad():
        torch.testing.assert_close(plain(x, t, condition), tensors["io.velocity"], atol=1e-6, rtol=0)
        torch.testing.assert_close(plain(x, t), tensors["io.velocity_unconditional"], atol=1e-6, rtol=0)


def assert_equal_to_the_plain_network(config: dict, size: int = 16) -> None:
    """Same velocities (float32: 1e-5), and in float64 the same gradients of inputs and weights."""
    channels = config.get("in_channels", 3)
    config = {"model_channels": 16, "norm_num_groups": 8, "channel_mult": (1, 2), "condition_dim": 8} | config
    config |= {"out_channels": channels, "num_res_blocks": config.get("num_res_blocks", 1)}
    torch.manual_seed(0)
    plain = randomized(PlainUNet(**config))
    unet = CellFluxUNet2DModel.from_cellflux_checkpoint(plain.state_dict(), config)
    sample, t, condition = draw_inputs(channels, config["condition_dim"], size)
    with torch.no_grad():
        expected = plain(sample, t, condition)
        tolerance = 1e-5 * max(1, float(expected.abs().max()))
        torch.testing.assert_close(unet(sample, t, condition).sample, expected, atol=tolerance, rtol=0)

    gradients = []
    for model in (plain.double(), unet.double()):
        leaves = [x.double().requires_grad_() for x in (sample, condition) if x is not None]
        output = model(leaves[0], t, *leaves[1:])
        velocity = output if model is plain else output.sample
        (velocity * torch.linspace(-1, 1, velocity.numel()).view_as(velocity)).sum().backward()
        gradients.append([velocity.detach(), *(leaf.grad for leaf in leaves)])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-8, atol=1e-8)
    weights = {name: parameter.grad for name, parameter in plain.named_parameters()}
    new_order = config.get("use_new_attention_order", True)
    expected = convert_weights(weights, unet, use_new_attention_order=new_order)
    own = {name: parameter.grad for name, parameter in unet.named_parameters()}
    torch.testing.assert_close(own, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(
    "config",
    [
        {"channel_mult": (2, 2, 2), "num_res_blocks": 2, "attention_resolutions": (2,)},
        {"in_channels": 6, "condition_dim": 200},
        {"in_channels": 5, "condition_dim": 1224},
        {"in_channels": 1, "condition_dim": None},
        {"attention_resolutions": (1, 2, 4), "channel_mult": (1, 2, 2), "num_heads": 4},
        {"attention_resolutions": (1, 2), "num_head_channels": 8, "num_heads": -1},
        {"attention_resolutions": (1, 2), "num_heads": 4, "use_new_attention_order": False},
        {"attention_resolutions": (1, 2), "num_head_channels": 8, "use_new_attention_order": False},
        {"attention_resolutions": (1, 2), "num_heads": 4, "num_heads_upsample": 2},
        {"num_heads": 1, "num_heads_upsample": 4, "use_new_attention_order": False},
        {"conv_resample": True, "channel_mult": (1, 1.5, 2)},
        {"resblock_updown": True, "channel_mult": (1, 2, 2), "attention_resolutions": (4,)},
        {"resblock_updown": True, "conv_resample": True, "use_scale_shift_norm": False},
        {"use_scale_shift_norm": False, "num_res_blocks": 3},
        {"channel_mult": (1,), "attention_resolutions": (1,)},
        {"channel_mult": (1, 1, 2, 2, 1), "attention_resolutions": (16, 8, 64)},
    ],
    ids=lambda config: ",".join(f"{name}={value}" for name, value in config.items()),
)
def test_equal_to_the_plain_network_in_every_shape(config):
    assert_equal_to_the_plain_network(config)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(st.data())
def test_equal_to_the_plain_network_in_any_shape(data):
    levels = data.draw(st.integers(1, 3), "levels")
    factors = [2**level for level in range(levels)]
    heads = data.draw(st.sampled_from([{"num_heads": n} for n in (1, 2, 8)] + [{"num_head_channels": 4}]))
    flags = ("use_scale_shift_norm", "conv_resample", "resblock_updown", "use_new_attention_order")
    assert_equal_to_the_plain_network(
        {
            "channel_mult": tuple(data.draw(st.sampled_from([1, 1.5, 2])) for _ in factors),
            "attention_resolutions": tuple(data.draw(st.sets(st.sampled_from(factors)))),
            "num_res_blocks": data.draw(st.integers(1, 2)),
            "in_channels": data.draw(st.integers(1, 6)),
            **{name: data.draw(st.booleans(), name) for name in flags},
            **heads,
        },
        size=8,
    )


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


@pytest.mark.parametrize(("name", "channels", "condition_dim"), [("rxrx1", 6, 200), ("cpg0000", 5, 1224)])
def test_presets_of_other_data_sets(name, channels, condition_dim):
    unet = CellFluxUNet2DModel.from_preset(name, model_channels=32, num_res_blocks=1)
    assert len(unet.config.channel_names) == unet.config.in_channels == channels
    velocity = unet(torch.zeros(1, channels, 8, 8), 0.5, torch.zeros(1, condition_dim)).sample
    assert velocity.shape == (1, channels, 8, 8)
    assert CellFluxUNet2DModel.from_preset(name, condition_dim=7, model_channels=32).config.condition_dim == 7


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
        ({"num_heads_upsample": 3}, "num_heads 3 does not divide"),
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


# --- memory and speed ---


def test_a_batch_in_slices_is_the_whole_batch(monkeypatch):
    unet = tiny()
    sample, time, condition = (torch.cat([x, x.flip(0)])[:7] for x in draw_inputs())
    mask = torch.arange(7) % 2 == 0
    sizes = []
    unet.conv_in.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    with torch.no_grad():
        whole = [unet(sample, time, *rest).sample for rest in ((), (condition,), (condition, mask))]
        assert sizes == [7, 7, 7]
        monkeypatch.setattr(unet_module, "SLICE_BYTES", 3 * 16 * 8 * 8 * 4)  # three feature maps
        sliced = [unet(sample, time, *rest).sample for rest in ((), (condition,), (condition, mask))]
        assert sizes[3:] == [2, 2, 2, 1] * 3, "the largest power of two that fits"
    # Kernels may round differently for batches of another size; a slice in the wrong place is wrong by about 1.
    torch.testing.assert_close(sliced, whole, rtol=1e-4, atol=1e-4)
    sizes.clear()
    unet(sample, time, condition)
    assert sizes == [7], "training needs all feature maps anyway"


@pytest.mark.parametrize("overrides", [{}, {"use_scale_shift_norm": False, "conv_resample": True}], ids=str)
def test_inference_overwrites_none_of_its_inputs(overrides, inputs):
    unet = tiny(attention_resolutions=(1, 2), **overrides)
    copies = [x.clone() for x in inputs]
    expected = unet(*inputs).sample.detach()
    with torch.no_grad():
        torch.testing.assert_close(unet(*inputs).sample, expected)
    for value, copy in zip(inputs, copies, strict=True):
        torch.testing.assert_close(value, copy, rtol=0, atol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("num_heads", [1, 4])
def test_attention_never_holds_its_weights_in_full(memory_format, num_heads, inputs):
    unet = tiny(num_heads=num_heads).to(memory_format=memory_format)
    with torch.no_grad(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises where that kernel cannot run
        fused = unet(*inputs).sample
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        torch.testing.assert_close(unet(*inputs).sample, fused)


def test_channels_last_is_kept_through_the_network(inputs):
    unet = tiny(channel_mult=(1, 2), attention_resolutions=(1, 2), patch_size=1, conv_resample=True)
    expected = unet(*inputs).sample
    last = unet.to(memory_format=torch.channels_last)
    layouts = {}
    for name, module in last.named_modules():
        if isinstance(module, unet_module.UNetLayer | unet_module.Downsample | unet_module.Upsample):
            module.register_forward_hook(
                lambda module, _, output, name=name: layouts.update(
                    {name: output.is_contiguous(memory_format=torch.channels_last)}
                )
            )
    with torch.no_grad():
        velocity = last(inputs[0].contiguous(memory_format=torch.channels_last), *inputs[1:]).sample
    assert len(layouts) == 10
    assert all(layouts.values()), layouts
    torch.testing.assert_close(velocity, expected, atol=1e-4, rtol=1e-4)


def test_the_sum_of_the_residual_branches_is_not_rounded(inputs):
    unet = tiny(channel_mult=(1, 2), num_res_blocks=3, prediction_type="velocity")
    streams, branches = [], []
    for module in unet.modules():
        if isinstance(module, unet_module.UNetLayer):
            module.register_forward_hook(lambda _, __, output: streams.append(output.dtype))
            module.resnet.conv1.register_forward_hook(lambda _, __, output: branches.append(output.dtype))
    with torch.no_grad():
        expected = unet(*inputs).sample
        streams.clear(), branches.clear()
        with torch.autocast("cpu", torch.bfloat16):
            velocity = unet(*inputs).sample
    assert set(streams) == {torch.float32}
    assert set(branches) == {torch.bfloat16}
    error = (velocity - expected).square().mean().sqrt() / (expected.max() - expected.min())
    assert 0 < error < 3e-3


@pytest.mark.slow
def test_compiles_as_one_graph(inputs):
    unet = tiny(attention_resolutions=(1, 2), num_heads=2)
    sample, time, condition = inputs
    mask = torch.tensor([True, False, True, False])
    compiled = torch.compile(unet, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(*inputs).sample, unet(*inputs).sample)
    torch.testing.assert_close(compiled(sample, time, condition, mask).sample, unet(*inputs, mask).sample)


# --- the condition ---


@pytest.mark.parametrize("norm", unet_module.CONDITION_NORMS)
def test_a_normalized_condition_keeps_signs_and_order(norm):
    counts = torch.tensor([[0.0, 1.0, 15.0, -2.0], [0.0, 0.0, 0.0, 0.0]])
    normalized = normalized_condition(counts, norm)
    torch.testing.assert_close(normalized[1], torch.zeros(4))
    zero, one, many, negative = normalized[0]
    assert negative < zero == 0 < one < many
    assert ("rms" in norm) == bool((normalized[0].square().mean() - 1).abs() < 1e-6)
    if "log1p" in norm:
        torch.testing.assert_close(many / one, torch.tensor(4.0))


@pytest.mark.parametrize("norm", unet_module.CONDITION_NORMS)
def test_a_dose_is_not_normalized_and_does_not_change_its_compound(norm, inputs):
    counts = torch.tensor([[0.0, 1.0, 15.0], [2.0, 0.0, 1.0]])
    dose = torch.tensor([[-2.0], [1.5]])
    normalized = normalized_condition(torch.cat([counts, dose], dim=1), norm, dose_dim=1)
    torch.testing.assert_close(normalized[:, 3:], dose)
    torch.testing.assert_close(normalized[:, :3], normalized_condition(counts, norm))
    sample, time, condition = inputs
    unet = tiny(condition_norm=norm, dose_dim=1)
    other_dose = condition.clone()
    other_dose[:, -1] += 1
    with torch.no_grad():
        assert not torch.allclose(unet(sample, time, condition).sample, unet(sample, time, other_dose).sample)


def test_the_network_normalizes_its_condition(inputs):
    sample, time, condition = inputs
    counts = condition.abs().mul(5).round()
    raw = tiny()
    for norm in unet_module.CONDITION_NORMS:
        unet = tiny(condition_norm=norm)
        unet.load_state_dict(raw.state_dict())
        assert unet.config.condition_norm == norm
        with torch.no_grad():
            expected = raw(sample, time, normalized_condition(counts, norm)).sample
            torch.testing.assert_close(unet(sample, time, counts).sample, expected)
    with pytest.raises(ValueError, match=r"dose_dim 9 must be in .* which is 8"):
        tiny(dose_dim=9)
    with pytest.raises(ValueError, match="unknown condition_norm 'log'; did you mean 'log1p'"):
        tiny(condition_norm="log")
