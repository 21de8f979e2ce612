"""`cellfluxrl generate`, as users call it; processes that are killed are in test_generate_kill.py."""

import json
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from PIL import Image

from cellfluxrl import CellFluxFlowMatchScheduler, CellFluxRLPipeline, CellFluxUNet2DModel, CompoundEncoder
from cellfluxrl.commands import cli
from cellfluxrl.commands import generate as generate_command
from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.images import to_uint8
from cellfluxrl.data.schema import channel_names_of
from cellfluxrl.pipelines.generation import run as generation
from cellfluxrl.pipelines.generation.files import write_dataset
from cellfluxrl.pipelines.generation.run import candidate_generators
from cellfluxrl.pipelines.selection import StreamingMatch
from cellfluxrl.rewards.biological import REWARD_NAMES

BASE = "--pipeline pipe --output_dir out --steps 1 --batch_size 3 --guidance_scale 1"
TWO = f"generate controls {BASE} --compounds taxol nocodazole"


@pytest.fixture(scope="module")
def pipe(pipeline):
    """With so little noise that there is something to measure in its images."""
    calm = CellFluxFlowMatchScheduler(solver="midpoint", source_noise_scale=0.1)
    calm_pipe = CellFluxRLPipeline(pipeline.unet, calm, pipeline.encoder, pipeline.rewards)
    calm_pipe.set_progress_bar_config(disable=True)
    return calm_pipe


@pytest.fixture(scope="module")
def places(simulated_cells, pipe, tmp_path_factory):
    """A pipeline, a data set, and a folder of its controls."""
    home = tmp_path_factory.mktemp("generate")
    simulated_cells.save_to_disk(home / "cells")
    pipe.save_pretrained(home / "pipe")
    write_controls(home / "controls", simulated_cells, 4)
    return home


def write_controls(folder, simulated_cells, count):
    cells = simulated_cells["test"]
    rows = np.flatnonzero(cells["is_control"])[:count]
    folder.mkdir(parents=True)
    for i, image in enumerate(open_images(cells.select(rows))[:]):
        Image.fromarray(np.ascontiguousarray(image[::-1].transpose(1, 2, 0))).save(folder / f"{i}.png")


@pytest.fixture(scope="module")
def loaded():
    """Pipelines by their names; none is changed."""
    return {}


@pytest.fixture
def run(places, loaded, tmp_path, monkeypatch, capsys):
    """Runs `cellfluxrl` in a folder of its own, where the saved things are too."""
    for place in places.iterdir():
        (tmp_path / place.name).symlink_to(place)
    monkeypatch.chdir(tmp_path)
    load = generate_command._load_pipeline

    def load_once(name, *, cpu):
        if name not in loaded:
            loaded[name] = load(name, cpu=cpu)
        return loaded[name]

    monkeypatch.setattr(generate_command, "_load_pipeline", load_once)

    def call(line: str, status: int = 0) -> str:
        capsys.readouterr()
        assert cli.main(shlex.split(line)) == status, capsys.readouterr().err
        out, error = capsys.readouterr()
        assert "Traceback" not in error
        return error[error.index("cellfluxrl: ") :] if status else out

    return call


def contents(folder="out") -> dict[str, bytes]:
    """All files of a run, but for when and in how many sessions it was made."""
    files = [path for path in sorted(Path(folder).rglob("*")) if path.is_file() and path.name != ".lock"]
    read = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    provenance = json.loads(read.pop("provenance.json"))
    del provenance["sessions"]
    return {**read, "provenance.json": json.dumps(provenance).encode()}


def images_of(table, folder="out") -> np.ndarray:
    return np.stack([tifffile.imread(Path(folder, name)) for name in table["file"]])


class Stop:
    """Lets so many batches be generated, then raises."""

    def __init__(self, monkeypatch, after, error):
        self.left, self.error, self.generate = after, error, generation._generate_batch
        monkeypatch.setattr(generation, "_generate_batch", self)
        self.monkeypatch = monkeypatch

    def __call__(self, *arguments):
        if self.left == 0:
            self.monkeypatch.setattr(generation, "_generate_batch", self.generate)
            raise self.error
        self.left -= 1
        return self.generate(*arguments)


