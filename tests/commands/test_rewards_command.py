"""`cellfluxrl rewards fit` and `score`, as users call them."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from cellfluxrl import RewardSuite
from cellfluxrl.commands import cli
from cellfluxrl.data.image_store import open_images
from cellfluxrl.rewards import scoring
from cellfluxrl.rewards.biological import REWARD_NAMES

MOA = "DNA damage"


@pytest.fixture(scope="module")
def places(simulated_cells, suite, tmp_path_factory):
    """A data set, a classifier, a suite, and a folder of images, saved."""
    home = tmp_path_factory.mktemp("rewards")
    simulated_cells.save_to_disk(home / "cells")
    suite.classifier.save_pretrained(home / "classifier")
    suite.save_pretrained(home / "suite")
    cells = simulated_cells["test"]
    rows = [i for i, moa in enumerate(cells["moa"]) if moa == MOA][:4]
    images = open_images(cells.select(rows))[:]
    (home / "images").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(np.ascontiguousarray(image[::-1].transpose(1, 2, 0))).save(home / "images" / f"{i}.png")
    return home


@pytest.fixture
def run(places, tmp_path, monkeypatch, capsys):
    """Runs `cellfluxrl rewards` in a folder of its own, where the saved things are too."""
    for place in places.iterdir():
        (tmp_path / place.name).symlink_to(place)
    monkeypatch.chdir(tmp_path)

    def call(line: str, status: int = 0) -> str:
        capsys.readouterr()
        assert cli.main(["rewards", *line.split(";")]) == status
        out, error = capsys.readouterr()
        if status:
            assert error.splitlines()[-1].startswith("cellfluxrl: error: ") or status == 130
            assert "Traceback" not in error
        return error.splitlines()[-1] if status else out

    return call


def test_fit_prints_what_it_found_and_saves_a_suite(run, suite, tmp_path):
    printed = run("fit;cells;--classifier;classifier;--output_dir;own;--pixel_size;0.5")
    for moa in suite.moas:
        assert f"  {moa}*" in printed
    assert "* fewer than 30 images: shrunk" in printed
    for name in REWARD_NAMES:
        assert f"\n  {name} " in printed
    own = RewardSuite.from_pretrained("own")
    assert own.weights == suite.weights
    assert own.config.pixel_size == 0.5
    assert "0.5 um" in (tmp_path / "own" / "README.md").read_text()


def test_fit_takes_settings_of_the_segmenter(run):
    run("fit;cells;--classifier;classifier;--output_dir;own;--segmenter_settings;nucleus_sigma=1.75;cell_area=50")
    segmenter = RewardSuite.from_pretrained("own").segmenter
    assert (segmenter.nucleus_sigma, segmenter.cell_area) == (1.75, 50)


def test_fit_leaves_cells_without_a_moa_out_and_counts_them(run, simulated_cells, tmp_path, caplog):
    cells = simulated_cells["train"].map(lambda row, i: {"moa": row["moa"] if i % 10 else ""}, with_indices=True)
    cells.save_to_disk(tmp_path / "partly")
    run("fit;partly;--classifier;classifier;--output_dir;own")
    assert f"{-(-len(cells) // 10)} of {len(cells)} cells have no mechanism of action: left out" in caplog.text
    assert int(RewardSuite.from_pretrained("own").count.sum()) <= len(cells) - -(-len(cells) // 10)


def test_score_of_a_data_set(run, suite, simulated_cells, tmp_path):
    printed = run("score;cells;--suite;suite;--output;out/scores.parquet;--batch_size;50")
    assert "real cells" in printed
    assert "over-optimised" in printed
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "scores.parquet",
        "scores_sheet.png",
        "scores_violins.png",
    ]
    table = pd.read_parquet(tmp_path / "out" / "scores.parquet")
    cells = simulated_cells["test"]
    expected = suite(open_images(cells)[:], moa=cells["moa"])["combined"].numpy()
    np.testing.assert_allclose(table["combined"], expected, atol=1e-4)
    assert {"source", "compound", "concentration", "plate", "well", "moa", "roundness", "z_moa"} <= set(table)


def test_score_of_a_folder_with_a_bad_file(run, tmp_path):
    (tmp_path / "mixed").mkdir()
    for path in (tmp_path / "images").iterdir():
        (tmp_path / "mixed" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "mixed" / "bad.png").write_text("no image")
    printed = run(f"score;mixed;--suite;suite;--moa;{MOA};--output;scores.parquet;--form;energy")
    assert "1 images or files were skipped:\n  bad.png: damaged" in printed
    assert len(pd.read_parquet("scores.parquet")) == 4
    assert "real cells" not in printed


def test_an_interrupted_score_keeps_what_is_finished(run, tmp_path, monkeypatch, caplog):
    def interrupted(images, rows, *others):
        if rows.start:
            raise KeyboardInterrupt
        return read(images, rows, *others)

    read = scoring._read_batch
    monkeypatch.setattr(scoring, "_read_batch", interrupted)
    run(f"score;images;--suite;suite;--moa;{MOA};--output;scores.parquet;--batch_size;3", status=130)
    assert "3 of 4 images are scored: scores_unfinished.parquet" in caplog.text
    assert len(pd.read_parquet("scores_unfinished.parquet")) == 3
    assert not (tmp_path / "scores.parquet").exists()


SCORE = f"score;images;--suite;suite;--moa;{MOA};--output;scores.parquet"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("scores", "unknown rewards command 'scores'; did you mean 'score'?"),
        (SCORE.replace("suite;suite", "suite;nowhere"), "there is no suite 'nowhere': give its folder"),
        (SCORE.replace("suite;suite", "suite;images"), "'images' has no config.json: it is not a suite"),
        (SCORE.replace("suite;suite", "suite;classifier"), "'classifier' is not a suite: it holds a MoAClassifier"),
        (SCORE.replace(MOA, "DNA damages"), "unknown MoA 'DNA damages'; did you mean 'DNA damage'?"),
        (SCORE.replace("images", "nowhere"), "there is no data set 'nowhere'"),
        (SCORE.replace("scores.parquet", "scores.csv"), "--output must end in .parquet, got 'scores.csv'"),
        (f"{SCORE};--form;energi", "unknown reward form 'energi'; did you mean 'energy'?"),
        (f"{SCORE};--group_by;well", "--group_by says which images are compared"),
        (f"{SCORE};--form;energy;--group_by;well", "unknown column 'well'"),
        (f"{SCORE};--batch_size;0", "batch_size must be at least 1, got 0"),
        (f"{SCORE};--pixel_size;-1", "--pixel_size must be above 0, got -1"),
        (f"{SCORE};--split;test", "--split is for data sets"),
        (f"{SCORE};--table;nowhere.csv", "there is no file 'nowhere.csv'"),
        ("score;cells;--suite;suite;--output;a.parquet;--table;x.csv", "--table is for folders of images"),
        ("score;cells;--suite;suite;--output;a.parquet;--split;tests", "did you mean 'test'?"),
        ("score;images;--suite;suite;--output;a.parquet", "nothing says the MoA of '0.png'"),
        ("fit;nowhere;--classifier;classifier;--output_dir;own", "there is no data set 'nowhere'"),
        ("fit;cells;--classifier;nowhere;--output_dir;own", "there is no classifier 'nowhere'"),
        ("fit;cells;--classifier;classifier;--output_dir;own;--segmenter;watershedd", "did you mean 'watershed'?"),
        (
            "fit;cells;--classifier;classifier;--output_dir;own;--segmenter_settings;nucleus_sigm=2",
            "did you mean 'nucleus_sigma'?",
        ),
        (
            "fit;cells;--classifier;classifier;--output_dir;own;--segmenter_settings;nucleus_sigma",
            "--segmenter_settings takes KEY=VALUE, got 'nucleus_sigma'",
        ),
    ],
)
def test_a_mistake_is_one_clear_line(run, line, message):
    assert message in run(line, status=2)


def test_weights_of_another_network_are_refused(run, suite, tmp_path):
    suite.save_pretrained(tmp_path / "other")
    weights = load_file(tmp_path / "other" / "diffusion_pytorch_model.safetensors")
    del weights["classifier.head.weight"]
    save_file(weights, tmp_path / "other" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    line = SCORE.replace("suite;suite", "suite;other")
    assert "the weights of the suite 'other' are those of another version" in run(line, status=2)


def test_the_pixel_size_has_to_be_that_of_the_fit(run, suite, tmp_path):
    sized = RewardSuite(**{**suite.config, "pixel_size": 0.5})
    sized.load_state_dict(suite.state_dict())
    sized.save_pretrained(tmp_path / "sized")
    line = SCORE.replace("suite;suite", "suite;sized")
    assert "0.32 um wide" in run(f"{line};--pixel_size;0.32", status=2)
    run(f"{line};--pixel_size;0.5")


def test_help_says_what_the_commands_do(capsys):
    for arguments, words in ((["--help"], ("fit", "score")), (["score", "--help"], ("--moa", "--table", "PNG"))):
        with pytest.raises(SystemExit) as stopped:
            cli.main(["rewards", *arguments])
        assert stopped.value.code == 0
        printed = capsys.readouterr().out
        assert all(word in printed for word in words)
