"""What is watched during post-training: real cells, the base's diversity, pictures; and what a warning does."""

import json

import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from cellfluxrl import CellFluxPipeline, CellFluxRLPipeline, MoAClassifier, RewardSuite, SimulatedCells
from cellfluxrl.checkpoints import load_checkpoint
from cellfluxrl.data.compounds import CONTROL, MOAS
from cellfluxrl.data.images import images_to_tensor
from cellfluxrl.data.pairs import ControlTreatedPairs
from cellfluxrl.rl.monitor import Moments, Monitor
from cellfluxrl.seeding import seeded_generator
from cellfluxrl.training import rl
from cellfluxrl.training import watch as rl_watch
from cellfluxrl.training.cell_task import CellTask
from cellfluxrl.training.demo import SHIPPED_BASE
from cellfluxrl.training.watch import base_diversity, real_moments, watch

SMALL = {
    "image_size": 16,
    "cpu": True,
    "conditions_per_step": 2,
    "controls_per_condition": 2,
    "rollouts_per_control": 3,
    "num_inference_steps": 1,
    "train_batch_size": 8,
    "max_train_steps": 3,
    "reward_workers": 0,
    "sample_steps": 0,
}


@pytest.fixture
def arguments(tmp_path):
    return lambda **changed: rl.RLArguments(**(SMALL | {"output_dir": str(tmp_path / "run")} | changed))


@pytest.fixture
def train(arguments, simulated_cells, pipeline, suite):
    return lambda **changed: rl.train(arguments(**changed), Accelerator(cpu=True), simulated_cells, pipeline, suite)


@pytest.fixture
def trainer(arguments, simulated_cells, pipeline, suite):
    return rl.build_trainer(arguments(), Accelerator(cpu=True), simulated_cells, pipeline, suite)


@pytest.fixture
def rows(tmp_path):
    return lambda: [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]


def test_real_cells_are_those_of_each_conditions_mechanism(trainer, simulated_cells, suite):
    pairs = ControlTreatedPairs(simulated_cells["train"])
    real = real_moments(trainer.task, suite)
    assert set(real) == {*suite.weights, "combined"}
    for condition, moa in enumerate(pairs.conditions["moa"]):
        same = [i for i, other in enumerate(pairs.conditions["moa"]) if other == moa]
        own = pairs.treated_rows[torch.isin(pairs.treated_condition, torch.tensor(same))]
        scores = suite(images_to_tensor(pairs.images[own]), [moa] * len(own))
        for name, values in scores.items():
            assert float(real[name].mean[condition]) == pytest.approx(float(values.mean()), abs=1e-4)


@pytest.mark.slow
def test_the_base_is_as_diverse_as_itself(arguments, tmp_path, monkeypatch):
    # At the first iteration the sampling policy is the base. In smaller cells there is nothing to measure.
    monkeypatch.setattr(rl_watch, "BASE_SAMPLES", 48)
    builder = SimulatedCells(cache_dir=str(tmp_path), cells_per_moa=12, controls_per_plate=12, num_plates=2)
    builder.download_and_prepare()
    cells = builder.as_dataset()
    suite = RewardSuite.fit(cells["train"], MoAClassifier(moas=[CONTROL, *MOAS], width=4).eval())
    args = arguments(image_size=48, num_inference_steps=3, conditions_per_step=1, controls_per_condition=6)
    base = CellFluxPipeline.from_pretrained(str(SHIPPED_BASE))
    trainer = rl.build_trainer(args, Accelerator(cpu=True), cells, base, suite)
    diversity = base_diversity(trainer, trainer.task)
    seen = diversity.mean.isfinite()
    assert 1 <= seen.sum() <= 3
    monitor = Monitor({}, diversity, window=1)
    trainer.task.draw = lambda generator: CellTask.draw(trainer.task, seeded_generator(0, "base diversity", 0))
    trainer.step()
    watch(monitor, trainer, trainer.task, suite)
    assert 0.7 < monitor.values()["diversity"] < 1.4


def passed_at_once(trainer, task, suite):
    """A monitor to which every rollout is above real cells."""
    worse = torch.full((len(task.moas),), -100.0, dtype=torch.double)
    return Monitor({"combined": Moments(worse, torch.zeros_like(worse))}, window=2)


def test_a_reward_above_real_cells_is_a_warning_and_the_run_goes_on(train, rows, monkeypatch, capsys):
    monkeypatch.setattr(rl, "make_monitor", passed_at_once)
    train()
    assert "warning: after iteration 2, reward 'combined' is" in capsys.readouterr().err
    assert ["warnings" in row for row in rows()] == [False, True, False]
    assert all(row["excess/combined"] > 0 for row in rows())


def test_it_stops_the_run_where_that_was_asked_for(train, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(rl, "make_monitor", passed_at_once)
    train(stop_on_overoptimisation=True)
    assert len(rows()) == 2
    assert load_checkpoint(tmp_path / "run" / "checkpoint-2")[1]["monitor"]["warned"] == ["excess/combined"]
    assert CellFluxRLPipeline.from_pretrained(tmp_path / "run").rewards is not None


def test_a_resumed_run_remembers_what_was_seen(train, rows, monkeypatch):
    monkeypatch.setattr(rl, "make_monitor", passed_at_once)
    train(max_train_steps=1)
    train(resume_from_checkpoint="latest")
    assert ["warnings" in row for row in rows()] == [False, True, False]


def test_pictures_are_of_the_same_controls_each_time(train, tmp_path):
    train(sample_steps=1, learning_rate=0.0)
    pictures = sorted((tmp_path / "run" / "samples").iterdir())
    assert [path.name for path in pictures] == ["000001.png", "000002.png", "000003.png"]
    assert len({Image.open(path).tobytes() for path in pictures}) == 1, "nothing was learnt"


@pytest.mark.slow
def test_rewards_measured_beside_the_sampling_change_nothing(train, rows, tmp_path):
    train()
    plain = rows()
    (tmp_path / "run").rename(tmp_path / "plain")
    train(reward_workers=1)
    for here, beside in zip(plain, rows(), strict=True):
        for name in (name for name in here if name.startswith("reward")):
            assert beside[name] == pytest.approx(here[name], rel=1e-3, abs=1e-3), name