# --- what comes out ---


def test_every_control_under_every_compound(run, pipe):
    printed = run(f"{TWO} --num_per_control 2")
    table = pd.read_parquet("out/generated.parquet")
    assert len(table) == 4 * 2 * 2
    assert not table.duplicated(["control", "compound", "sample"]).any()
    assert sorted(set(table["control"])) == ["0.png", "1.png", "2.png", "3.png"]
    assert set(table["moa"]) == {"Microtubule stabilizers", "Microtubule destabilizers"}
    assert set(table["smiles"]) == {pipe.encoder.config.compounds[c]["smiles"] for c in ("taxol", "nocodazole")}
    assert table["seed"].is_unique
    assert {f"reward_{name}" for name in REWARD_NAMES} | {"combined", "within_range", "selected"} <= set(table)
    assert (table["evaluations"] == pipe.evaluations_of(1, guidance_scale=1)).all()
    images = images_of(table)
    assert images.shape == (16, 3, 16, 16)
    assert images.dtype == np.uint8
    assert len(np.unique(images.reshape(16, -1), axis=0)) == 16
    assert "16 images of 4 controls" in printed
    assert "real cells" in printed
    assert not Path("out/.finished").exists()


def test_an_image_comes_out_of_one_call_of_the_pipeline_again(run, pipe):
    run(f"{TWO} --best_of_n 3")
    row = pd.read_parquet("out/generated.parquet").iloc[5]
    output = pipe(
        Image.open(Path("controls", row["control"])),
        compound=row["compound"],
        best_of_n=3,
        num_inference_steps=1,
        guidance_scale=1,
        generator=candidate_generators(row["seed"], 3),
        batch_size=3,
        output_type="pt",
    )
    np.testing.assert_array_equal(to_uint8(output.images)[0], tifffile.imread(Path("out", row["file"])))
    assert output.selected.tolist() == [row["selected"]]
    assert output.rewards["combined"].item() == pytest.approx(row["combined"], abs=1e-5)
    assert output.num_function_evaluations == row["evaluations"]


def test_an_image_depends_on_its_control_compound_and_sample_alone(run, monkeypatch):
    exact = []  # before they are rounded to 8 bits
    monkeypatch.setattr(generation, "to_uint8", lambda images: (exact.append(images), to_uint8(images))[1])
    keys = ["control_sha256", "compound", "sample"]
    run(f"{TWO} --batch_size 7")  # the last image is alone in its batch
    every = pd.read_parquet("out/generated.parquet").reset_index().set_index(keys)
    every_image = torch.cat(exact)
    exact.clear()
    shutil.copytree("controls", "others")
    Path("others/0.png").unlink()
    Path("others/1.png").rename("others/renamed.png")
    into = BASE.replace("_dir out", "_dir fewer")
    run(f"generate others {into} --compounds AZ138 nocodazole taxol --num_per_control 2 --batch_size 7")
    fewer = pd.read_parquet("fewer/generated.parquet").reset_index().set_index(keys)
    common = every.index.intersection(fewer.index)
    assert len(common) == 6
    assert "renamed.png" in set(fewer.loc[common]["control"])
    rows, other_rows = every.loc[common]["index"].tolist(), fewer.loc[common]["index"].tolist()
    assert torch.equal(every_image[rows], torch.cat(exact)[other_rows])


def test_another_seed_gives_other_images(run):
    run(f"{TWO} --seed 0")
    first = images_of(pd.read_parquet("out/generated.parquet"))
    run(f"{TWO} --seed 1 --overwrite")
    assert not np.array_equal(first, images_of(pd.read_parquet("out/generated.parquet")))


# --- formats ---


