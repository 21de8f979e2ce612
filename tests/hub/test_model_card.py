"""Cards of pipelines and classifiers say what is in their folder, and nothing that is not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from example_results import example_results
from huggingface_hub import ModelCard
from PIL import Image

from cellfluxrl import CellFluxPipeline, CellFluxUNet2DModel, MoAClassifier
from cellfluxrl.commands.push import kind_of
from cellfluxrl.data.records import read_record, write_record
from cellfluxrl.evaluation.results import SCHEMA_VERSION
from cellfluxrl.hub.cards import parse_card
from cellfluxrl.hub.push import copy_records
from cellfluxrl.models.card import classifier_card
from cellfluxrl.pipelines.card import RESULTS_SCHEMA, pipeline_card
from cellfluxrl.training.options import PretrainArguments, RLArguments


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy that a test may add to."""
    return Path(shutil.copytree(saved, tmp_path / "pipeline"))


def card_of(folder: Path, **options: str) -> ModelCard:
    """The card as it would be published, with the checks that it has to pass."""
    return parse_card(pipeline_card(folder, "my-lab/my-cells", **options), "the card", "model")


def metrics_of(card: ModelCard) -> dict[str, float]:
    return {result.metric_type: result.metric_value for result in card.data.eval_results or []}


def test_a_card_without_records_invents_nothing(folder):
    card = card_of(folder)
    assert card.data.eval_results is None
    assert card.data.license is None
    for sentence in (
        "Not evaluated: there is no `results.json`",
        "How it was trained is not recorded",
        "whether it was post-trained with them is not recorded",
        "No licence was given when this was published",
        'CellFluxRLPipeline.from_pretrained("my-lab/my-cells")',
        "The rewards are proxies",
        "the model is over-optimised",
        "dna, tubulin, actin",
        "Images of 16 x 16 pixels and 3 channels",
    ):
        assert sentence in card.text, sentence
    assert "![" not in card.text


def test_the_example_of_a_card_runs(folder, controls):
    (code,) = [
        block.split("```")[0] for block in card_of(folder).text.split("```python\n")[1:] if "from_pretrained" in block
    ]
    values = {"controls": controls.clone()}
    exec(code.replace('"my-lab/my-cells"', repr(str(folder))), values)
    assert len(values["out"].images) == len(controls)


def test_results_are_in_the_card_and_in_what_the_hub_shows(folder, pipeline):
    (folder / "results.json").write_text(json.dumps(example_results(pipeline.unet)))
    card = card_of(folder)
    assert metrics_of(card) == {"kernel": 17.38, "frechet_infinity": 84.0, "combined": 0.75}
    (kernel,) = [result for result in card.data.eval_results if result.metric_type == "kernel"]
    assert (kernel.task_type, kernel.dataset_name, kernel.dataset_split) == ("image-to-image", "my_cells", "test")
    assert kernel.metric_name == "kernel (held out)"
    assert "| `kernel` | 17.4 [17.3, 17.5] | 18.4 [18.3, 18.5] | 19.4 [19.3, 19.5] | lower | held out |" in card.text
    assert "| `frechet_infinity` | 84 | 85 | 86 | lower | held out |" in card.text
    assert "| `judge` | – | – | – | as real | held out |" in card.text
    assert "- **fails**: The cells are as diverse as real cells." in card.text
    assert "2 compounds have fewer than 5 cells." in card.text
    assert "Not evaluated" not in card.text
    assert "/home/somebody" not in card.content


def test_the_second_of_two_compared_models_has_its_own_numbers(folder, pipeline):
    other = CellFluxUNet2DModel.from_preset("tiny", sample_size=16)
    (folder / "results.json").write_text(json.dumps(example_results(other, pipeline.unet)))
    card = card_of(folder)
    assert metrics_of(card)["kernel"] == 16.38
    assert "The base is closer to real cells." in card.text
    assert "as diverse as real cells" not in card.text


def test_results_of_other_weights_are_refused(folder):
    other = CellFluxUNet2DModel.from_preset("tiny", sample_size=16)
    (folder / "results.json").write_text(json.dumps(example_results(other)))
    with pytest.raises(ValueError, match=r"results\.json is of other weights than those beside it"):
        card_of(folder)


@pytest.mark.parametrize("change", [{"schema": "mine"}, {"schema_version": 2}])
def test_results_of_another_kind_are_refused(folder, pipeline, change):
    (folder / "results.json").write_text(json.dumps(example_results(pipeline.unet) | change))
    with pytest.raises(ValueError, match=r"must be a results\.json of `cellfluxrl evaluate`, version 1"):
        card_of(folder)
    assert RESULTS_SCHEMA == ("cellfluxrl/evaluation", SCHEMA_VERSION)


