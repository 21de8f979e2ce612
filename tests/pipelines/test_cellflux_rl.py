"""Scoring and choosing among several samples."""

import shutil

import pytest
import torch

from cellfluxrl import CellFluxPipeline, CellFluxRLPipeline
from cellfluxrl.data.compounds import CONTROL
from cellfluxrl.pipelines.selection import select_match

TAXOL_MOA = "Microtubule stabilizers"
NAMES = {
    "moa",
    "containment",
    "roundness",
    "nucleus_size",
    "cytoplasm_size",
    "nucleus_count",
    "cytoplasm_count",
    "combined",
}


@pytest.fixture
def without_rewards(pipeline):
    pipe = CellFluxRLPipeline(pipeline.unet, pipeline.scheduler, pipeline.encoder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# --- one sample ---


def test_without_a_choice_the_images_are_those_of_the_plain_pipeline(generate, pipeline):
    plain = CellFluxPipeline(pipeline.unet, pipeline.scheduler, pipeline.encoder)
    plain.set_progress_bar_config(disable=True)
    output = generate()
    assert torch.equal(output.images, generate(pipe=plain).images)
    assert output.selected is None


def test_bright_controls_are_not_rescaled_twice(generate, pipeline):
    bright = torch.full((1, 3, 16, 16), 200, dtype=torch.uint8)
    trajectory = generate(bright, return_trajectory=True).trajectory
    noise = pipeline.scheduler.sample_source_noise((1, 3, 16, 16), torch.Generator().manual_seed(0))
    torch.testing.assert_close(trajectory[0] - noise, torch.full((1, 3, 16, 16), 200 / 127.5 - 1))


def test_images_are_scored_for_the_mechanism_of_their_compound(generate, suite):
    compounds = ["taxol", "DMSO", "nocodazole"]
    output = generate(compound=compounds)
    expected = suite(output.images, moa=[TAXOL_MOA, CONTROL, "Microtubule destabilizers"])
    assert set(output.rewards) == NAMES
    for name, values in output.rewards.items():
        assert values.shape == (3,)
        assert torch.equal(values, expected[name])


def test_another_mechanism_can_be_expected(generate, suite):
    output = generate(moa="DNA damage")
    assert torch.equal(output.rewards["moa"], suite(output.images, moa=["DNA damage"] * 3)["moa"])


def test_a_smiles_is_scored_if_its_mechanism_is_told(generate):
    assert generate(smiles="CCO").rewards is None
    assert set(generate(smiles="CCO", moa=TAXOL_MOA).rewards) == NAMES


def test_without_rewards_images_are_generated_and_not_scored(generate, without_rewards):
    output = generate(pipe=without_rewards)
    assert output.rewards is None
    assert torch.equal(output.images, generate().images)


@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_every_output_type_comes_with_rewards(generate, kind):
    output = generate(output_type=kind, best_of_n=2)
    assert len(output.images) == 3
    assert torch.equal(output.rewards["combined"], generate(best_of_n=2).rewards["combined"])


# --- a choice ---


@pytest.fixture
def candidates(generate):
    """All samples that a choice of one in three among two images for each of three controls is made from."""
    return generate(num_images_per_control=6, return_trajectory=True)


@pytest.mark.parametrize("selection", ["best", "match"])
def test_selected_says_which_candidate_each_image_is(generate, candidates, selection):
    output = generate(num_images_per_control=2, best_of_n=3, selection=selection, return_trajectory=True)
    assert output.images.shape == (6, 3, 16, 16)
    assert output.selected.shape == (6,)
    rows = 3 * torch.arange(6) + output.selected
    assert torch.equal(output.images, candidates.images[rows])
    assert torch.equal(output.trajectory, candidates.trajectory[:, rows])
    for name, values in output.rewards.items():
        torch.testing.assert_close(values, candidates.rewards[name][rows])


def test_the_best_candidate_has_the_highest_combined_reward(generate, candidates):
    output = generate(num_images_per_control=2, best_of_n=3)
    highest = candidates.rewards["combined"].view(6, 3).max(dim=1)
    torch.testing.assert_close(output.rewards["combined"], highest.values)
    assert torch.equal(output.selected, highest.indices)


def test_matching_is_done_for_all_controls_of_a_mechanism_together(generate, suite, controls):
    compounds = ["taxol", "DMSO", "taxol"]
    moas = [TAXOL_MOA, CONTROL, TAXOL_MOA]
    every = generate(compound=compounds, num_images_per_control=4)
    repeated = [m for m in moas for _ in range(4)]
    vectors = suite.appearance(suite.measure(every.images, moa=repeated), repeated).view(3, 4, -1)
    selected = generate(compound=compounds, best_of_n=4, selection="match").selected
    for moa, rows in ((TAXOL_MOA, [0, 2]), (CONTROL, [1])):
        reference = suite.real_appearance(moa)
        assert torch.equal(selected[rows], select_match(vectors[rows], reference))


def test_with_a_list_of_generators_the_choice_does_not_depend_on_the_batch(generate, controls, generators):
    together = generate(best_of_n=2, generator=generators(0, 1, 2, 3, 4, 5))
    alone = generate(controls[1:2], best_of_n=2, generator=generators(2, 3))
    assert torch.equal(together.selected[1:2], alone.selected)
    torch.testing.assert_close(together.images[1:2], alone.images, rtol=0, atol=1e-4)


# --- saving and loading ---


def test_a_saved_pipeline_generates_chooses_and_scores_the_same(pipeline, generate, tmp_path):
    pipeline.save_pretrained(tmp_path)
    loaded = CellFluxRLPipeline.from_pretrained(tmp_path)
    ours, theirs = generate(best_of_n=2), generate(best_of_n=2, pipe=loaded)
    assert torch.equal(ours.images, theirs.images)
    assert torch.equal(ours.selected, theirs.selected)
    for name, values in ours.rewards.items():
        assert torch.equal(values, theirs.rewards[name])


def test_missing_rewards_are_named_with_the_way_out(pipeline, generate, tmp_path):
    pipeline.save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "rewards")
    with pytest.raises(FileNotFoundError, match=r"lacks \['rewards'\] .*; pass rewards=None to load without it"):
        CellFluxRLPipeline.from_pretrained(tmp_path)
    loaded = CellFluxRLPipeline.from_pretrained(tmp_path, rewards=None)
    assert loaded.rewards is None
    assert torch.equal(generate(pipe=loaded).images, generate().images)


