"""Selections, searches, what they cost and how much of them is in memory at once."""

import logging

import pytest
import torch

from cellfluxrl import CellFluxRLPipeline, Reward, RewardSuite
from cellfluxrl.pipelines import cellflux_rl
from cellfluxrl.pipelines.selection import StreamingMatch, select_match

TAXOL_MOA = "Microtubule stabilizers"
IMAGE_BYTES = 4 * 3 * 16 * 16
WAYS = [{}, {"search": "steer"}, {"search": "noise"}]


@pytest.fixture
def three_at_once(monkeypatch):
    """At most three candidates are in memory."""
    monkeypatch.setattr(cellflux_rl, "CANDIDATE_BYTES", 3 * IMAGE_BYTES)


@pytest.fixture
def evaluations(pipeline, monkeypatch):
    """Counts what the network is given, image by image."""
    counted = []
    forward = pipeline.unet.forward
    monkeypatch.setattr(pipeline.unet, "forward", lambda x, *a, **k: (counted.append(len(x)), forward(x, *a, **k))[1])
    return counted


def assert_same(ours, theirs):
    assert torch.equal(ours.images, theirs.images)
    assert torch.equal(ours.selected, theirs.selected)
    assert torch.equal(ours.within_range, theirs.within_range)
    assert all(torch.equal(ours.rewards[name], theirs.rewards[name]) for name in theirs.rewards)


# --- by which reward ---


def test_the_best_by_one_reward_is_highest_in_that(generate):
    every = generate(num_images_per_control=4).rewards
    for name in ("moa", "nucleus_size", "combined"):
        output = generate(best_of_n=4, selection_reward=name)
        torch.testing.assert_close(output.rewards[name], every[name].view(3, 4).max(dim=1).values)


# --- within the range of real cells ---


@pytest.fixture
def ranges(suite, monkeypatch):
    """Makes candidates lie as far outside of the real range as one is told."""

    def outside(*distances):
        values = torch.tensor(distances)
        monkeypatch.setattr(suite, "outside_real_range", lambda measured, moa: values[: len(moa)])

    return outside


def test_rejection_returns_the_first_inside_and_says_where_there_is_none(generate, ranges, caplog):
    ranges(1.0, 0.0, 0.0, 3.0, 2.0, 4.0, 0.0, 0.0, 1.0)
    output = generate(best_of_n=3, selection="reject")
    assert output.selected.tolist() == [1, 1, 0]
    assert output.within_range.tolist() == [True, False, True]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning.startswith("for 1 of 3 images none of 3 candidates is within the range of real cells")


def test_rejection_warns_once_for_all_groups_and_not_at_all_if_there_is_no_need(
    generate, ranges, three_at_once, caplog
):
    ranges(1.0, 2.0, 3.0)
    assert generate(best_of_n=3, selection="reject").selected.tolist() == [0, 0, 0]
    assert [record.getMessage()[:11] for record in caplog.records] == ["for 3 of 3 "]
    caplog.clear()
    ranges(1.0, 0.0, 3.0)
    generate(best_of_n=3, selection="reject")
    assert not caplog.records


def test_every_scored_image_says_whether_it_is_within_the_range(generate, suite):
    output = generate(num_images_per_control=2)
    moas = [TAXOL_MOA] * 6
    outside = suite.outside_real_range(suite.measure(output.images, moa=moas), moas)
    assert torch.equal(output.within_range, outside == 0)
    assert generate(smiles="CCO").within_range is None


# --- in groups ---


@pytest.mark.parametrize("selection", ["best", "reject"])
def test_groups_change_nothing_in_a_choice_for_each_image(generate, selection, monkeypatch):
    together = generate(num_images_per_control=2, best_of_n=3, selection=selection, batch_size=3)
    monkeypatch.setattr(cellflux_rl, "CANDIDATE_BYTES", 3 * IMAGE_BYTES)
    apart = generate(num_images_per_control=2, best_of_n=3, selection=selection, batch_size=3)
    assert_same(apart, together)