def test_what_the_training_scripts_recorded_is_told(folder, tmp_path, simulated_cells):
    base = tmp_path / "base"
    base.mkdir()
    arguments = PretrainArguments(output_dir=str(base), max_train_steps=7, pretrained_model_name_or_path="org/first")
    write_record(base, "pretrain", arguments, simulated_cells)
    arguments = RLArguments(
        output_dir=str(folder), max_train_steps=9, pretrained_model_name_or_path=str(base), kl_weight=0.25
    )
    write_record(folder, "rl", arguments, simulated_cells)
    (folder / "log.jsonl").write_text('{"step": 9, "loss": 0.25, "distance_to_base": 0.5}\n{"step": 9, "spread": 1}\n')
    (folder / "samples").mkdir()
    for step in ("000025", "000100"):
        Image.new("RGB", (4, 4)).save(folder / f"samples/{step}.png")
    card = card_of(folder)
    assert card.data.license == "apache-2.0"
    assert "post-trained by reinforcement learning with biological rewards" in card.text
    first, second = (card.text.index(s) for s in ("Pretraining by flow matching", "Post-training with biological"))
    assert first < second
    assert "7 steps" in card.text[first:second]
    assert "| `kl_weight` | 0.25 |" in card.text[second:]
    train = simulated_cells["train"]
    assert f"{len(train)} cells of {len(set(train['plate']))} plate (train)" in card.text
    assert "its last step, 9, had `loss` 0.25, `distance_to_base` 0.5" in card.text
    assert "](samples/000100.png)" in card.text
    assert str(tmp_path) not in card.content


def test_what_is_on_the_hub_is_linked_and_folders_are_not(folder, simulated_cells, tmp_path, monkeypatch):
    arguments = RLArguments(pretrained_model_name_or_path="org/base", dataset_name="org/cells")
    write_record(folder, "rl", arguments, simulated_cells)
    card = card_of(folder)
    assert (card.data.base_model, card.data.datasets) == ("org/base", ["org/cells"])
    monkeypatch.chdir(tmp_path)
    for name in ("base", "cells"):
        (tmp_path / "org" / name).mkdir(parents=True)
    write_record(folder, "rl", arguments, simulated_cells)
    monkeypatch.chdir("/")
    card = card_of(folder)
    assert (card.data.base_model, card.data.datasets) == (None, None)


def test_the_licence_of_the_training_data_is_that_of_the_model(folder, simulated_cells, tmp_path):
    data = tmp_path / "my_cells"
    data.mkdir()
    (data / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    write_record(folder, "pretrain", PretrainArguments(dataset_name=str(data)), simulated_cells)
    assert card_of(folder).data.license == "cc-by-4.0"
    assert "\ncc-by-4.0.\n" in card_of(folder).text
    assert card_of(folder, license="mit").data.license == "mit"


def test_crops_of_bbbc021_keep_the_terms_of_their_source(folder, simulated_cells):
    write_record(folder, "pretrain", PretrainArguments(dataset_name="crops"), simulated_cells)
    card = card_of(folder)
    assert (card.data.license, card.data.license_name) == ("other", "bbbc021-terms")
    assert "The terms stated at the source" in card.text
    assert "Caie et al." in card.text


def test_a_base_has_a_card_of_its_own(pipeline, tmp_path):
    base = CellFluxPipeline(pipeline.unet, pipeline.scheduler, pipeline.encoder)
    base.save_pretrained(tmp_path / "base")
    card = card_of(tmp_path / "base")
    assert 'CellFluxPipeline.from_pretrained("my-lab/my-cells")' in card.text
    assert "DiffusionNFT" not in card.text
    assert "reinforcement" not in card.text


@pytest.fixture
def classifier_folder(tmp_path) -> Path:
    MoAClassifier(moas=["DMSO", "Eg5 inhibitors"], width=4).save_pretrained(tmp_path / "moa")
    return tmp_path / "moa"


def test_a_classifiers_card_has_its_measured_accuracy(classifier_folder):
    card = parse_card(classifier_card(classifier_folder, "my-lab/moa"), "the card", "model")
    assert "Not evaluated" in card.text
    assert "- Eg5 inhibitors\n" in card.text
    names = ("accuracy", "balanced_accuracy", "expected_calibration_error")
    metrics = {name: 0.125 * (i + 1) for i, name in enumerate(names)}
    metrics |= {"standard_errors": dict.fromkeys(names, 0.01), "cells": 1600, "temperature": 1.5}
    (classifier_folder / "metrics.json").write_text(json.dumps(metrics | {"calibrated_on": "plate A"}))
    card = parse_card(classifier_card(classifier_folder, "my-lab/moa"), "the card", "model")
    assert metrics_of(card) == {name: metrics[name] for name in names}
    assert "| balanced accuracy | 0.250 ± 0.010 |" in card.text
    assert "On 1,600 cells" in card.text


def test_records_follow_the_weights_that_they_are_of(pipeline, folder, tmp_path):
    (folder / "log.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    same, other = tmp_path / "same", tmp_path / "other"
    loaded = type(pipeline).from_pretrained(folder)
    loaded.save_pretrained(same)
    copy_records(loaded.name_or_path, same)
    assert (same / "log.jsonl").is_file()
    with torch.no_grad():
        next(loaded.unet.parameters()).mul_(2)
    loaded.save_pretrained(other)
    copy_records(loaded.name_or_path, other)
    assert not (other / "log.jsonl").exists()
    copy_records(None, other)
    copy_records("org/pipeline", other)
    assert read_record(other) is None


def test_a_folder_is_recognised_by_its_files(folder, classifier_folder, suite, tmp_path):
    suite.save_pretrained(tmp_path / "suite")
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells/build_report.json").write_text("{}")
    folders = {folder: "pipeline", classifier_folder: "classifier", tmp_path / "suite": "reward suite"}
    for path, kind in {**folders, tmp_path / "cells": "data set"}.items():
        assert kind_of(path) == kind
    with pytest.raises(ValueError, match="it holds: a CompoundEncoder"):
        kind_of(folder / "encoder")
    with pytest.raises(FileNotFoundError, match="did you mean 'suite'"):
        kind_of(tmp_path / "suit")