def test_a_pipeline_without_rewards_can_be_saved_and_loaded(without_rewards, tmp_path):
    without_rewards.save_pretrained(tmp_path)
    assert CellFluxRLPipeline.from_pretrained(tmp_path).rewards is None


def test_rewards_can_be_given_when_loading(pipeline, without_rewards, suite, tmp_path):
    without_rewards.save_pretrained(tmp_path)
    assert CellFluxRLPipeline.from_pretrained(tmp_path, rewards=suite).rewards is suite


@pytest.mark.parametrize("component", ["unet", "scheduler", "encoder"])
def test_a_missing_component_that_is_needed_has_no_way_out(pipeline, tmp_path, component):
    pipeline.save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / component)
    with pytest.raises(FileNotFoundError, match=rf"lacks \['{component}'\] of its components \[[^]]*\]$"):
        CellFluxRLPipeline.from_pretrained(tmp_path)


# --- refusals ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"best_of_n": 0}, "best_of_n must be at least 1, got 0"),
        ({"best_of_n": 2, "selection": "bets"}, r"unknown selection 'bets'; did you mean 'best'\?"),
        ({"moa": "DNA damages"}, r"unknown MoA 'DNA damages'; did you mean 'DNA damage'\?"),
        ({"moa": ["DMSO"]}, "moa must be one, or one for each of 3 images; got 1"),
        ({"smiles": "CCO", "best_of_n": 2}, "best_of_n=2 needs the MoA to expect of 'CCO': pass moa="),
        ({"compound": "taxoll"}, r"unknown compound 'taxoll'; did you mean 'taxol'\?"),
        ({"compound": ["taxol"]}, "compound must be one, or one for each of 3 controls; got 1"),
        ({"compound": None, "best_of_n": 2}, "either a compound name or a SMILES"),
        ({"compound": "taxol", "smiles": "CCO"}, "either a compound name or a SMILES"),
        ({"concentration": 0.5}, "concentration=0.5: this network is not conditioned"),
        ({"output_type": "pill"}, "unknown output_type 'pill'"),
        ({"generator": [torch.Generator()] * 3, "best_of_n": 2}, "one for each of 6 images, got 3"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(generate, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(**arguments)


def test_a_choice_needs_rewards(generate, without_rewards):
    with pytest.raises(ValueError, match="best_of_n=2 needs rewards to choose by, and this pipeline has none"):
        generate(pipe=without_rewards, best_of_n=2)
