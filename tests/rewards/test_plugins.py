"""Plug-ins: modules with custom rewards and segmenters, which a suite names and only the user has imported."""

import json
import sys
import textwrap
import uuid

import pytest
import torch

from cellfluxrl import CellFluxRLPipeline, RewardSuite
from cellfluxrl.commands import cli
from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.images import images_to_tensor
from cellfluxrl.rewards import terms
from cellfluxrl.rewards.context import Context
from cellfluxrl.rewards.partial import measure_finite, score_partly
from cellfluxrl.rewards.plugins import VARIABLE, load_plugins
from cellfluxrl.rewards.segmentation import protocol
from cellfluxrl.rewards.segmentation.protocol import make_segmenter
from cellfluxrl.rewards.workers import RewardWorkers

PLUGIN = """
    from dataclasses import dataclass
    from typing import ClassVar

    import numpy as np

    from cellfluxrl import Reward
    from cellfluxrl.rewards.segmentation import Masks, register_segmenter

    dna = Reward("NAME_dna", statistic=lambda seen: seen.images[:, 0].mean((1, 2)), title="DNA", unit="grey levels")
    change = Reward("NAME_change", score=lambda seen: (seen.images - seen.control).mean((1, 2, 3)))

    @register_segmenter
    @dataclass(frozen=True)
    class Threshold:
        name: ClassVar[str] = "NAME_threshold"
        level: float = 0.3

        def __call__(self, images):
            nuclei = (images[:, 0] > self.level).astype(np.int32)
            return Masks(nuclei, (images.max(axis=1) > self.level).astype(np.int32))
"""


@pytest.fixture
def forget(monkeypatch):
    """As a new process does: of plug-ins and what they registered."""
    monkeypatch.setattr(terms, "_REGISTERED", dict(terms._REGISTERED))
    monkeypatch.setattr(protocol, "SEGMENTERS", dict(protocol.SEGMENTERS))

    def forget(name):
        sys.modules.pop(name, None)
        terms._REGISTERED.pop(f"{name}_dna", None)
        terms._REGISTERED.pop(f"{name}_change", None)
        protocol.SEGMENTERS.pop(f"{name}_threshold", None)

    return forget


@pytest.fixture
def name(forget, tmp_path, monkeypatch):
    """A module on the user's path."""
    name = f"plugin_{uuid.uuid4().hex[:12]}"
    folder = tmp_path / "path"
    folder.mkdir()
    (folder / f"{name}.py").write_text(textwrap.dedent(PLUGIN).replace("NAME", name))
    monkeypatch.syspath_prepend(folder)
    yield name
    forget(name)


@pytest.fixture(scope="module")
def cells(simulated_cells):
    return simulated_cells["train"]


@pytest.fixture
def saved(cells, suite, name, tmp_path, forget):
    """A suite that needs a plug-in for its rewards and its segmenter, and the scores of it."""
    own = RewardSuite.fit(
        cells, suite.classifier, f"{name}_threshold", {"level": 0.25}, ["containment", f"{name}_dna"], plugins=[name]
    )
    own.save_pretrained(tmp_path / "suite")
    scores = own(open_images(cells)[:4], cells["moa"][:4])
    forget(name)
    return tmp_path / "suite", scores


def test_a_plugin_brings_every_reward_that_it_holds(name):
    assert [reward.name for reward in load_plugins([name])] == [f"{name}_dna", f"{name}_change"]
    assert terms.find_reward(f"{name}_dna").title == "DNA"
    load_plugins([name])  # again is no mistake


def test_a_suite_has_the_seven_and_those_of_its_plugins(cells, suite, name):
    own = RewardSuite.fit(cells, suite.classifier, plugins=[name])
    assert list(own.weights) == [*suite.weights, f"{name}_dna", f"{name}_change"]
    assert own.config.plugins == [name]
    assert suite.config.plugins is None


def test_a_segmenter_without_channel_names_works_in_a_suite(saved, name, cells):
    folder, scores = saved
    load_plugins([name])
    again = RewardSuite.from_pretrained(folder)
    assert again.segmenter == make_segmenter(f"{name}_threshold", level=0.25)
    assert json.loads((folder / "config.json").read_text())["segmenter_settings"] == {"level": 0.25}
    for key, values in again(open_images(cells)[:4], cells["moa"][:4]).items():
        assert torch.equal(values, scores[key])


# --- What a saved suite names ---


def test_a_suite_alone_has_nothing_imported(saved, name):
    with pytest.raises(ValueError, match=f"needs the plug-in '{name}'.* not imported just because.*--plugins {name}"):
        RewardSuite.from_pretrained(saved[0])
    assert name not in sys.modules


def test_a_pipeline_has_nothing_imported_for_its_suite(saved, name, pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "pipeline")
    for file in saved[0].iterdir():
        (tmp_path / "pipeline/rewards" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match=f"needs the plug-in '{name}'"):
        CellFluxRLPipeline.from_pretrained(tmp_path / "pipeline")
    assert name not in sys.modules
    load_plugins([name])
    assert f"{name}_dna" in CellFluxRLPipeline.from_pretrained(tmp_path / "pipeline").rewards.weights


