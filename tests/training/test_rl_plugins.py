"""A reward of a plug-in that compares with the control, end to end: fitted, post-trained for, chosen by."""

import sys
import textwrap

import pytest
import torch
from accelerate import Accelerator

from cellfluxrl import CellFluxRLPipeline
from cellfluxrl.rewards import terms
from cellfluxrl.training import rl
from cellfluxrl.training.rl import RLArguments

MODULE, DOSED = "rewards_of_change", "rewards_of_dose"
PLUGIN = """
    import torch
    from cellfluxrl import Reward

    change = Reward("change_in_rl", statistic=lambda seen: (seen.images - seen.control).mean((1, 2, 3)))
    known = Reward("known_in_rl", score=lambda seen: torch.tensor([float(bool(name)) for name in seen.compound]))
"""
DOSE = """
    import torch
    from cellfluxrl import Reward

    dose = Reward("log_dose_in_rl", score=lambda seen: torch.log10(1 + seen.concentration))
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugin")
    (folder / f"{MODULE}.py").write_text(textwrap.dedent(PLUGIN))
    (folder / f"{DOSED}.py").write_text(textwrap.dedent(DOSE))
    return folder


@pytest.fixture
def on_the_path(path, monkeypatch):
    monkeypatch.syspath_prepend(path)
    monkeypatch.setattr(terms, "_REGISTERED", dict(terms._REGISTERED))
    yield
    for name in (MODULE, DOSED):
        sys.modules.pop(name, None)


@pytest.fixture
def run(simulated_cells, pipeline, suite, tmp_path, on_the_path):
    def run(**changed):
        suite.classifier.save_pretrained(tmp_path / "classifier")
        small = {
            "classifier": str(tmp_path / "classifier"),
            "image_size": 16,
            "cpu": True,
            "output_dir": str(tmp_path / "run"),
            "conditions_per_step": 2,
            "controls_per_condition": 2,
            "rollouts_per_control": 3,
            "num_inference_steps": 1,
            "train_batch_size": 8,
            "max_train_steps": 2,
            "plugins": [MODULE],
        }
        args = RLArguments(**(small | changed))
        return rl.train(args, Accelerator(cpu=True), simulated_cells, pipeline)

    return run


def test_a_change_to_the_control_is_post_trained_for(run, tmp_path):
    trained = run(plugins=[MODULE, DOSED], reward_weights="change_in_rl=1", reward_form="deviation")
    assert {"moa", "roundness", "change_in_rl", "log_dose_in_rl", "known_in_rl"} < set(trained.rewards.weights)
    assert trained.rewards.looks_at["change_in_rl"] == {"control"}
    assert CellFluxRLPipeline.from_pretrained(tmp_path / "run").rewards.config.plugins == [MODULE, DOSED]


def test_the_best_candidate_is_that_of_the_largest_change(run, controls, generators):
    trained = run(max_train_steps=1)
    trained.set_progress_bar_config(disable=True)
    moa = trained.encoder.moa("taxol")

    def generate(**changed):
        known = {"compound": "taxol", "num_inference_steps": 1, "output_type": "pt"}
        return trained(controls, generator=generators(*range(12)), **(known | changed))

    every = generate(num_images_per_control=4)
    suite, k = trained.rewards, trained.rewards.moas.index(moa)
    change = (every.images - controls.repeat_interleave(4, dim=0)).mean(dim=(1, 2, 3))
    expected = -((change - suite.mean[k, suite.statistic_names.index("change_in_rl")]).abs()) / suite.std[k, -2]
    torch.testing.assert_close(every.rewards["change_in_rl"], expected, rtol=1e-3, atol=1e-3)
    best = generate(best_of_n=4, selection_reward="change_in_rl")
    torch.testing.assert_close(best.rewards["change_in_rl"], every.rewards["change_in_rl"].view(3, 4).amax(dim=1))
    assert best.selected.tolist() == every.rewards["change_in_rl"].view(3, 4).argmax(dim=1).tolist()


def test_what_a_pipeline_is_not_told_is_not_scored_and_said(run, controls, generators, caplog):
    trained = run(max_train_steps=1, plugins=[DOSED])
    trained.set_progress_bar_config(disable=True)
    settings = {"compound": "taxol", "num_inference_steps": 1, "output_type": "pt"}
    output = trained(controls, generator=generators(0, 1, 2), **settings)
    assert output.rewards is None
    assert "the images are not scored: reward 'log_dose_in_rl' looks at the concentration of each image" in caplog.text
    with pytest.raises(ValueError, match="reward 'log_dose_in_rl' looks at the concentration"):
        trained(controls, best_of_n=2, generator=generators(*range(6)), **settings)
    with pytest.raises(ValueError, match="reward 'log_dose_in_rl' looks at the concentration"):
        trained(controls, moa="DNA damage", generator=generators(0, 1, 2), **settings)


@pytest.mark.slow
def test_every_process_imports_the_plugin(scripts, rl_inputs, path, log_of, monkeypatch):
    """Two processes of `accelerate launch`, each with a process that measures; and without --plugins none."""
    monkeypatch.setitem(scripts.environment, "PYTHONPATH", f"{path}:{scripts.environment.get('PYTHONPATH', '')}")
    folder = scripts.folder / "plugins_rl"
    options = ("--max_train_steps", 2, "--reward_workers", 1, "--plugins", MODULE)
    scripts.two_processes("rl", folder, *rl_inputs, *options)
    assert all(row["non_finite_rewards"] == 0 and "reward/change_in_rl" in row for row in log_of(folder))
    again = (*scripts.script("rl", scripts.folder / "again"), *rl_inputs[:2], "--rewards", folder / "rewards")
    result = scripts.finish(scripts.start(sys.executable, *again, "--max_train_steps", 1))
    assert result.returncode != 0
    assert f"needs the plug-in '{MODULE}'" in result.stderr
    scripts.run(sys.executable, *again, "--max_train_steps", 1, "--plugins", MODULE)