def test_a_tiff_names_its_channels(run):
    run(TWO)
    path = Path("out", pd.read_parquet("out/generated.parquet")["file"].iloc[0])
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_ome
        assert re.findall(r'<Channel [^>]*Name="(\w+)"', tiff.ome_metadata) == ["dna", "tubulin", "actin"]
        assert tiff.series[0].axes == "CYX"


@pytest.mark.parametrize("format", ["png", "npy"])
def test_png_and_npy_hold_the_same_pixels_as_tiff(run, format):
    run(TWO)
    expected = images_of(pd.read_parquet("out/generated.parquet"))
    run(f"{TWO} --format {format} --overwrite")
    for name, image in zip(pd.read_parquet("out/generated.parquet")["file"], expected, strict=True):
        if format == "png":
            read = np.asarray(Image.open(Path("out", name)))[..., ::-1].transpose(2, 0, 1)
        else:
            read = np.load(Path("out", name), allow_pickle=False)
        np.testing.assert_array_equal(read, image)
    assert not list(Path("out").rglob("*.tiff"))


def test_a_parquet_data_set_is_loaded_and_scored(run, pipe):
    run(f"generate cells {BASE} --compounds taxol nocodazole --format parquet --max_controls 3")
    table = pd.read_parquet("out/generated.parquet")
    cells = datasets.load_dataset("out", cache_dir="cache")["test"]
    assert channel_names_of(cells) == pipe.channel_names
    assert cells["compound"] == table["compound"].tolist()
    assert cells["well"] == table["control_well"].tolist()
    assert not any(cells["is_control"])
    assert set(table["file"]) == {"data/test/generated-00000.parquet"}
    run("rewards score out --suite pipe/rewards --output scores.parquet")
    scores = pd.read_parquet("scores.parquet")
    # Rewards are those of the images before they were rounded to 8 bits; the classifier's is smooth.
    np.testing.assert_allclose(scores["reward_moa"], table["reward_moa"], atol=0.02)


@pytest.mark.slow
def test_the_images_of_a_compound_are_scored(run):
    run(TWO)
    run("rewards score out/images/taxol --suite pipe/rewards --moa 'Microtubule stabilizers' --output a.parquet")
    assert len(pd.read_parquet("a.parquet")) == 4


@pytest.mark.parametrize(("channels", "size"), [(2, (8, 24)), (3, (8, 24)), (5, (16, 16))])
def test_a_data_set_of_any_channels_and_size_keeps_every_pixel(tmp_path, channels, size):
    images = np.random.default_rng(0).integers(0, 256, (5, channels, *size), dtype=np.uint8)
    treated = {"compound": "taxol", "smiles": "CCO", "concentration": np.nan, "moa": [None, "DNA damage"] * 2 + [None]}
    table = pd.DataFrame({"control": [f"{i}.tiff" for i in range(5)], **treated})
    names = [f"channel_{k}" for k in range(channels)]
    parts = [(table[:3], images[:3]), (table[3:], images[3:])]
    written = write_dataset(tmp_path / "set", parts, names, images.shape[1:])
    assert written == ["data/test/generated-00000.parquet"] * 5
    cells = datasets.load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))["test"]
    np.testing.assert_array_equal(open_images(cells)[:], images)
    assert channel_names_of(cells) == tuple(names)
    assert cells["moa"] == ["", "DNA damage", "", "DNA damage", ""]
    assert cells["field"] == table["control"].tolist()
    assert cells["cell_id"] == [None] * 5  # not known, and not 0


# --- controls ---


def test_the_controls_of_a_data_set_are_taken_and_spread(run, simulated_cells):
    run(f"generate cells {BASE} --compounds taxol --max_controls 3")
    table = pd.read_parquet("out/generated.parquet")
    rows = [int(source.removeprefix("row ")) for source in table["control"]]
    cells = simulated_cells["test"]
    controls = np.flatnonzero(cells["is_control"])
    assert rows == [controls[0], controls[round((len(controls) - 1) / 2)], controls[-1]]
    assert table["control_plate"].tolist() == [cells[row]["plate"] for row in rows]


