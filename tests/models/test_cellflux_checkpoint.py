"""Checkpoints of the original: reading them, and `cellfluxrl convert`."""

import argparse
import json
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import TINY_ORIGINAL, PlainUNet, original_state_dict, randomized, tiny
from networks import draw_inputs as draw

from cellfluxrl.commands.cli import main
from cellfluxrl.models.cellflux_checkpoint import infer_config, original_names, recognized_preset
from cellfluxrl.models.unet import CellFluxUNet2DModel
from cellfluxrl.models.unet_presets import preset_config
from cellfluxrl.pipelines.cellflux import CellFluxPipeline


@pytest.fixture
def inputs():
    return draw()


# --- what network the weights tell of ---


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


# --- checkpoints of the original ---


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
    with pytest.raises(ValueError, match=r"refused to read .*asks for '[\w.]+'.*nothing in it was executed") as raised:
        CellFluxUNet2DModel.from_cellflux_checkpoint(path)
    assert "weights_only" not in str(raised.value)
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
    with pytest.raises(ValueError, match="unknown preset"):
        load(state_dict, "bbbc")


# --- cellfluxrl convert ---


def narrow_original(seed: int = 0, **overrides) -> torch.nn.Module:
    config = {"model_channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1, **overrides}
    return randomized(PlainUNet(**config), seed=seed)


def save_published(path: Path, raw: torch.nn.Module, averaged: torch.nn.Module) -> Path:
    """Write what the original's training writes: network and average in one module, and the command line."""
    module = {f"model.{name}": tensor for name, tensor in raw.state_dict().items()}
    module["num_updates"] = torch.tensor(3)
    module |= {f"shadow_params.{number}": tensor for number, tensor in enumerate(averaged.state_dict().values())}
    arguments = argparse.Namespace(dataset="bbbc021", lr=1e-4, use_ema=True, edm_schedule=True, resume="", gpu=0)
    torch.save({"model": module, "optimizer": {"state": {}, "param_groups": []}, "epoch": 99, "args": arguments}, path)
    return path


def convert(*arguments: object) -> int:
    return main(["convert", *map(str, arguments)])


@pytest.mark.parametrize("use_raw_weights", [False, True])
def test_a_published_checkpoint_becomes_a_pipeline(use_raw_weights, tmp_path, capsys):
    raw, averaged = narrow_original(1), narrow_original(2)
    path = save_published(tmp_path / "checkpoint.pth", raw, averaged)
    assert convert(path, tmp_path / "pipeline", *(["--use_raw_weights"] if use_raw_weights else [])) == 0
    printed = capsys.readouterr().out
    assert ("raw weights, as asked" if use_raw_weights else "moving average (EMA)") in printed
    assert "none of the presets" in printed
    assert "actin, tubulin, dna" in printed

    pipe = CellFluxPipeline.from_pretrained(tmp_path / "pipeline")
    assert not [file for file in (tmp_path / "pipeline").rglob("*") if file.suffix in (".bin", ".pth", ".pkl", ".pt")]
    assert pipe.channel_names == ("actin", "tubulin", "dna")
    assert len(pipe.encoder.names) == 35
    scheduler = pipe.scheduler.config
    assert (scheduler.solver, scheduler.time_grid, scheduler.source_noise) == ("heun", "edm", "white")
    sample, t, _ = draw()
    condition = pipe.encoder.encode(["taxol"] * 4)
    with torch.no_grad():
        expected = (raw if use_raw_weights else averaged)(sample, t, condition)
        torch.testing.assert_close(pipe.unet(sample, t, condition).sample, expected, atol=1e-4, rtol=1e-4)
    pipe.set_progress_bar_config(disable=True)
    images = pipe(sample[:1].clamp(-1, 1), compound="taxol", num_inference_steps=2, output_type="pt").images
    assert images.shape == (1, 3, 16, 16)
    assert torch.isfinite(images).all()


@pytest.mark.parametrize("name", ["bbbc021", "rxrx1", "cpg0000"])
def test_presets_are_recognized_by_their_shapes(name):
    preset = preset_config(name)
    del preset["sample_size"], preset["dropout"]
    preset.pop("channel_names", None)
    with torch.device("meta"):
        weights = PlainUNet(**preset).state_dict()
    assert recognized_preset(infer_config(weights)) == name
    weights["mol_embed_transform.weight"] = torch.empty(512, 77, device="meta")
    assert recognized_preset(infer_config(weights)) is None


def test_conditions_that_are_not_fingerprints_get_no_encoder(tmp_path, capsys):
    plain = narrow_original(in_channels=6, out_channels=6, condition_dim=200)
    torch.save(plain.state_dict(), tmp_path / "checkpoint.pth")
    names = ("nuclei", "er", "actin", "nucleoli", "mito", "golgi")
    assert convert(tmp_path / "checkpoint.pth", tmp_path / "out", "--channel_names", *names, "--num_heads", 4) == 0
    printed = capsys.readouterr().out
    assert "network and scheduler only: its conditions, 200 wide" in printed
    assert "holds no moving average" in printed
    unet = CellFluxUNet2DModel.from_pretrained(tmp_path / "out", subfolder="unet")
    assert tuple(unet.config.channel_names) == names
    assert unet.config.num_heads == 4
    assert json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())["solver"] == "heun"


