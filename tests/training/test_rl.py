"""Post-training of cell images: groups, times and weights of the task, what is refused, and what a run leaves."""

import copy
import json

import pytest
import torch
from accelerate import Accelerator

from cellfluxrl import CellFluxFlowMatchScheduler, CellFluxPipeline, CellFluxRLPipeline
from cellfluxrl.checkpoints import load_checkpoint
from cellfluxrl.data.pairs import ControlTreatedPairs
from cellfluxrl.seeding import seeded_generator
from cellfluxrl.training import rl
from cellfluxrl.training.cell_task import CellTask, parse_reward_weights
from cellfluxrl.training.common import conditions_of
from cellfluxrl.training.options import RLArguments
from cellfluxrl.training.plots import SECONDS, TRAINING_PANELS
from cellfluxrl.training.rl import arguments_at, check_fit, weights_of


def arguments(tmp_path, **changed):
    small = {
        "image_size": 16,
        "cpu": True,
        "output_dir": str(tmp_path / "run"),
        "conditions_per_step": 2,
        "controls_per_condition": 2,
        "rollouts_per_control": 3,
        "num_inference_steps": 1,
        "train_batch_size": 8,
        "max_train_steps": 2,
    }
    return RLArguments(**(small | changed))


@pytest.fixture
def task(simulated_cells, pipeline, suite, tmp_path):
    def make(**changed):
        pairs = ControlTreatedPairs(simulated_cells["train"])
        scheduler = CellFluxFlowMatchScheduler.from_config(pipeline.scheduler.config)
        return CellTask(
            pairs, conditions_of(pipeline.encoder, pairs), suite, scheduler, arguments(tmp_path, **changed)
        )

    return make


@pytest.fixture
def train(simulated_cells, pipeline, suite, tmp_path):
    """Run a short post-training in this process."""

    def run(base=pipeline, **changed):
        return rl.train(arguments(tmp_path, **changed), Accelerator(cpu=True), simulated_cells, base, suite)

    return run


@pytest.fixture
def rows(tmp_path):
    return lambda: [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]


# ----------------------------------------------------------------------------------------------------------------
# The task
# ----------------------------------------------------------------------------------------------------------------


def test_a_group_is_one_control_or_one_condition(task):
    by_control = task().draw(seeded_generator(0, "test"))
    by_condition = task(group_by="condition").draw(seeded_generator(0, "test"))
    assert torch.equal(by_control.source, by_condition.source)
    assert by_control.group.tolist() == [i // 3 for i in range(12)]
    assert torch.equal(by_condition.group, by_condition.label)
    for group in range(4):
        assert len(by_control.label[by_control.group == group].unique()) == 1


def test_a_condition_that_is_drawn_twice_is_one_group(task):
    many = task(group_by="condition", conditions_per_step=400)
    starts = many.draw(seeded_generator(0, "test"))
    assert len(starts.group.unique()) <= len(many.pairs.conditions) < 400


def test_rollouts_of_one_control_differ_by_their_noise_alone(task):
    quiet = task()
    quiet.scheduler.register_to_config(source_noise_scale=0.0)
    starts = quiet.draw(seeded_generator(0, "test"))
    for group in starts.group.unique():
        own = starts.source[starts.group == group]
        assert (own == own[0]).all()
    assert torch.equal(starts.source, starts.context["control"]), "which rewards may compare with"
    noisy = task().draw(seeded_generator(0, "test"))
    assert (noisy.source[0] != noisy.source[1]).any()


def test_discrete_times_are_those_of_the_solver_and_continuous_ones_any(task):
    generator = seeded_generator(0, "test")
    discrete = task(time_sampling="discrete", num_inference_steps=3)
    # The midpoint solver calls the network at the start and in the middle of each step.
    torch.testing.assert_close(discrete.draw_times(500, generator).unique(), torch.arange(6) / 6)
    assert len(task().draw_times(500, generator).unique()) == 500


def test_an_image_that_is_not_finite_has_no_reward_and_leaves_the_others_theirs(task):
    task = task(reward_form="deviation")
    starts = task.draw(seeded_generator(0, "test")).take(slice(4))
    images = torch.zeros(4, 3, 16, 16)
    whole = task.score(task.measure(images, starts)(), starts.label)
    images[1, 0, 3, 3] = torch.nan
    images[2, 1, 0, 0] = torch.inf
    for name, scores in task.score(task.measure(images, starts)(), starts.label).items():
        assert scores.isfinite().tolist() == [True, False, False, True]
        assert torch.equal(scores[[0, 3]], whole[name][[0, 3]])


# ----------------------------------------------------------------------------------------------------------------
# Weights of the rewards
# ----------------------------------------------------------------------------------------------------------------

NAMES = ["moa", "containment", "roundness"]


def test_rewards_that_are_not_named_weigh_nothing():
    assert parse_reward_weights(" moa = 2, roundness=0.5", NAMES) == {"moa": 2, "containment": 0, "roundness": 0.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mao=1", "unknown reward in reward_weights 'mao'; did you mean 'moa'"),
        ("moa", "must be like 'moa=2,roundness=1', got 'moa'"),
        ("moa=high", "must be like"),
        ("moa=-1", "finite number from 0 on, got 'moa=-1'"),
        ("moa=nan", "finite number from 0 on"),
        ("moa=0", "leave no reward"),
        ("", "unknown reward"),
    ],
)
def test_weights_that_mean_nothing_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_reward_weights(text, NAMES)