def test_a_folder_and_a_data_set_of_the_same_cells_give_the_same_images(run):
    run(f"generate cells {BASE} --compounds taxol")
    of_cells = pd.read_parquet("out/generated.parquet").set_index("control_sha256")
    run(f"generate controls {BASE.replace('_dir out', '_dir two')} --compounds taxol")
    of_files = pd.read_parquet("two/generated.parquet").set_index("control_sha256")
    np.testing.assert_array_equal(images_of(of_cells.loc[of_files.index]), images_of(of_files, "two"))


def test_channels_are_brought_into_order_by_name(run):
    Path("planes").mkdir()
    for path in sorted(Path("controls").iterdir()):
        image = np.asarray(Image.open(path))[..., ::-1].transpose(2, 0, 1)
        brightfield = np.zeros_like(image[:1])
        planes = np.concatenate([image[[2]], brightfield, image[[0, 1]]])
        tifffile.imwrite(f"planes/{path.stem}.tiff", planes, photometric="minisblack")
    run(f"generate controls {BASE} --compounds taxol")
    run(
        f"generate planes {BASE.replace('_dir out', '_dir two')} --compounds taxol --channels actin bright dna tubulin"
    )
    first, second = (pd.read_parquet(f"{name}/generated.parquet") for name in ("out", "two"))
    np.testing.assert_array_equal(images_of(first), images_of(second, "two"))


def test_what_cannot_be_read_is_counted_and_named(run, caplog):
    shutil.copytree("controls", "mixed")
    Path("mixed/bad.png").write_text("no image")
    Image.new("RGB", (24, 24)).save("mixed/large.png")
    np.save("mixed/empty.npy", np.zeros((0, 3, 16, 16), np.uint8))
    run(f"generate mixed {BASE} --compounds taxol")
    assert "3 controls cannot be used, and are skipped:" in caplog.text
    assert "bad.png: damaged, or not a PNG" in caplog.text
    assert "large.png: (24, 24) pixels, the rewards were fitted on (16, 16)" in caplog.text
    assert len(pd.read_parquet("out/generated.parquet")) == 4
    assert [line.split(":")[0] for line in json.loads(Path("out/provenance.json").read_text())["skipped"]] == [
        *("empty.npy", "bad.png", "large.png")
    ]


# --- compounds ---


def test_a_file_of_compounds(run, caplog):
    Path("list.csv").write_text(
        "compound,smiles,moa\ntaxol,,\nmine,CC(=O)Oc1ccccc1C(=O)O,DNA damage\nother,CCO,\n", encoding="utf-8"
    )
    run(f"generate controls {BASE} --compounds_file list.csv")
    table = pd.read_parquet("out/generated.parquet").groupby("compound").first()
    assert table.loc["mine", "smiles"] == "CC(=O)Oc1ccccc1C(=O)O"
    assert table.loc["mine", "moa"] == "DNA damage"
    assert table["combined"].notna().to_dict() == {"taxol": True, "mine": True, "other": False}
    assert "1 compounds have no mechanism that the rewards know, and are not scored: other" in caplog.text


def test_concentrations_go_to_a_network_that_sees_them(run, suite, pipe):
    unet = CellFluxUNet2DModel.from_preset("tiny", sample_size=16, condition_dim=1025).eval()
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    CellFluxRLPipeline(unet, pipe.scheduler, CompoundEncoder(log_dose=True), suite).save_pretrained("dosed")
    line = f"generate controls {BASE.replace('pipe ', 'dosed ')} --max_controls 1 --compounds"
    assert "give that of 'taxol' in uM, taxol:0.1" in run(f"{line} taxol", status=2)
    run(f"{line} nocodazole:0.1 nocodazole:3")
    table = pd.read_parquet("out/generated.parquet")
    assert table["concentration"].tolist() == [0.1, 3.0]
    dosed = CellFluxRLPipeline.from_pretrained("dosed")
    for row in table.itertuples():
        output = dosed(
            Image.open("controls/0.png"),
            compound="nocodazole",
            concentration=row.concentration,
            num_inference_steps=1,
            guidance_scale=1,
            generator=candidate_generators(row.seed, 1),
            output_type="pt",
            batch_size=3,
            batch_invariant=True,
        )
        np.testing.assert_array_equal(to_uint8(output.images)[0], tifffile.imread(Path("out", row.file)))
    assert sorted(path.name for path in Path("out/images").iterdir()) == ["nocodazole_0.1_uM", "nocodazole_3_uM"]