@pytest.mark.parametrize("way", WAYS)
def test_no_more_candidates_are_scored_at_once_than_fit(generate, suite, three_at_once, monkeypatch, way):
    counted = []
    measure = suite.measure
    monkeypatch.setattr(suite, "measure", lambda images, **of: (counted.append(len(images)), measure(images, **of))[1])
    generate(num_images_per_control=2, best_of_n=3, **way)
    assert max(counted) <= 3
    assert sum(counted) >= 18


def appearance(suite, images):
    moas = [TAXOL_MOA] * len(images)
    return suite.appearance(suite.measure(images, moa=moas), moas)


def test_matching_in_groups_remembers_the_images_before(generate, suite, three_at_once):
    every = generate(num_images_per_control=6, batch_size=3)
    vectors = appearance(suite, every.images).view(6, 3, -1)
    reference = suite.real_appearance(TAXOL_MOA)
    match, expected = StreamingMatch(), []
    for own in vectors:
        expected += match.select(own[None], reference, TAXOL_MOA).tolist()
    output = generate(num_images_per_control=2, best_of_n=3, selection="match", batch_size=3)
    assert output.selected.tolist() == expected


def test_a_streaming_match_goes_on_from_call_to_call(generate, suite):
    match = StreamingMatch()
    first = generate(best_of_n=4, selection=match)
    second = generate(best_of_n=4, selection=match, generator=torch.Generator().manual_seed(1))
    every = generate(num_images_per_control=4, generator=torch.Generator().manual_seed(1))
    vectors = appearance(suite, every.images).view(3, 4, -1)
    before = appearance(suite, first.images)
    reference = suite.real_appearance(TAXOL_MOA)
    assert torch.equal(second.selected, select_match(vectors, reference, before=before))


def test_an_interruption_ends_all_groups(generate, three_at_once):
    seen = []

    def stop(pipe, evaluation, t, tensors):
        seen.append(float(t))
        pipe._interrupt = True
        return {}

    output = generate(best_of_n=3, callback_on_step_end=stop)
    assert len(seen) == 1
    assert output.images.shape == (3, 3, 16, 16)
    assert output.num_function_evaluations is None


# --- searches ---


@pytest.mark.parametrize("selection", ["best", "match", "reject"])
@pytest.mark.parametrize("way", WAYS[1:])
def test_a_search_returns_what_its_images_score(generate, suite, way, selection):
    output = generate(num_images_per_control=2, best_of_n=8, selection=selection, **way)
    assert output.images.shape == (6, 3, 16, 16)
    assert output.selected.shape == output.within_range.shape == (6,)
    expected = suite(output.images, moa=[TAXOL_MOA] * 6)
    for name, values in output.rewards.items():
        torch.testing.assert_close(values, expected[name])


@pytest.mark.parametrize("way", WAYS[1:])
def test_the_same_generator_finds_the_same(generate, way):
    first, again = (generate(best_of_n=8, **way) for _ in range(2))
    assert_same(again, first)
    other = generate(best_of_n=8, generator=torch.Generator().manual_seed(9), **way)
    assert not torch.equal(other.images, first.images)


@pytest.mark.parametrize("way", WAYS[1:])
def test_with_a_list_of_generators_a_search_does_not_depend_on_the_batch(generate, controls, generators, way):
    together = generate(best_of_n=8, generator=generators(*range(24)), **way)
    alone = generate(controls[1:2], best_of_n=8, generator=generators(*range(8, 16)), **way)
    assert torch.equal(together.selected[1:2], alone.selected)
    torch.testing.assert_close(together.images[1:2], alone.images, rtol=0, atol=1e-4)


def test_steering_with_strength_0_is_no_search(generate):
    steered = generate(best_of_n=4, search="steer", search_kwargs={"strength": 0.0})
    plain = generate(best_of_n=4)
    assert torch.equal(steered.selected, plain.selected)
    torch.testing.assert_close(steered.images, plain.images, rtol=0, atol=1e-4)


def test_a_noise_search_of_one_round_is_no_search(generate):
    searched = generate(best_of_n=8, search="noise", search_kwargs={"num_rounds": 1})
    assert_same(searched, generate(best_of_n=8))


