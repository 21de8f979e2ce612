"""A network that is conditioned on the dose, from pretraining through post-training to generation."""

import pytest
import torch
import yaml

from cellfluxrl import CellFluxPipeline, CellFluxRLPipeline
from cellfluxrl.commands.cli import main

SETTINGS = {
    "image_size": 16,
    "simulated_cells_per_moa": 8,
    "cpu": True,
    "pretrain": {"preset": "tiny", "max_train_steps": 2, "train_batch_size": 8, "condition_dropout": 0.0},
    "moa": {"max_train_steps": 2, "train_batch_size": 8, "width": 4},
    "rl": {
        "conditions_per_step": 1,
        "controls_per_condition": 2,
        "rollouts_per_control": 2,
        "num_inference_steps": 1,
        "max_train_steps": 1,
    },
}


def test_the_dose_goes_all_the_way(tmp_path):
    config = tmp_path / "settings.yaml"
    config.write_text(yaml.safe_dump(SETTINGS))
    base, classifier, post_trained = (str(tmp_path / name) for name in ("base", "moa", "rl"))
    shared = ["--config", str(config), "--output_dir"]
    options = ["--log_dose", "--condition_norm", "unit_rms"]
    assert main(["pretrain", *shared, base, *options]) == 0
    assert main(["moa", *shared, classifier]) == 0
    inputs = ["--pretrained_model_name_or_path", base, "--classifier", classifier]
    assert main(["rl", *shared, post_trained, *inputs]) == 0

    pipe = CellFluxRLPipeline.from_pretrained(post_trained)
    pipe.set_progress_bar_config(disable=True)
    config = pipe.unet.config
    assert (config.condition_dim, config.dose_dim, config.condition_norm) == (1025, 1, "unit_rms")
    control = torch.zeros(1, 3, 16, 16)
    arguments = {"compound": "taxol", "num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "pt"}
    low, high = (pipe(control, concentration=dose, **arguments).images for dose in (0.01, 10.0))
    assert low.shape == high.shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match="this network is conditioned on the concentration: give concentration="):
        pipe(control, **arguments)


def test_a_network_that_always_saw_a_compound_refuses_guidance(tmp_path):
    config = tmp_path / "settings.yaml"
    config.write_text(yaml.safe_dump(SETTINGS))
    assert main(["pretrain", "--config", str(config), "--output_dir", str(tmp_path / "base")]) == 0
    pipe = CellFluxPipeline.from_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match=r"guidance_scale=1.2 needs a network that was trained both with and without"):
        pipe(torch.zeros(1, 3, 16, 16), compound="taxol")
