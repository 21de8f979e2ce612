"""The three training scripts as processes: what they write, what they refuse, and what a second process changes."""

import dataclasses
import json
import re
import sys
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from cellfluxrl import CellFluxPipeline, CellFluxRLPipeline, MoAClassifier
from cellfluxrl.commands.cli import main
from cellfluxrl.training import common
from cellfluxrl.training.options import MoAArguments, PretrainArguments, RLArguments

ARGUMENTS = {"pretrain": PretrainArguments, "moa": MoAArguments, "rl": RLArguments}


# ----------------------------------------------------------------------------------------------------------------
# One YAML file, three scripts, through `accelerate launch`
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pretrain_writes_a_pipeline_checkpoints_and_a_log(base, log_of, same_weights):
    assert sorted(path.name for path in base.glob("*checkpoint*")) == ["checkpoint-120", "checkpoint-60"]
    steps = [row for row in log_of(base) if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 121))
    assert steps[-1]["loss"] < 0.6 * steps[0]["loss"]
    assert any("swapped_cosine" in row for row in log_of(base))
    pipeline = CellFluxPipeline.from_pretrained(base)
    average = load_file(base / "checkpoint-120" / "average.safetensors")
    assert all(torch.equal(value, average[name]) for name, value in pipeline.unet.state_dict().items())
    images = pipeline(torch.zeros(2, 3, 16, 16), compound="taxol", num_inference_steps=1, output_type="pt").images
    assert images.shape == (2, 3, 16, 16)
    assert images.isfinite().all()
    assert pipeline.training_levels().shape == (3, 201)


@pytest.mark.slow
def test_moa_writes_a_classifier_metrics_and_a_log(classifier, log_of):
    metrics = json.loads((classifier / "metrics.json").read_text())
    assert set(metrics) >= {"accuracy", "balanced_accuracy", "expected_calibration_error"}
    assert [row["step"] for row in log_of(classifier)] == [10, 20]
    model = MoAClassifier.from_pretrained(classifier)
    assert model(torch.zeros(2, 3, 16, 16)).logits.shape == (2, len(model.config.moas))
    assert float(model.temperature) == pytest.approx(metrics["temperature"])


@pytest.mark.slow
def test_rl_writes_a_pipeline_with_rewards_checkpoints_and_a_log(post_trained, base, log_of):
    assert sorted(path.name for path in post_trained.glob("*checkpoint*")) == ["checkpoint-12", "checkpoint-9"]
    rows = log_of(post_trained)
    assert [row["step"] for row in rows] == list(range(1, 13))
    names = {"loss", "kl", "distance_to_old", "grad_norm", "dead_groups", "r/std", "sample_growth", "reward/combined"}
    assert all(names <= set(row) for row in rows if row["dead_groups"] < 1)
    assert any(row["dead_groups"] < 1 for row in rows)
    assert rows[-1]["kl"] > 0

    pipeline = CellFluxRLPipeline.from_pretrained(post_trained)
    average = load_file(post_trained / "checkpoint-12" / "average.safetensors")
    assert all(torch.equal(value, average[name]) for name, value in pipeline.unet.state_dict().items())
    before = CellFluxPipeline.from_pretrained(base).unet.state_dict()
    assert pipeline.config.control_levels == CellFluxPipeline.from_pretrained(base).config.control_levels
    assert any(not torch.equal(value, before[name]) for name, value in pipeline.unet.state_dict().items())
    out = pipeline(torch.zeros(2, 3, 16, 16), compound="taxol", num_inference_steps=1, output_type="pt")
    assert out.images.shape == (2, 3, 16, 16)
    assert out.rewards["combined"].shape == (2,)


@pytest.mark.slow
def test_rl_takes_the_fitted_suite_of_an_earlier_run(scripts, base, post_trained, log_of, same_weights):
    folder = scripts.folder / "with_suite"
    inputs = ("--pretrained_model_name_or_path", base, "--rewards", post_trained / "rewards")
    scripts.run(sys.executable, *scripts.script("rl", folder, *inputs, "--max_train_steps", 3))
    for row, earlier in zip(log_of(folder), log_of(post_trained), strict=False):
        rewards = [key for key in row if key.startswith("reward/")]
        assert {key: row[key] for key in rewards} == pytest.approx({key: earlier[key] for key in rewards}, abs=1e-5)


