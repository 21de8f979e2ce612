"""Training and sampling compute what they computed before the flow had a module of its own: values recorded then."""

import itertools
import json

import pytest
import torch
import yaml

from cellfluxrl.commands.cli import main

SETTINGS = {
    "image_size": 16,
    "simulated_cells_per_moa": 8,
    "cpu": True,
    "time_logit_mean": 0.5,
    "pretrain": {"preset": "tiny", "train_batch_size": 8, "learning_rate": 3e-3, "lr_warmup_steps": 2, "log_steps": 1},
    "moa": {"max_train_steps": 10, "train_batch_size": 16, "width": 4},
    "rl": {
        "controls_per_condition": 2,
        "rollouts_per_control": 4,
        "num_inference_steps": 2,
        "max_train_steps": 2,
        "learning_rate": 1e-3,
        "lr_warmup_steps": 2,
        "sample_steps": 0,
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a script, and return the given values of each line of its log."""
    folder, numbers = tmp_path_factory.mktemp("recorded"), itertools.count()
    config = folder / "settings.yaml"
    config.write_text(yaml.safe_dump(SETTINGS))

    def start(script, key, *options, name=None):
        output_dir = folder / (name or f"run{next(numbers)}")
        assert main([script, "--config", str(config), "--output_dir", str(output_dir), *options]) == 0
        rows = [json.loads(line) for line in (output_dir / "log.jsonl").read_text().splitlines()]
        return [row[key] for row in rows if key in row]

    start("pretrain", "loss", "--max_train_steps", "12", name="base")
    start("moa", "loss", name="moa")
    start.inputs = ("--pretrained_model_name_or_path", str(folder / "base"), "--classifier", str(folder / "moa"))
    return start


@pytest.mark.parametrize(
    ("options", "losses"),
    [
        ((), [0.378173, 0.417625, 0.316797, 0.276636]),
        (
            ("--control_gain", "0.2", "--source_noise_detail", "0.3", "--source_noise_probability", "0.5"),
            [0.37825, 0.418453, 0.316057, 0.273054],
        ),
        (("--source_noise", "white", "--condition_dropout", "0.5"), [0.378246, 0.425089, 0.316561, 0.285237]),
    ],
    ids=["default", "fine noise and brightness", "white noise"],
)
def test_pretraining(run, options, losses):
    assert run("pretrain", "loss", "--max_train_steps", "6", *options)[2:] == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "losses"),
    [
        ("", [0.137678, 0.251115]),
        ("--objective dpo --group_by condition --time_sampling discrete", [0.00482, 0.04896]),
        (
            "--objective rwr --reward_form deviation --reward_weights containment=1,roundness=2 "
            "--advantage_std per_reward",
            [0.154129, 0.220798],
        ),
    ],
    ids=["nft", "dpo", "rwr"],
)
def test_post_training(run, options, losses):
    assert run("rl", "loss", *run.inputs, *options.split()) == pytest.approx(losses, rel=1e-3)


@pytest.mark.parametrize(
    ("options", "mean"),
    [
        ({}, [-0.148232, -0.161003, -0.171682, 0.45878]),
        (
            {"guidance_interval": (0.2, 0.8), "trajectory_times": [0.1, 0.7]},
            [-0.166536, -0.188581, -0.188455, 0.416577],
        ),
        ({"direction": "reverse"}, [-0.262415, -0.368713, -0.282933, 0.944441]),
        ({"best_of_n": 8, "search": "steer"}, [-0.158818, -0.13166, -0.173677, 0.472748]),
        ({"best_of_n": 8, "search": "noise"}, [-0.158818, -0.163934, -0.154717, 0.457408]),
    ],
    ids=["plain", "interval", "reverse", "steer", "noise"],
)
def test_sampling(pipeline, controls, options, mean):
    generator = torch.Generator().manual_seed(3)
    images = pipeline(
        controls, compound="taxol", num_inference_steps=4, generator=generator, output_type="pt", **options
    ).images
    found = [*images.mean(dim=(1, 2, 3)).tolist(), float(images.std())]
    assert found == pytest.approx(mean, abs=1e-4)