def test_an_import_of_the_users_own_is_enough(saved, name):
    __import__(name)
    assert f"{name}_dna" in RewardSuite.from_pretrained(saved[0]).weights


def test_the_environment_may_name_it(saved, name, monkeypatch):
    monkeypatch.setenv(VARIABLE, f"another_module, {name}")
    assert f"{name}_dna" in RewardSuite.from_pretrained(saved[0]).weights
    assert "another_module" not in sys.modules, "which the suite does not name"


@pytest.mark.parametrize("kind", ["module", "package"])
def test_code_beside_a_suite_is_not_imported_even_if_its_folder_is_on_the_path(saved, name, monkeypatch, kind):
    folder = saved[0]
    evil = f"evil_{uuid.uuid4().hex[:12]}"
    place = folder / f"{evil}.py" if kind == "module" else folder / evil / "__init__.py"
    place.parent.mkdir(exist_ok=True)
    place.write_text("raise SystemExit('code of a suite ran')")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "plugins": [evil]}))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv(VARIABLE, evil)
    with pytest.raises(ValueError, match=f"the plug-in '{evil}' lies beside a saved model"):
        RewardSuite.from_pretrained(folder)


@pytest.mark.parametrize("plugin", ["../evil", "a b", "", ".evil", "/tmp/evil", "os; import sys"])
def test_a_plugin_is_the_name_of_a_module(plugin):
    with pytest.raises(ValueError, match="a plug-in is the name of a module, such as 'my_rewards', got"):
        load_plugins([plugin])


def test_a_module_that_is_not_there_says_where_it_is_looked_for():
    with pytest.raises(ValueError, match=r"there is no module 'no_such_rewards'.*PYTHONPATH=\. cellfluxrl"):
        load_plugins(["no_such_rewards"])


def test_what_a_plugin_lacks_is_its_own_error(name, tmp_path):
    (tmp_path / "path" / f"{name}.py").write_text("import no_such_library")
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        load_plugins([name])


def test_an_unknown_reward_says_how_custom_ones_become_known():
    with pytest.raises(
        ValueError, match=r"unknown reward 'dna'.*--plugins my_rewards.*entry point 'cellfluxrl.rewards'"
    ):
        terms.find_reward("dna")


# --- Suites of before ---


def test_a_suite_that_was_saved_before_there_were_plugins_loads_unchanged(suite, cells, tmp_path):
    suite.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for key in ("plugins", "looks_at"):
        del config[key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    old, images, moas = RewardSuite.from_pretrained(tmp_path), open_images(cells)[:6], cells["moa"][:6]
    assert old.uses_classifier
    for form in ("deviation", "energy"):
        for key, values in suite(images, moas, form).items():
            assert torch.equal(old(images, moas, form)[key], values)
    assert torch.equal(
        old.appearance(old.measure(images, moas), moas), suite.appearance(suite.measure(images, moas), moas)
    )


# --- Other processes and the command line ---


@pytest.mark.slow
def test_worker_processes_import_the_plugins_and_get_the_controls(cells, suite, name):
    own = RewardSuite.fit(cells, suite.classifier, plugins=[name])
    images, moa = images_to_tensor(open_images(cells)[:6]).clone(), cells["moa"][:6]
    context = Context.of(6, control=images.flip(0), compound=["taxol"] * 6)
    with RewardWorkers(own, chunk_size=4) as workers:
        seen = workers.submit(images, moa, context).result()
        with pytest.raises(ValueError, match=f"reward '{name}_change' looks at the control of each image"):
            workers.submit(images, moa)
    assert not seen.failed.any()
    expected = score_partly(own, measure_finite(own, images, moa, context), moa)
    for key, values in score_partly(own, seen, moa).items():
        torch.testing.assert_close(values, expected[key], rtol=1e-3, atol=1e-3)


def test_the_command_line_fits_and_scores_with_plugins(
    simulated_cells, suite, name, forget, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    simulated_cells.save_to_disk("cells")
    suite.classifier.save_pretrained("classifier")
    fit = ["rewards", "fit", "cells", "--classifier", "classifier", "--output_dir", "own"]
    score = ["rewards", "score", "cells", "--split", "test", "--suite", "own", "--output", "scores.parquet"]
    rewards = ["--rewards", "roundness", f"{name}_dna", f"{name}_change"]
    assert cli.main([*fit, *rewards]) == 2
    assert "--plugins my_rewards" in capsys.readouterr().err
    assert cli.main([*fit, *rewards, "--plugins", name, "--segmenter", f"{name}_threshold"]) in (0, None)
    assert f"{name}_dna: grey levels" in capsys.readouterr().out
    forget(name)
    assert cli.main(score) == 2
    assert f"needs the plug-in '{name}'" in capsys.readouterr().err
    assert cli.main([*score, "--plugins", name]) in (0, None)
    assert f"{name}_change" in capsys.readouterr().out
    assert (tmp_path / "scores_violins.png").is_file()


def test_the_card_of_a_suite_names_its_plugins_and_units(saved, name):
    card = (saved[0] / "README.md").read_text()
    assert f"| `{name}_dna` |" in card
    assert f"`{name}_dna`: grey levels" in card
    assert f"--plugins {name}" in card
    assert "log-odds" not in card, "it has no `moa`"
