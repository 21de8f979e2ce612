"""Pictures of fixed controls and noise."""

import pytest
import torch
from PIL import Image

from cellfluxrl.training.samples import save_sample_grid


@pytest.fixture
def inputs(pipeline, controls):
    noise = torch.randn(2, *controls.shape, generator=torch.Generator().manual_seed(0))
    conditions = pipeline.encoder.encode(["taxol", "nocodazole", "cytochalasin B"])
    return {
        "model": pipeline.unet,
        "scheduler": pipeline.scheduler,
        "controls": controls,
        "conditions": conditions,
        "noise": noise,
        "num_inference_steps": 2,
    }


def test_the_same_inputs_give_the_same_picture_whatever_the_random_state(inputs, tmp_path):
    torch.manual_seed(1)
    save_sample_grid(**inputs, path=tmp_path / "first" / "a.png")
    torch.manual_seed(2)
    inputs["model"].train()
    before = torch.get_rng_state()
    save_sample_grid(**inputs, path=tmp_path / "b.png")
    assert torch.equal(torch.get_rng_state(), before)
    assert inputs["model"].training
    inputs["model"].eval()
    assert (tmp_path / "first" / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_there_is_a_row_of_controls_and_one_for_each_row_of_noise(inputs, tmp_path):
    two = save_sample_grid(**inputs, path=tmp_path / "two.png")
    one = save_sample_grid(**inputs | {"noise": inputs["noise"][0]}, path=tmp_path / "one.png")
    height = 3 * 16 + 3  # pixels of a row: enlarged three times, and a separator
    assert two.height == 3 * height + 3
    assert one.height == 2 * height + 3
    with Image.open(tmp_path / "two.png") as saved:
        assert saved.size == two.size


@pytest.mark.parametrize("changed", ["noise", "conditions", "controls"])
def test_what_is_sampled_depends_on_every_input(inputs, tmp_path, changed):
    save_sample_grid(**inputs, path=tmp_path / "a.png")
    save_sample_grid(**inputs | {changed: inputs[changed].flip(-2)}, path=tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_noise_of_other_controls_is_refused(inputs, tmp_path):
    with pytest.raises(ValueError, match=r"noise must be of shape \(3, 3, 16, 16\) a row, got \(2, 3, 16, 16\)"):
        save_sample_grid(**inputs | {"noise": inputs["noise"][:, :2]}, path=tmp_path / "a.png")