def test_compounds_whose_names_make_the_same_folder_name_have_two(run):
    Path("list.csv").write_text("compound,smiles\nA/b,CCO\nA b,CCN\na_B,CCC\n", encoding="utf-8")
    run(f"generate controls {BASE} --compounds_file list.csv")
    assert sorted(path.name for path in Path("out/images").iterdir()) == ["A_b", "A_b_1", "a_B_2"]


# --- choosing and searching ---


@pytest.mark.parametrize("how", ["", "--selection match", "--selection reject", "--search steer", "--search noise"])
def test_choices_and_searches(run, how, caplog):
    run(f"{TWO} --best_of_n 4 {how} --steps 2")
    table = pd.read_parquet("out/generated.parquet")
    assert table["selected"].between(0, 3).all()
    assert set(table["best_of_n"]) == {4}
    assert table["evaluations"].nunique() == 1
    assert "none of 4 candidates" not in caplog.text  # not once a batch: it is in the summary and the table
    assert json.loads(Path("out/provenance.json").read_text())["settings"]["best_of_n"] == 4


def test_a_match_is_one_for_the_whole_run(run, pipe, suite):
    line = f"generate controls {BASE} --compounds taxol --batch_size 2 --num_per_control 4"
    run(f"{line} --best_of_n 3 --selection match")
    table = pd.read_parquet("out/generated.parquet")
    moa, match, chosen = "Microtubule stabilizers", StreamingMatch(), []
    reference = suite.real_appearance(moa)
    for start in range(0, len(table), 2):
        images = [
            pipe(
                Image.open(Path("controls", row.control)),
                compound="taxol",
                num_images_per_control=3,
                num_inference_steps=1,
                guidance_scale=1,
                generator=candidate_generators(row.seed, 3),
                output_type="pt",
            ).images
            for row in table.iloc[start : start + 2].itertuples()
        ]
        vectors = suite.appearance(suite.measure(torch.cat(images), moa=[moa] * 6), [moa] * 6).view(2, 3, -1)
        chosen += match.select(vectors, reference, moa).tolist()
    assert table["selected"].tolist() == chosen
    assert len(set(chosen)) > 1


def test_a_match_remembers_what_an_earlier_session_chose():
    real = torch.tensor([[-1.0], [1.0]])
    known = SimpleNamespace(real_appearance=lambda moa: real, device=torch.device("cpu"))
    candidates = torch.tensor([[[-1.0], [1.0]]])
    for first in (-1.0, 1.0):
        match = generation._RecordingMatch()
        match.remember(pd.DataFrame({"moa": ["DNA damage"], "statistics": [np.float32([first])]}), known)
        assert candidates[0, match.select(candidates, real, "DNA damage")].item() == -first
        assert match.take()["DNA damage"].tolist() == [[-first]]


# --- stopping and going on ---