def test_the_weights_decide_what_is_optimised_and_not_what_is_saved(train, suite, tmp_path, rows):
    before = dict(suite.weights)
    trained = train(reward_weights="containment=1", reward_form="deviation", max_train_steps=1)
    assert rows()[0]["reward/combined"] == pytest.approx(rows()[0]["reward/containment"])
    assert trained.rewards.weights == suite.weights == before
    assert CellFluxRLPipeline.from_pretrained(tmp_path / "run").rewards.weights == pytest.approx(before)


def test_the_curriculum_changes_weights_and_rates_at_its_steps(train, suite, tmp_path, rows):
    curriculum = [
        {"from_step": 1, "kl_weight": 0.7, "reward_weights": "cytoplasm_size=1"},
        {"from_step": 2, "learning_rate": 1e-5},
    ]
    train(curriculum=curriculum, reward_form="deviation", max_train_steps=3, lr_warmup_steps=0)
    assert [row["kl_weight"] for row in rows()] == [0.1, 0.7, 0.7]
    assert [row["learning_rate"] for row in rows() if "loss" in row][-1] == 1e-5
    assert [row["reward/combined"] == pytest.approx(row["reward/cytoplasm_size"]) for row in rows()] == [
        False,
        True,
        True,
    ]
    args = arguments(tmp_path, curriculum=curriculum)
    assert weights_of(arguments_at(args, 0), suite) is None
    assert weights_of(arguments_at(args, 5), suite) == dict.fromkeys(suite.weights, 0.0) | {"cytoplasm_size": 1.0}


def test_a_curriculum_from_the_start_is_where_the_kl_weight_begins(train, rows):
    train(curriculum=[{"from_step": 0, "kl_weight": 0.7}], kl_target=0.1, max_train_steps=1)
    assert rows()[0]["kl_weight"] == 0.7


# ----------------------------------------------------------------------------------------------------------------
# Runs
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["nft", "rwr", "best_of_n", "dpo"])
def test_every_objective_runs_and_logs_the_same(train, rows, objective):
    train(objective=objective, advantage_std="per_reward", time_sampling="discrete", group_by="condition")
    for row in rows():
        assert {
            "reward/combined", "reward_std/moa", "reward_top/moa", "dead_groups", "r/histogram", "non_finite_rewards",
            "loss", "kl", "distance_to_old", "distance_to_base", "grad_norm", "learning_rate", "kl_weight",
            "old_decay", "sample_growth", "skipped_no_signal", "skipped_non_finite",
            "seconds/sampling", "seconds/rewards", "seconds/update",
        } <= row.keys()  # fmt: skip
        assert {*TRAINING_PANELS, *SECONDS} <= row.keys(), "what is drawn is logged"
        assert sum(row["r/histogram"]) == pytest.approx(1)
    assert rows()[-1]["distance_to_base"] > 0


def test_lora_leaves_a_plain_pipeline(train, pipeline, tmp_path):
    pytest.importorskip("peft")
    trained = train(use_lora=True, lora_rank=2, max_train_steps=3, learning_rate=1e-2, lr_warmup_steps=0)
    saved = CellFluxPipeline.from_pretrained(tmp_path / "run").unet.state_dict()
    before = pipeline.unet.state_dict()
    assert saved.keys() == before.keys()
    changed = {name for name in before if not torch.equal(saved[name], before[name])}
    assert changed
    assert not any("bias" in name or "norm" in name for name in changed)
    assert all(torch.equal(value, trained.unet.state_dict()[name]) for name, value in saved.items())


