"""What the app computes and shows, without a browser; `test_app_browser.py` uses the page."""

import html
import json
import re
import socket
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image
from small_models import IMAGE_SIZE, with_random_weights

from cellfluxrl import (
    CellFluxFlowMatchScheduler,
    CellFluxRLPipeline,
    CellFluxUNet2DModel,
    CompoundEncoder,
    Reward,
    RewardSuite,
)
from cellfluxrl.app import inputs, simulation, views
from cellfluxrl.app.models import Models, find_base, load_models
from cellfluxrl.app.simulation import Sampling, generate
from cellfluxrl.assets import SHIPPED_BASE
from cellfluxrl.commands import app as command
from cellfluxrl.data.images import to_uint8
from cellfluxrl.pipelines.generation.treatments import Treatment
from cellfluxrl.rewards.statistics import REFERENCE_SIZE

QUICK = Sampling(num_images=2, best_of_n=2, num_inference_steps=2)


def small_pipeline(rewards=None, seed: int = 0, encoder: CompoundEncoder | None = None, **unet) -> CellFluxRLPipeline:
    network = CellFluxUNet2DModel.from_preset("tiny", sample_size=IMAGE_SIZE, **unet)
    scheduler = CellFluxFlowMatchScheduler(solver="midpoint")
    pipe = CellFluxRLPipeline(with_random_weights(network, seed), scheduler, encoder or CompoundEncoder(), rewards)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def models(pipeline, suite) -> Models:
    return Models(pipeline, "my/pipeline", small_pipeline(suite, seed=1), "my/base")


@pytest.fixture(scope="module")
def alone() -> Models:
    """A pipeline without rewards and without a base."""
    return Models(small_pipeline(), "my/pipeline")


@pytest.fixture(scope="module")
def custom(simulated_cells, suite) -> Models:
    """A pipeline whose rewards are others than the seven."""
    change = Reward(
        "change_of_app",
        statistic=lambda seen: (seen.images - seen.control).mean(dim=(1, 2, 3)),
        title="Brighter <b>than</b> the control",
        unit="grey levels & more",
    )
    plain = Reward("mean_brightness", score=lambda seen: seen.images.mean(dim=(1, 2, 3)))
    own = RewardSuite.fit(simulated_cells["train"], suite.classifier, rewards=[change, plain])
    return Models(small_pipeline(own), "my/pipeline")


@pytest.fixture(scope="module")
def control(models) -> np.ndarray:
    return inputs.example_controls(models).images[0]


@pytest.fixture(scope="module")
def result(models, control) -> simulation.Result:
    return generate(models, control, "cell <1>", Treatment("taxol"), QUICK)


# --------------------------------------------------------------------------------------------------------------------
# Pipelines
# --------------------------------------------------------------------------------------------------------------------


def test_without_a_demo_the_shipped_base_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    models = load_models(cpu=True)
    assert models.pipe_name == str(SHIPPED_BASE)
    assert list(models.rows) == ["Generated"]
    assert models.scored_moas == []


@pytest.fixture
def saved(tmp_path, pipeline) -> Path:
    """A run that has a pipeline, as `cellfluxrl demo` leaves it."""
    pipeline.save_pretrained(tmp_path / "run/pipeline")
    return tmp_path / "run"


def test_the_base_of_a_demo_is_found_and_chooses_by_the_pipelines_rewards(saved):
    assert find_base(str(saved / "pipeline")) is None
    (saved / "settings.json").write_text(json.dumps({"dataset_name": "simulated"}))
    assert find_base(str(saved / "pipeline")) == str(SHIPPED_BASE)
    small_pipeline().save_pretrained(saved / "base")
    models = load_models(str(saved / "pipeline"), cpu=True)
    assert models.base_name == str(saved / "base")
    assert list(models.rows) == ["Base", "After RL"]
    assert models.base.rewards is models.pipe.rewards


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"channel_names": ("dna", "actin", "tubulin")}, "channel_names"), ({"condition_dim": 8}, "condition_dim")],
)
def test_a_base_for_other_images_or_compounds_is_refused(saved, settings, named):
    encoder = CompoundEncoder(num_bits=settings.get("condition_dim", 1024))
    small_pipeline(encoder=encoder, **settings).save_pretrained(saved / "base")
    with pytest.raises(ValueError, match=named):
        load_models(str(saved / "pipeline"), cpu=True)