WAYS = [
    "",
    "--best_of_n 3 --selection match --format parquet",
    pytest.param("--best_of_n 4 --search noise --steps 2 --format png", marks=pytest.mark.slow),
    pytest.param("--best_of_n 4 --search steer --steps 2 --format npy", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("how", WAYS)
def test_an_interrupted_run_goes_on_with_the_same_result(run, monkeypatch, caplog, how):
    run(f"{TWO} {how}")
    expected = contents()
    shutil.rmtree("out")
    for after, finished in ((1, 3), (0, 3), (1, 6)):
        Stop(monkeypatch, after, KeyboardInterrupt())
        assert "the same command resumes" in run(f"{TWO} {how}", status=130)
        assert f"{finished} of 8 images are finished" in caplog.text
        caplog.clear()
        assert not Path("out/generated.parquet").exists()
    run(f"{TWO} {how}")
    assert contents() == expected
    sessions = json.loads(Path("out/provenance.json").read_text())["sessions"]
    assert [session["images"] for session in sessions] == [3, 0, 3, 2]
    assert all(session["seconds"] >= 0 and session["versions"]["torch"] for session in sessions)


def test_a_finished_run_is_left_as_it_is(run, caplog):
    run(TWO)
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")}
    assert "8 images of 4 controls" in run(TWO)
    assert "out is finished: there is nothing to do" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*")} == before


@pytest.mark.parametrize("damage", ["image", "record"])
def test_what_got_lost_is_made_again(run, monkeypatch, damage):
    run(TWO)
    expected = contents()
    shutil.rmtree("out")
    Stop(monkeypatch, 2, KeyboardInterrupt())
    run(TWO, status=130)
    if damage == "image":
        next(Path("out/images").rglob("*.tiff")).unlink()
    else:
        Path("out/.finished/000000.parquet").write_bytes(b"PAR1 and no more")
    run(TWO)
    assert contents() == expected


def test_other_settings_are_refused_unless_to_overwrite(run):
    run(TWO)
    error = run(f"{TWO} --seed 3", status=2)
    assert "'out' holds images that were made with seed 0 instead of 3: choose another --output_dir" in error
    assert "--overwrite" in error
    assert "with other compounds" in run(f"{TWO} AZ138", status=2)
    shutil.copytree("controls", "fewer")
    Path("fewer/0.png").unlink()
    assert "with other controls" in run(TWO.replace("controls", "fewer"), status=2)
    run(f"{TWO} --seed 3 --overwrite")
    assert json.loads(Path("out/provenance.json").read_text())["settings"]["seed"] == 3


def test_another_network_is_refused(run):
    run(TWO)
    pipe = CellFluxRLPipeline.from_pretrained("pipe")
    with torch.no_grad():
        next(pipe.unet.parameters()).mul_(2)
    pipe.save_pretrained("retrained")
    assert "were made with another unet" in run(TWO.replace("pipe ", "retrained "), status=2)


def test_after_an_attempt_without_a_finished_image_settings_may_change(run):
    error = run(f"{TWO} --best_of_n 2 --search steer", status=2)
    assert "steering needs at least two steps" in error
    run(f"{TWO} --best_of_n 2 --search steer --steps 2")


def test_a_folder_with_other_things_is_refused(run):
    Path("out").mkdir()
    Path("out/thesis.tex").write_text("years of work")
    for line in (TWO, f"{TWO} --overwrite"):
        assert "'out' holds ['thesis.tex'], and no generated images" in run(line, status=2)
    assert Path("out/thesis.tex").read_text() == "years of work"


def test_a_full_disk_is_one_clear_line_and_what_is_finished_stays(run, monkeypatch):
    run(TWO)
    expected = contents()
    shutil.rmtree("out")
    Stop(monkeypatch, 1, OSError(28, "No space left on device", "out/images"))
    error = run(TWO, status=2)
    assert (
        "No space left on device: 'out/images'; 3 of 8 images are finished and kept: the same command resumes" in error
    )
    run(TWO)
    assert contents() == expected


# --- mistakes ---


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (TWO.replace("taxol", "taxoll"), "unknown compound 'taxoll'; did you mean 'taxol'?"),
        (f"{TWO}:0.1", "nocodazole:0.1: this network is not conditioned on the concentration; leave it out"),
        (f"{TWO}:much", "with a number in uM, got 'nocodazole:much'"),
        (f"{TWO} taxol", "'taxol' is there more than once"),
        (TWO.replace("pipe ", "nowhere "), "there is no pipeline 'nowhere'"),
        (TWO.replace("pipe ", "controls "), "'controls' is not a pipeline: it has no model_index.json"),
        (TWO.replace("controls", "nowhere"), "there is no data set 'nowhere'"),
        (f"{TWO} --split test", "--split is for data sets"),
        (TWO.replace("controls", "cells") + " --split tests", "did you mean 'test'?"),
        (TWO.replace("controls", "cells") + " --channels a b c", "--channels is for files"),
        (f"{TWO} --channels dna tubulin red", "the network needs the channel 'actin', but --channels names"),
        (f"{TWO} --channels dna dna tubulin actin", "--channels names a channel twice"),
        (f"{TWO} --format tif", "unknown format 'tif'; did you mean 'tiff'?"),
        (f"{TWO} --best_of_n 2 --selection bets", "unknown selection 'bets'; did you mean 'best'?"),
        (f"{TWO} --best_of_n 2 --search steering", "unknown search 'steering'; did you mean 'steer'?"),
        (f"{TWO} --selection match", "selection 'match' needs several candidates: pass best_of_n"),
        (f"{TWO} --search noise", "search 'noise' needs several candidates: pass best_of_n"),
        (f"{TWO} --num_per_control 0", "num_per_control must be at least 1, got 0"),
        (f"{TWO} --max_controls 0", "--max_controls must be at least 1, got 0"),
        (f"{TWO} --seed -1", "seed must be at least 0, got -1"),
        ("generate controls --pipeline pipe --output_dir out --compounds_file nowhere.csv", "there is no file"),
    ],
)
def test_a_mistake_is_one_clear_line_before_any_work(run, line, message):
    assert message in run(line, status=2)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("compound,dose\ntaxol,1\n", "unknown column of list.csv: 'dose'"),
        ("compound,smiles\nmine,CC(\n", "list.csv, line 2: smiles: RDKit cannot read the SMILES 'CC('"),
        ("compound\ntaxol\nmine\n", "unknown compound 'mine'"),
        (
            "compound,concentration\ntaxol,-3\n",
            "list.csv, line 2: concentration '-3': not a number that is at least 0",
        ),
        ("compound,smiles,moa\nmine,CCO,DNA damages\n", "unknown MoA 'DNA damages'; did you mean 'DNA damage'?"),
    ],
)
def test_mistakes_in_a_file_of_compounds_are_named(run, table, message):
    Path("list.csv").write_text(table, encoding="utf-8")
    assert message in run(f"generate controls {BASE} --compounds_file list.csv", status=2)