def test_gradient_checkpointing_changes_memory_and_not_the_result(train, tmp_path):
    plain = train().unet.state_dict()
    (tmp_path / "run").rename(tmp_path / "plain")
    checkpointed = train(gradient_checkpointing=True).unet.state_dict()
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, atol=1e-6, rtol=0)


def test_rewards_that_are_missing_again_and_again_stop_the_run_with_a_checkpoint(train, tmp_path, rows, monkeypatch):
    score = CellTask.score

    def failing(self, measured, labels, weights=None):
        scores = score(self, measured, labels, weights)
        scores["combined"][:3] = torch.nan
        return scores

    monkeypatch.setattr(CellTask, "score", failing)
    message = r"stopped after iteration 5: too many rewards are not finite.*checkpoint-5 is saved; --resume_from"
    with pytest.raises(FloatingPointError, match=message):
        train(max_train_steps=20)
    assert [row["non_finite_rewards"] for row in rows()] == [3] * 5
    assert load_checkpoint(tmp_path / "run" / "checkpoint-5")[1]["progress"]["bad_rewards"] == 5


def test_a_full_disk_leaves_the_last_good_checkpoint_and_the_run_goes_on_from_it(train, tmp_path, monkeypatch):
    whole = train(max_train_steps=4, checkpointing_steps=1).unet.state_dict()
    (tmp_path / "run").rename(tmp_path / "whole")
    written, real = [], rl.save_checkpoint

    def nearly_full(output_dir, step, *args, **kwargs):
        if step == 3:
            monkeypatch.setattr("cellfluxrl.checkpoints.save_file", full)
        written.append(step)
        return real(output_dir, step, *args, **kwargs)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(rl, "save_checkpoint", nearly_full)
        with pytest.raises(OSError, match="No space left"):
            train(max_train_steps=4, checkpointing_steps=1)
    monkeypatch.undo()
    assert written == [1, 2, 3]
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    resumed = train(max_train_steps=4, checkpointing_steps=1, resume_from_checkpoint="latest").unet.state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


# ----------------------------------------------------------------------------------------------------------------
# What is refused before the first iteration
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"group_by": "plate"}, "unknown group_by 'plate'; 2 known: condition, control"),
        ({"time_sampling": "discreet"}, "did you mean 'discrete'"),
        ({"objective": "dpo", "train_batch_size": 3}, "positive multiple of 2"),
        ({"rollouts_per_control": 0}, "rollouts_per_control must be at least 1, got 0"),
        ({"rollouts_per_control": 1}, "a group has one rollout"),
        ({"curriculum": [{"from_step": 1, "kl_weight": -1}]}, "kl_weight must not be negative, got -1"),
        ({"curriculum": [{"from_step": 9, "reward_weights": "mao=1"}]}, "did you mean 'moa'"),
        ({"lora_rank": 0, "use_lora": True}, "lora_rank must be at least 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(train, tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        train(**changed)
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_a_base_without_source_noise_is_refused_unless_a_group_has_several_controls(train, pipeline, tmp_path):
    silent = CellFluxFlowMatchScheduler(solver="midpoint", source_noise_scale=0.0)
    silent = CellFluxPipeline(unet=pipeline.unet, scheduler=silent, encoder=pipeline.encoder)
    with pytest.raises(ValueError, match="no signal"):
        train(base=silent)
    assert not (tmp_path / "run" / "log.jsonl").exists()
    train(base=silent, group_by="condition", max_train_steps=1)


def test_rewards_for_other_images_are_refused(simulated_cells, pipeline, suite):
    pairs = ControlTreatedPairs(simulated_cells["train"])
    check_fit(pairs, pipeline, suite)
    larger, ignorant = copy.deepcopy(suite), copy.deepcopy(suite)
    larger.register_to_config(image_size=[32, 32])
    with pytest.raises(ValueError, match=r"the data set are \(16, 16\) pixels, the rewards were fitted on \[32, 32\]"):
        check_fit(pairs, pipeline, larger)
    ignorant.count[:] = 0
    with pytest.raises(ValueError, match="fitted without cells of MoA"):
        check_fit(pairs, pipeline, ignorant)
    other = copy.copy(pairs)
    other.channel_names = ("dna", "er", "actin")
    with pytest.raises(ValueError, match="channels differ"):
        check_fit(other, pipeline, suite)