def test_a_pipeline_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="there is no pipeline 'nothing_here'"):
        load_models("nothing_here")


# --------------------------------------------------------------------------------------------------------------------
# Controls
# --------------------------------------------------------------------------------------------------------------------


def test_examples_are_cells_of_the_size_and_the_channels_that_the_pipeline_needs(models, alone):
    choices = inputs.example_controls(models)
    assert choices.images.shape == (inputs.EXAMPLES, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert 0 <= choices.images.min() < 0.1 < 0.5 < choices.images.max() <= 1
    assert len(set(choices.names)) == inputs.EXAMPLES
    turned = Models(small_pipeline(channel_names=("actin", "dna", "tubulin")), "turned")
    np.testing.assert_array_equal(
        inputs.example_controls(turned).images, inputs.example_controls(alone).images[:, [2, 0, 1]]
    )
    others = Models(small_pipeline(channel_names=("dna", "er", "mito")), "others")
    assert inputs.example_controls(others) is None


def test_examples_can_be_ones_own(models, control, tmp_path):
    np.save(tmp_path / "mine.npy", control)
    choices = inputs.example_controls(models, str(tmp_path))
    assert choices.names == ["mine.npy"]
    np.testing.assert_allclose(choices.images[0], control, atol=1e-6)


def write_png(path: Path, image: np.ndarray) -> None:
    Image.fromarray(np.ascontiguousarray(image[::-1].transpose(1, 2, 0))).save(path)


WRITERS = {
    "cell.png": write_png,
    "cell.tiff": lambda path, image: tifffile.imwrite(path, image, photometric="minisblack"),
    "cell.npy": np.save,
    "cells.npy": lambda path, image: np.save(path, np.stack([image, image])),
    "cell.npz": lambda path, image: np.savez(path, image),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_upload_is_read_as_it_is(models, control, tmp_path, name):
    WRITERS[name](tmp_path / name, (control * 255).round().astype(np.uint8))
    choices = inputs.read_controls(tmp_path / name, models)
    assert len(choices.images) == (2 if name == "cells.npy" else 1)
    np.testing.assert_allclose(choices.images[0], control, atol=0.002)
    assert all(own.startswith(name) for own in choices.names)


def test_named_channels_of_a_file_are_brought_into_the_networks_order(models, control, tmp_path):
    dna, tubulin, actin = control
    np.save(tmp_path / "five.npy", np.stack([actin, np.zeros_like(dna), dna, np.zeros_like(dna), tubulin]))
    choices = inputs.read_controls(tmp_path / "five.npy", models, " actin, er,dna ,agp,tubulin")
    np.testing.assert_allclose(choices.images[0], control, atol=1e-6)
    with pytest.raises(ValueError, match="needs the channel 'tubulin'"):
        inputs.read_controls(tmp_path / "five.npy", models, "actin, er, dna, agp, mito")
    with pytest.raises(ValueError, match="twice"):
        inputs.read_controls(tmp_path / "five.npy", models, "dna, tubulin, actin, dna, er")


def cut(path: Path, image: np.ndarray) -> None:
    tifffile.imwrite(path, image, photometric="minisblack")
    path.write_bytes(path.read_bytes()[:-300])


def with_nan(path: Path, image: np.ndarray) -> None:
    image = image / np.float32(255)
    image[0, 3, 3] = np.nan
    np.save(path, image)


def pickled(path: Path, _image: np.ndarray) -> None:
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


BAD_UPLOADS = {
    "notes.png": (lambda path, image: path.write_text("these are notes, and no image"), "not a PNG"),
    "notes.tif": (lambda path, image: path.write_text("these are notes, and no image"), "not a TIFF"),
    "cut.tiff": (cut, "truncated|damaged|beyond|corrupt"),
    "empty.png": (lambda path, image: path.write_bytes(b""), "empty"),
    "five.npy": (lambda path, image: np.save(path, np.concatenate([image, image[:2]])), r"5, 16, 16"),
    "two.tiff": (lambda path, image: tifffile.imwrite(path, image[:2], photometric="minisblack"), r"2, 16, 16"),
    "grey.png": (lambda path, image: Image.fromarray(image[0]).save(path), "RGB"),
    "alpha.png": (lambda path, image: Image.new("RGBA", (16, 16)).save(path), "RGBA"),
    "nan.npy": (with_nan, "NaN"),
    "pickle.npy": (pickled, "allow_pickle|pickle|Object arrays"),
    "big.npy": (lambda path, image: np.save(path, image.repeat(2, axis=1).repeat(2, axis=2)), "32 x 32 .*16 x 16"),
    "black.npy": (lambda path, image: np.save(path, 0 * image), "same value"),
    "none.npy": (lambda path, image: np.save(path, image[:, :0]), r"\(3, 0, 16\)"),
    "counts.npy": (lambda path, image: np.save(path, image.astype(np.uint16)), "uint16"),
}


@pytest.mark.parametrize("name", BAD_UPLOADS)
def test_a_bad_upload_is_told_in_words_that_name_the_file_and_not_the_servers_folders(models, control, tmp_path, name):
    write, said = BAD_UPLOADS[name]
    write(tmp_path / name, (control * 255).round().astype(np.uint8))
    with pytest.raises(ValueError, match=said) as error:
        inputs.read_controls(tmp_path / name, models)
    assert name in str(error.value)
    assert str(tmp_path) not in str(error.value)


# --------------------------------------------------------------------------------------------------------------------
# Compounds
# --------------------------------------------------------------------------------------------------------------------


def test_compounds_of_one_mechanism_stand_together(models):
    shown = inputs.compound_choices(models)
    moas = [re.search(r"\((.*)\)$", text).group(1) for text, _ in shown]
    assert moas == sorted(moas)
    assert sorted(name for _, name in shown) == sorted(models.pipe.encoder.names)


def test_a_known_structure_is_recognised_however_it_is_written(models):
    assert inputs.check_smiles("O=S(C)C", models) == "DMSO"
    assert inputs.moa_of_smiles("O=S(C)C", models) == "DMSO"
    assert inputs.check_smiles("CCO", models) is None
    assert inputs.moa_of_smiles("CC(", models) is None
    assert "This is <b>DMSO</b>" in views.compound_html(models, None, "O=S(C)C")


@pytest.mark.parametrize(
    ("smiles", "said"), [("CC(=O", "character 3"), ("C1CC", "unclosed ring"), ("  ", "no SMILES"), ("C" * 501, "501")]
)
def test_a_smiles_that_cannot_be_used_says_why(models, smiles, said):
    with pytest.raises(ValueError, match=said):
        inputs.check_smiles(smiles, models)


def test_a_bad_smiles_is_shown_escaped_and_with_advice(models):
    shown = views.compound_html(models, None, "<b>CC</b>")
    assert 'role="alert"' in shown
    assert "&lt;b&gt;CC" in shown
    assert "<b>CC" not in shown
    assert "choose a known compound" in shown


# --------------------------------------------------------------------------------------------------------------------
# Generation
# --------------------------------------------------------------------------------------------------------------------


def test_every_pipeline_generates_and_is_scored_as_a_call_of_it_is(models, result):
    assert list(result.rows) == ["Base", "After RL"]
    assert result.moa == "Microtubule stabilizers"
    for row in result.rows.values():
        assert row.images.shape == (2, 3, IMAGE_SIZE, IMAGE_SIZE)
        torch.testing.assert_close(row.trajectory[-1], row.images)
        expected = models.pipe.rewards(row.images, [result.moa] * 2)
        torch.testing.assert_close(row.rewards["combined"], expected["combined"])
        assert row.masks.nuclei.shape == (2, IMAGE_SIZE, IMAGE_SIZE)
    assert not torch.equal(result.rows["Base"].images, result.rows["After RL"].images)


def test_a_seed_decides_the_images_and_pipelines_start_from_the_same_noise(models, control, result):
    again = generate(models, control, "cell", Treatment("taxol"), QUICK)
    torch.testing.assert_close(again.rows["After RL"].images, result.rows["After RL"].images, rtol=0, atol=0)
    for own in (again, result):
        starts = [row.trajectory[0] for row in own.rows.values()]
        shared = [i for i in range(2) if own.rows["Base"].selected[i] == own.rows["After RL"].selected[i]]
        torch.testing.assert_close(starts[0][shared], starts[1][shared])
    other = generate(models, control, "cell", Treatment("taxol"), Sampling(2, 2, num_inference_steps=2, seed=1))
    assert not torch.equal(other.rows["After RL"].images, result.rows["After RL"].images)


def test_progress_rises_to_the_end(models, control):
    shares = []
    generate(models, control, "cell", Treatment("taxol"), QUICK, shares.append)
    assert shares == sorted(shares)
    assert 0 < shares[0] < 0.5 < shares[-1] <= 1


def test_a_pasted_structure_is_scored_for_the_mechanism_that_is_expected(models, control):
    scored = generate(models, control, "cell", Treatment("pasted structure", smiles="CCO", moa="DNA damage"), QUICK)
    assert scored.moa == "DNA damage"
    single = Sampling(1, 1, num_inference_steps=1)
    unscored = generate(models, control, "cell", Treatment("pasted structure", smiles="CCO"), single)
    assert unscored.moa is None
    assert "no mechanism was chosen" in views.summary_html(models, unscored)
    assert views.statistics_html(models, unscored) == views.rewards_html(models, unscored) == ""
    with pytest.raises(ValueError, match="set the candidates to 1, or choose a mechanism"):
        generate(models, control, "cell", Treatment("pasted structure", smiles="CCO"), QUICK)


def test_a_pipeline_without_rewards_and_base_shows_its_cells(alone, control):
    result = generate(alone, control, "cell", Treatment("taxol"), Sampling(2, 1, num_inference_steps=1))
    assert list(result.rows) == ["Generated"]
    summary = views.summary_html(alone, result)
    assert "no rewards" in summary
    assert "--base FOLDER_OR_ID" in summary
    assert (
        views.cells_html(result, alone.pipe.channel_names, "dna", with_outlines=True, frame=20).count("<figure>") == 3
    )


def test_a_dose_is_asked_for_where_the_network_knows_doses(control):
    pipe = small_pipeline(encoder=CompoundEncoder(log_dose=True), condition_dim=1025)
    models = Models(pipe, "doses")
    single = Sampling(1, 1, num_inference_steps=1)
    with pytest.raises(ValueError, match="concentration in µM"):
        generate(models, control, "cell", Treatment("taxol"), single)
    low, high = (generate(models, control, "cell", Treatment("taxol", c), single) for c in (0.01, 10.0))
    assert not torch.equal(low.rows["Generated"].images, high.rows["Generated"].images)
    assert "taxol 0.01 uM" in views.summary_html(models, low)
    with pytest.raises(ValueError, match="must be 0 or a finite number"):
        generate(models, control, "cell", Treatment("taxol", -1.0), single)


@pytest.mark.parametrize("wrong", [{"num_images": 9}, {"best_of_n": 0}, {"num_inference_steps": 51}, {"seed": -1}])
def test_more_than_the_page_offers_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)


# --------------------------------------------------------------------------------------------------------------------
# Comparison with real cells
# --------------------------------------------------------------------------------------------------------------------


def test_statistics_are_in_the_units_of_measurement(models, result, suite):
    compared = {s.name: s for s in simulation.compare_statistics(models, result)}
    assert tuple(compared) == suite.statistic_names
    size = compared["nucleus_size"]
    k = suite.moas.index(result.moa)
    column = suite.statistic_names.index("nucleus_size")
    assert len(size.real) == REFERENCE_SIZE
    assert abs(size.real.mean() - float(suite.mean[k, column])) < 0.3 * float(suite.std[k, column])
    assert ((size.real >= size.low) & (size.real <= size.high)).mean() > 0.94
    areas = [np.bincount(labels.ravel())[1:].max(initial=0) for labels in result.rows["Base"].masks.nuclei]
    np.testing.assert_allclose(np.nan_to_num(size.values["Base"]), areas)


def test_other_rewards_than_the_seven_are_shown_by_their_own_titles_and_units(custom, control):
    result = generate(custom, control, "example", Treatment("taxol"), QUICK)
    statistics, rewards = views.statistics_html(custom, result), views.rewards_html(custom, result)
    assert "<b>Brighter &lt;b&gt;than&lt;/b&gt; the control</b><small>grey levels &amp; more</small>" in statistics
    assert "Mean brightness" not in statistics, "it compares no statistic"
    for title in ("Brighter &lt;b&gt;than&lt;/b&gt; the control", "Mean brightness", "Combined"):
        assert f'<th scope="row">{title}</th>' in rewards
    table = views.scores_table(custom, result)
    assert {"reward_change_of_app", "reward_mean_brightness", "combined", "measured_change_of_app"} <= set(table)
    assert table["measured_change_of_app"].iloc[0] == pytest.approx(0, abs=1e-6), "the control beside itself"


def test_what_is_outside_of_real_cells_is_said_in_words():
    values = {
        "Control": np.array([99.0]),
        "Base": np.array([0.0, 1.0]),
        "After RL": np.array([-9.0, 9.0, 8.0, np.nan]),
    }
    statistic = simulation.Statistic("roundness", np.linspace(-1, 1, 400), -1, 1, values)
    assert views._in_words(statistic) == (
        "After RL: 2 above real cells, 1 below, 1 without anything to measure, of 4."
    )
    inside = simulation.Statistic("roundness", np.linspace(-1, 1, 400), -1, 1, {"Base": np.zeros(2)})
    assert views._in_words(inside) == "All within the range of real cells."


def test_a_reward_above_that_of_real_cells_is_said_to_be():
    comparison = {
        "moa": {"Base": 0.5, "After RL": 1.0, "Real cells": 0.95},
        "containment": {"Base": 0.99, "After RL": 0.991, "Real cells": 0.99},
    }
    assert simulation.above_real(comparison, "Base") == []
    assert simulation.above_real(comparison, "After RL") == ["moa"]


def test_the_table_of_rewards_marks_what_is_above_real_cells(models, result):
    shown = views.rewards_html(models, result)
    comparison = simulation.compare_rewards(models, result)
    marks = sum(len(simulation.above_real(comparison, title)) for title in result.rows)
    assert shown.count("above real</span>") == marks
    assert "not better biology" in shown
    assert shown.count("<tr>") == 1 + len(models.pipe.rewards.weights) + 1


# --------------------------------------------------------------------------------------------------------------------
# What is shown, and files
# --------------------------------------------------------------------------------------------------------------------


def test_actin_is_red_tubulin_green_and_dna_blue():
    images = -torch.ones(1, 3, 4, 4)
    images[0, 0, :, 0], images[0, 1, :, 1], images[0, 2, :, 2] = 1, 1, 1
    (shown,) = views.pictures(images, ("dna", "tubulin", "actin"))
    scale = len(shown) // 4
    assert len(shown) >= views.PICTURE_PIXELS
    assert shown[0, ::scale].tolist() == [[0, 0, 255], [0, 255, 0], [255, 0, 0], [0, 0, 0]]
    (dna,) = views.pictures(images, ("dna", "tubulin", "actin"), "dna")
    assert dna[0, ::scale].tolist() == [[255] * 3, [0] * 3, [0] * 3, [0] * 3]


@pytest.mark.parametrize("count", [2, 5])
def test_other_numbers_of_channels_are_shown_too(count):
    names = ("dna", "er", "rna", "agp", "mito")[:count]
    assert views.pictures(torch.zeros(2, count, 16, 16), names).shape == (2, 192, 192, 3)
    assert views.channels_html(np.zeros((count, 16, 16), np.float32), names, "cell").count("<figure>") == count + 1


def test_the_cells_are_shown_with_their_names_and_scores(models, result):
    names = models.pipe.channel_names
    end = views.cells_html(result, names, views.ALL_CHANNELS, with_outlines=True, frame=20)
    assert end.count("<figure>") == 1 + 2 + 2
    assert html.escape("cell <1>") in end
    assert "cell <1>" not in end
    assert f"{result.rows['Base'].rewards['combined'][0]:.2f}" in end
    on_the_way = views.cells_html(result, names, views.ALL_CHANNELS, with_outlines=True, frame=10)
    assert "t = 0.50" in on_the_way
    assert "in range" not in on_the_way.replace("within the range", "")
    plots = views.statistics_html(models, result)
    assert plots.count("data:image/svg+xml") == len(models.pipe.rewards.statistic_names)


def test_messages_escape_what_they_quote_and_keep_the_excerpt():
    shown = views.alert("cannot read <x>\n    CC(\n      ^", "Try again.")
    assert "<p>Cannot read &lt;x&gt;</p><pre>    CC(\n      ^</pre><p>Try again.</p>" in shown
    assert "<p>notes.png: not a PNG</p>" in views.alert("notes.png: not a PNG")


def test_downloads_hold_the_images_as_they_are_and_every_score(models, result, tmp_path):
    tiffs, pngs, scores = views.write_downloads(models, result, tmp_path / "one")
    assert {path.name for path in (tmp_path / "one").iterdir()} == {tiffs.name, pngs.name, scores.name}
    with zipfile.ZipFile(tiffs) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path)
    assert names == [f"{n}.ome.tiff" for n in ("control_1", "base_1", "base_2", "after_rl_1", "after_rl_2")]
    with tifffile.TiffFile(tmp_path / "after_rl_2.ome.tiff") as tiff:
        np.testing.assert_array_equal(tiff.asarray(), to_uint8(result.rows["After RL"].images)[1])
        assert 'Name="tubulin"' in tiff.ome_metadata
    with zipfile.ZipFile(pngs) as archive:
        assert {"control_1.png", "base_2_outlines.png"} < set(archive.namelist())
    table = pd.read_csv(scores)
    assert table["source"].tolist() == ["control", "base", "base", "after rl", "after rl", "real cells (mean)"]
    np.testing.assert_allclose(table["combined"][3:5], result.rows["After RL"].rewards["combined"], rtol=1e-5)
    assert table["smiles"][1] == models.pipe.encoder.config.compounds["taxol"]["smiles"]
    real = models.pipe.rewards.real_means([result.moa])
    assert table["reward_containment"].iloc[-1] == pytest.approx(real["containment"])
    assert {f"measured_{name}" for name in models.pipe.rewards.statistic_names} <= set(table)


# --------------------------------------------------------------------------------------------------------------------
# The command
# --------------------------------------------------------------------------------------------------------------------


def test_without_gradio_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "cellfluxrl\[app\]"'):
        command.main([])


def test_a_port_that_is_taken_is_told_before_anything_is_loaded():
    pytest.importorskip("gradio")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port}.*choose another --port"):
            command.main(["--port", str(port)])
    with pytest.raises(ValueError, match="1 to 65535"):
        command.main(["--port", "70000"])