@pytest.fixture(scope="module")
def bright(simulated_cells, pipeline, suite):
    """A pipeline whose only reward is brightness: a network with random weights makes no nuclei to measure."""
    reward = Reward("brightness", score=lambda seen: seen.images.mean(dim=(1, 2, 3)))
    pipe = CellFluxRLPipeline(
        pipeline.unet,
        pipeline.scheduler,
        pipeline.encoder,
        RewardSuite.fit(simulated_cells["train"], suite.classifier, rewards=[reward]),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_the_searches_find_more_than_as_many_independent_samples(generate, bright):
    settings = {"pipe": bright, "best_of_n": 32, "num_images_per_control": 2, "num_inference_steps": 4}
    plain, steered, searched = (
        generate(**settings, **way).rewards["brightness"].mean()
        for way in ({}, {"search": "steer", "search_kwargs": {"strength": 300.0}}, {"search": "noise"})
    )
    assert steered > plain
    assert searched > plain


# --- what it costs ---


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("selection", ["best", "match", "reject"])
def test_the_evaluations_that_are_reported_were_made(generate, evaluations, way, selection):
    output = generate(best_of_n=8, selection=selection, guidance_scale=1.5, num_inference_steps=2, **way)
    assert output.num_function_evaluations == sum(evaluations) // 3 == 8 * 2 * 2 * 2


@pytest.mark.parametrize("way", WAYS)
def test_guidance_counts_only_where_it_is_applied(generate, pipeline, evaluations, way):
    settings = {"guidance_scale": 1.5, "guidance_interval": (0.4, 0.8), "num_inference_steps": 4}
    output = generate(best_of_n=2, **settings, **way)
    assert output.num_function_evaluations == sum(evaluations) // 3 == 2 * pipeline.evaluations_of(**settings)


def test_one_sample_says_what_it_costs(generate, pipeline, evaluations):
    output = generate(guidance_scale=1)
    assert output.num_function_evaluations == sum(evaluations) // 3 == pipeline.evaluations_of(2, guidance_scale=1)


# --- refusals ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"best_of_n": 2, "selection": "rejct"}, r"unknown selection 'rejct'; did you mean 'reject'\?"),
        ({"best_of_n": 2, "search": "steering"}, r"unknown search 'steering'; did you mean 'steer'\?"),
        ({"best_of_n": 2, "selection_reward": "round"}, r"unknown selection_reward 'round'; did you mean 'roundness'"),
        ({"best_of_n": 2, "selection": "match", "selection_reward": "moa"}, "'moa' is for selection='best' or a sea"),
        ({"selection_reward": "moa"}, "'moa' is for selection='best' or a search, with best_of_n > 1"),
        ({"search": "steer"}, "search='steer' needs several candidates: pass best_of_n"),
        ({"best_of_n": 2, "search_kwargs": {"angle": 0.5}}, "needs a search, one of"),
        (
            {"best_of_n": 2, "search": "steer", "search_kwargs": {"strenght": 1}},
            r"unknown argument of search 'steer': 'strenght'; did you mean 'strength'\?",
        ),
        ({"best_of_n": 2, "search": "noise", "search_kwargs": {"angle": 7}}, r"angle must be in \(0, pi / 2\], got 7"),
        ({"best_of_n": 2, "search": "steer", "num_inference_steps": 1}, "steering needs at least two steps"),
        ({"best_of_n": 2, "search": "steer", "return_trajectory": True}, "'steer' does not take return_trajectory"),
        ({"best_of_n": 2, "search": "noise", "direction": "reverse"}, "'noise' does not take direction"),
        ({"best_of_n": 2, "direction": "reverse"}, "the reverse direction has no noise"),
        ({"best_of_n": 2, "batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_choices_that_do_not_fit_are_refused(generate, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(**arguments)


def test_a_search_needs_rewards(generate, pipeline):
    without = CellFluxRLPipeline(pipeline.unet, pipeline.scheduler, pipeline.encoder)
    with pytest.raises(ValueError, match="best_of_n=2 needs rewards to choose by, and this pipeline has none"):
        generate(pipe=without, best_of_n=2, search="steer")