def test_several_candidates_need_a_mechanism(run):
    Path("list.csv").write_text("compound,smiles\nmine,CCO\n", encoding="utf-8")
    error = run(f"generate controls {BASE} --compounds_file list.csv --best_of_n 2", status=2)
    assert "best_of_n=2 needs a mechanism of action that the rewards know, which 'mine' has not" in error


def test_without_rewards_nothing_is_scored_or_chosen(run, pipe):
    CellFluxRLPipeline(pipe.unet, pipe.scheduler, pipe.encoder).save_pretrained("plain")
    line = TWO.replace("pipe ", "plain ")
    assert "this pipeline has none" in run(f"{line} --best_of_n 2", status=2)
    run(line)
    assert "combined" not in pd.read_parquet("out/generated.parquet")


def test_a_pipeline_of_the_hub_is_recorded_with_its_commit(places, monkeypatch, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / commit).symlink_to(places / "pipe")
    monkeypatch.setattr(
        CellFluxRLPipeline, "download", classmethod(lambda cls, name: str(tmp_path / "snapshots" / commit))
    )
    monkeypatch.chdir(tmp_path)
    command = f"generate {places / 'controls'} {BASE} --compounds taxol --cpu".replace("pipe ", "lab/pipe ")
    assert cli.main(shlex.split(command)) == 0
    provenance = json.loads(Path("out/provenance.json").read_text())
    assert (provenance["pipeline"], provenance["revision"]) == ("lab/pipe", commit)


def test_help_says_what_the_command_does(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["generate", "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("CONTROLS", "--best_of_n", "resumes", "--compounds_file"))