def test_convert_says_what_is_wrong(tmp_path, capsys):
    plain = narrow_original()
    good = save_published(tmp_path / "good.pth", plain, plain)
    state_dict = plain.state_dict()

    def refused(content: object, *options: object) -> str:
        path = tmp_path / "bad.pth"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            torch.save(content, path)
        output_dir = tmp_path / "never"
        assert convert(path, output_dir, *options) == 2
        assert not output_dir.exists()
        message = capsys.readouterr().err
        assert message.startswith("cellfluxrl: error: ")
        assert message.count("\n") == 1
        return message

    assert "not a complete checkpoint" in refused(good.read_bytes()[:5000])
    assert "not a complete checkpoint" in refused(b"")
    assert "holds a list" in refused([1, 2])
    assert "'time_embed.0.weight' is missing" in refused({"fc.weight": torch.zeros(1)})
    assert "lacks 1 weights" in refused({k: v for k, v in state_dict.items() if k != "out.2.bias"})
    assert "1 weights too many: extra" in refused({**state_dict, "extra": torch.zeros(1)})
    assert "hold NaN or infinity, out.2.bias" in refused({**state_dict, "out.2.bias": torch.full((3,), torch.nan)})
    assert "names 2 channels" in refused(state_dict, "--channel_names", "dna", "actin")
    assert "num_heads 5 does not divide" in refused(state_dict, "--num_heads", 5)

    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "mine.txt").write_text("keep")
    assert convert(good, occupied) == 2
    assert "not an empty folder" in capsys.readouterr().err
    assert [file.name for file in occupied.iterdir()] == ["mine.txt"]
    assert convert(tmp_path / "nowhere.pth", tmp_path / "never") == 2
    assert "nowhere.pth" in capsys.readouterr().err


def test_numbered_averages_need_the_order_that_safetensors_loses(tmp_path):
    weights = original_state_dict(tiny(**TINY_ORIGINAL))
    path = tmp_path / "checkpoint.safetensors"
    safetensors.torch.save_file(ema_inside(weights, {k: v.clone() for k, v in weights.items()})["model"], path)
    with pytest.raises(ValueError, match="does not keep the order"):
        CellFluxUNet2DModel.from_cellflux_checkpoint(path)
    CellFluxUNet2DModel.from_cellflux_checkpoint(path, {"norm_num_groups": 8}, use_ema=False)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.data())
def test_damaged_files_are_refused(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("damaged")
    path = folder / f"checkpoint{data.draw(st.sampled_from(['.pth', '.safetensors']))}"
    torch.save({"model": {"weight": torch.zeros(4)}}, folder / "whole.pth", _use_new_zipfile_serialization=False)
    whole = (folder / "whole.pth").read_bytes()
    content = data.draw(st.binary(max_size=64) | st.integers(0, len(whole) - 1).map(lambda end: whole[:end]))
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"refused to read|expected a state dict|not a CellFlux network"):
        CellFluxUNet2DModel.from_cellflux_checkpoint(path)