@pytest.mark.slow
def test_help_lists_every_option(scripts):
    training = Path(__file__).parents[2] / "training"
    started = {name: scripts.start(sys.executable, training / f"{name}.py", "--help") for name in ARGUMENTS}
    for name, process in started.items():
        result = scripts.finish(process)
        assert result.returncode == 0, result.stderr
        for field in dataclasses.fields(ARGUMENTS[name]):
            assert f"--{field.name}" in result.stdout
        assert "--config" in result.stdout


# ----------------------------------------------------------------------------------------------------------------
# Two processes on the CPU
# ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pretraining_in_two_processes_is_the_same_training(scripts, log_of, same_weights):
    # With everything that is drawn for a pair.
    short = ("--max_train_steps", 8, "--control_gain", 0.2, "--source_noise_detail", 0.3)
    one, two = scripts.folder / "one", scripts.folder / "two"
    scripts.run(sys.executable, *scripts.script("pretrain", one, *short, "--train_batch_size", 16))
    scripts.two_processes("pretrain", two, *short, "--train_batch_size", 8)
    same_weights(one / "checkpoint-8", two / "checkpoint-8", ("model", "average"), atol=1e-4)
    for a, b in zip(log_of(one), log_of(two), strict=True):
        assert a["step"] == b["step"]
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
    scheduler = json.loads((one / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["source_noise_detail"] == 0.3  # sampling draws the noise of training


@pytest.mark.slow
def test_the_classifier_trains_in_two_processes(scripts):
    folder = scripts.folder / "moa_two"
    scripts.two_processes("moa", folder, "--max_train_steps", 10)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert MoAClassifier.from_pretrained(folder).config.moas
    assert 0 <= metrics["accuracy"] <= 1


@pytest.mark.slow
def test_post_training_in_two_processes_is_the_same_training(scripts, rl_inputs, post_trained, log_of, same_weights):
    # 16 rollouts in batches of 8 an iteration: two after each other in one process, or one in each of two.
    two = scripts.folder / "rl_two"
    scripts.two_processes("rl", two, *rl_inputs)
    same_weights(post_trained / "checkpoint-12", two / "checkpoint-12", ("model", "old", "average"), atol=1e-4)
    for a, b in zip(log_of(post_trained), log_of(two), strict=True):
        shared = [key for key in a if key.startswith(("reward/", "r/", "dead_groups"))]
        assert {key: a[key] for key in shared} == {key: b[key] for key in shared}


@pytest.mark.slow
@pytest.mark.parametrize("spelling", [("--num_processes", "2"), ("--num_processes=2",)])
def test_a_process_that_was_asked_for_and_not_started_is_an_error(scripts, launch, spelling):
    folder = scripts.folder / "refused"
    result = scripts.finish(scripts.start(*launch, "--cpu", *spelling, *scripts.script("pretrain", folder)))
    assert result.returncode != 0
    message = "accelerate was asked for 2 processes and started 1; on the CPU use accelerate launch "
    assert message in result.stderr
    # `Scripts.two_processes` is what the message recommends.
    assert re.search(r"accelerate launch --multi_gpu --num_processes 2 SCRIPT --cpu$", result.stderr, re.MULTILINE)
    assert not (folder / "log.jsonl").exists()


class _Parent:
    def __init__(self, *command):
        self.command = list(command)

    def cmdline(self):
        if not self.command:
            raise psutil.AccessDenied(1)
        return self.command


@pytest.mark.parametrize(
    ("command", "refused"),
    [
        (("python", "/venv/bin/accelerate", "launch", "--cpu", "--num_processes", "2", "rl.py"), True),
        (("python", "/venv/bin/accelerate-launch", "--num_processes", "2", "rl.py"), True),
        (("python", "-m", "accelerate.commands.launch", "--num-processes=2", "rl.py"), True),
        (("python", "/lib/accelerate/commands/launch.py", "--num_processes", "2", "rl.py"), True),
        (("accelerate", "launch", "--num_processes", "1", "rl.py"), False),
        (("accelerate", "launch", "rl.py"), False),
        (("bash", "-c", "accelerate launch --num_processes 2 other.py; python rl.py"), False),
        (("pytest", "-n", "2", "--num_processes", "2"), False),
        ((), False),
    ],
)
def test_every_spelling_of_accelerate_launch_is_recognised(command, refused, monkeypatch):
    monkeypatch.setattr(psutil.Process, "parents", lambda self: [_Parent("sh"), _Parent(*command)])
    with pytest.raises(RuntimeError, match="asked for 2 processes and started 1") if refused else nullcontext():
        common._check_process_count(1)
    common._check_process_count(2)


# ----------------------------------------------------------------------------------------------------------------
# Bad input: one line that says what is wrong
# ----------------------------------------------------------------------------------------------------------------

BAD_INPUT = {
    "rl without a base": (["rl", "--classifier", "c"], "--pretrained_model_name_or_path is missing"),
    "rl with two kinds of rewards": (
        ["rl", "--pretrained_model_name_or_path", "b", "--classifier", "c", "--rewards", "r"],
        "give either --rewards, a fitted suite, or --classifier",
    ),
    "rl without rewards": (
        ["rl", "--pretrained_model_name_or_path", "b"],
        "give either --rewards, a fitted suite, or --classifier",
    ),
    "unknown reward_form": (
        ["rl", "--reward_form", "energie"],
        "unknown reward_form 'energie'; did you mean 'energy'?",
    ),
    "missing data folder": (
        ["pretrain", "--dataset_name", "crops", "--data_dir", "nowhere"],
        "data_dir 'nowhere' is not a folder",
    ),
    "no data folder named": (["moa", "--dataset_name", "crops"], "data_dir"),
    "unknown data set": (["pretrain", "--dataset_name", "cops"], "did you mean 'crops'?"),
    "missing configuration": (["moa", "--config", "nowhere.yaml"], "--config 'nowhere.yaml' is not a file"),
    "missing checkpoint": (
        ["pretrain", "--preset", "tiny", "--resume_from_checkpoint", "nowhere"],
        "'nowhere' is not a checkpoint",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_ends_with_one_clear_line(case, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv, message = BAD_INPUT[case]
    small = ["--cpu", "--image_size", "16", "--simulated_cells_per_moa", "4"]
    assert main([*argv, *small]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "cellfluxrl: error:" in line]
    assert len(lines) == 1
    assert message in lines[0]
    assert not list(tmp_path.rglob("log.jsonl"))


@pytest.mark.parametrize(
    ("section", "key", "nearest"),
    [("rl", "kl_wieght", "kl_weight"), ("moa", "widht", "width"), (None, "image_sise", "image_size")],
)
def test_an_unknown_key_of_the_yaml_file_is_refused_with_the_nearest(section, key, nearest, tmp_path, capsys):
    config = tmp_path / "typo.yaml"
    config.write_text(yaml.safe_dump({section: {key: 1}} if section else {key: 1}))
    assert main([section or "pretrain", "--config", str(config)]) == 2
    error = capsys.readouterr().err
    assert f"unknown key in {f'section {section!r} of ' if section else ''}{config} {key!r}" in error
    assert f"did you mean {nearest!r}?" in error


def test_the_section_of_another_script_does_not_matter(tmp_path, capsys):
    config = tmp_path / "both.yaml"
    config.write_text(yaml.safe_dump({"rl": {"reward_form": "energie"}, "pretrain": {"preset": "tiny"}}))
    assert main(["rl", "--config", str(config), "--cpu"]) == 2
    assert "unknown reward_form 'energie'" in capsys.readouterr().err


def test_a_value_of_the_wrong_type_in_the_yaml_file_is_refused(tmp_path, capsys):
    config = tmp_path / "type.yaml"
    config.write_text("rl:\n  max_train_steps: many\n")
    assert main(["rl", "--config", str(config)]) == 2
    assert "max_train_steps must be int, got 'many'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_script_ends_its_traceback_with_the_clear_line(scripts):
    folder = scripts.folder / "bad"
    typo = scripts.folder / "typo.yaml"
    typo.write_text("rl:\n  kl_wieght: 1.0\n")
    started = {
        "missing": scripts.start(sys.executable, *scripts.script("rl", folder)),
        "typo": scripts.start(sys.executable, "-m", "cellfluxrl.training.rl", "--config", typo),
    }
    results = {name: scripts.finish(process) for name, process in started.items()}
    assert all(result.returncode == 1 for result in results.values())
    last = {name: result.stderr.strip().splitlines()[-1] for name, result in results.items()}
    assert last["missing"].startswith("ValueError: --pretrained_model_name_or_path is missing")
    assert "'kl_wieght'; did you mean 'kl_weight'?" in last["typo"]
