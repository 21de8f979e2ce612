"""Images of every kind, from every place, get the scores that the suite gives their pixels."""

import re

import datasets
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cellfluxrl.data.compounds import CONTROL
from cellfluxrl.data.image_files import ImagesToScore, images_of_dataset, images_of_files
from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.loading import load_split
from cellfluxrl.rewards import scoring
from cellfluxrl.rewards.biological import REWARD_NAMES
from cellfluxrl.rewards.figures import score_sheet, score_violins, worst_and_best
from cellfluxrl.rewards.scoring import score_images, summarize_scores, write_parquet
from cellfluxrl.rewards.suite import RewardSuite

CHANNELS = ("dna", "tubulin", "actin")
MOA = "DNA damage"


@pytest.fixture(scope="module")
def cells(simulated_cells) -> datasets.Dataset:
    """Six treated cells of each of two mechanisms, and six controls."""
    names = simulated_cells["test"]["moa"]
    rows = [i for moa in (CONTROL, MOA, "Epithelial") for i in [i for i, n in enumerate(names) if n == moa][:6]]
    return simulated_cells["test"].select(rows)


@pytest.fixture(scope="module")
def pixels(cells) -> np.ndarray:
    return np.asarray(open_images(cells))


def in_memory(pixels, channels=CHANNELS, **columns) -> datasets.Dataset:
    image = datasets.Array3D(shape=pixels.shape[1:], dtype="uint8", id=",".join(channels))
    features = {"image": image, **{name: datasets.Value("string") for name in columns}}
    return datasets.Dataset.from_dict({"image": list(pixels), **columns}, features=datasets.Features(features))


def rewards_of(table: pd.DataFrame) -> np.ndarray:
    return table[[*(f"reward_{name}" for name in REWARD_NAMES), "combined"]].to_numpy()


def expected_rewards(suite, pixels, moas, **options) -> np.ndarray:
    scores = suite(pixels, moa=moas, **options)
    return np.stack([scores[name].numpy() for name in (*REWARD_NAMES, "combined")], axis=1)


# --- data sets ---


@pytest.mark.parametrize("form", ["deviation", "energy"])
def test_a_data_set_gets_the_scores_of_its_images(suite, cells, pixels, form):
    images, left_out = images_of_dataset(cells, suite.channel_names)
    table = score_images(images, suite, form=form, batch_size=5)
    assert left_out == 0
    np.testing.assert_allclose(rewards_of(table), expected_rewards(suite, pixels, cells["moa"], form=form), atol=1e-4)
    for column in ("compound", "concentration", "plate", "well", "moa"):
        assert table[column].tolist() == cells[column]
    assert table["source"].tolist() == [f"row {i}" for i in range(18)]
    z = suite.statistics(pixels, moa=cells["moa"]).numpy()
    np.testing.assert_allclose(table[[f"z_{name}" for name in suite.statistic_names]], z, atol=1e-4)
    assert (table["nucleus_count"] >= 0).all()
    assert table.attrs == {"form": form, "group_by": [], "skipped": []}


@settings(max_examples=8, deadline=None)
@given(order=st.permutations(range(18)), batch_size=st.integers(1, 20), form=st.sampled_from(["deviation", "energy"]))
def test_neither_order_nor_batches_change_a_score(suite, cells, pixels, order, batch_size, form):
    moas = [cells["moa"][i] for i in order]
    images = ImagesToScore(pd.DataFrame({"source": order, "moa": moas}), lambda row: pixels[order[row]])
    table = score_images(images, suite, form=form, batch_size=batch_size).sort_values("source")
    np.testing.assert_allclose(rewards_of(table), expected_rewards(suite, pixels, cells["moa"], form=form), atol=1e-4)


def test_channels_are_brought_into_the_suites_order(suite, pixels):
    shuffled = in_memory(pixels[:4, [2, 0, 1]], ("actin", "dna", "tubulin"), moa=[MOA] * 4)
    table = score_images(images_of_dataset(shuffled, suite.channel_names)[0], suite)
    np.testing.assert_allclose(rewards_of(table), expected_rewards(suite, pixels[:4], [MOA] * 4), atol=1e-5)


def test_other_channels_are_refused_and_named(suite, pixels):
    other = in_memory(pixels[:1], ("dna", "er", "actin"), moa=[MOA])
    with pytest.raises(ValueError, match=r"\('dna', 'er', 'actin'\), the suite \('dna', 'tubulin', 'actin'\)"):
        images_of_dataset(other, suite.channel_names)


def test_rows_without_a_moa_are_counted_unless_all_have_one_by_name(suite, pixels):
    unknown = in_memory(pixels[:4], moa=[MOA, "", None, "Epithelial"])
    images, left_out = images_of_dataset(unknown, suite.channel_names)
    assert left_out == 2
    table = score_images(images, suite)
    assert table["source"].tolist() == ["row 0", "row 3"]
    rows = pixels[[0, 3]]
    np.testing.assert_allclose(rewards_of(table), expected_rewards(suite, rows, [MOA, "Epithelial"]), atol=1e-5)
    images, left_out = images_of_dataset(unknown, suite.channel_names, moa="Epithelial")
    assert (left_out, set(images.rows["moa"])) == (0, {"Epithelial"})
    with pytest.raises(ValueError, match="no column 'moa': name one"):
        images_of_dataset(in_memory(pixels[:1]), suite.channel_names)
    with pytest.raises(ValueError, match="no image of the data set has a MoA"):
        images_of_dataset(in_memory(pixels[:1], moa=[""]), suite.channel_names)


def test_saved_data_sets_are_loaded_by_split(cells, tmp_path):
    datasets.DatasetDict(train=cells.take(2), test=cells).save_to_disk(tmp_path / "both")
    cells.save_to_disk(tmp_path / "one")
    assert len(load_split(str(tmp_path / "both"), "train")) == 2
    assert len(load_split(str(tmp_path / "one"), "test")) == 18
    with pytest.raises(ValueError, match=r"unknown split of the data set '.*both': 'tests'; did you mean 'test'"):
        load_split(str(tmp_path / "both"), "tests")
    with pytest.raises(ValueError, match="there is no data set 'nowhere'"):
        load_split("nowhere", "test")


# --- files ---


def save_png(path, image):
    Image.fromarray(np.ascontiguousarray(image[::-1].transpose(1, 2, 0))).save(path)


KINDS = {
    "a.png": save_png,
    "a.tif": lambda path, image: tifffile.imwrite(path, image, photometric="rgb", planarconfig="separate"),
    "a.ome.tif": lambda path, image: tifffile.imwrite(path, image, metadata={"axes": "CYX"}),
    "pages.tiff": lambda path, image: tifffile.imwrite(path, image, photometric="minisblack"),
    "a.npy": np.save,
    "unit.npy": lambda path, image: np.save(path, image / 255),
    "model.npy": lambda path, image: np.save(path, image.astype(np.float32) / 127.5 - 1),
    "a.npz": np.savez,
    "named.npz": lambda path, image: np.savez(path, labels=np.zeros(3), images=image[None]),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_any_kind_gets_the_scores_of_its_pixels(suite, pixels, tmp_path, name):
    KINDS[name](tmp_path / name, pixels[0])
    table = score_images(images_of_files(tmp_path / name, suite.channel_names, moa=MOA), suite)
    np.testing.assert_allclose(rewards_of(table), expected_rewards(suite, pixels[:1], [MOA]), atol=1e-3)


def test_an_array_of_many_images_is_read_one_by_one(suite, pixels, tmp_path):
    floats = pixels.astype(np.float32) / 127.5 - 1
    floats[3] = floats[3].clip(min=0)  # an image that alone might be taken for one in [0, 1]
    np.save(tmp_path / "many.npy", floats)
    table = score_images(images_of_files(tmp_path / "many.npy", suite.channel_names, moa=MOA), suite, batch_size=1)
    assert table["source"].tolist() == [f"many.npy[{i}]" for i in range(18)]
    np.testing.assert_allclose(rewards_of(table), expected_rewards(suite, floats, [MOA] * 18), atol=1e-3)


@pytest.fixture
def folder(tmp_path, pixels):
    """One sub-folder a mechanism, with two good files each."""
    for moa, rows in ((MOA, (6, 7)), ("Epithelial", (12, 13))):
        (tmp_path / "images" / moa).mkdir(parents=True)
        save_png(tmp_path / "images" / moa / "a.png", pixels[rows[0]])
        np.save(tmp_path / "images" / moa / "b.npy", pixels[rows[1]])
    return tmp_path / "images"


BAD = {
    "cut.png": (lambda p, good: p.write_bytes(good[: len(good) // 2]), "damaged"),
    "text.png": (lambda p, good: p.write_text("no image"), "not a PNG"),
    "grey.png": (lambda p, good: Image.new("L", (16, 16)).save(p), "mode 'L'"),
    "small.png": (lambda p, good: Image.new("RGB", (12, 16)).save(p), r"\(16, 12\) pixels"),
    "text.tif": (lambda p, good: p.write_text("no image"), "not a TIFF"),
    "planes.tif": (lambda p, good: tifffile.imwrite(p, np.zeros((2, 16, 16), np.uint8)), r"\(N, 3, H, W\)"),
    "wide.tif": (
        lambda p, good: tifffile.imwrite(p, np.zeros((3, 16, 16), np.uint16), photometric="minisblack"),
        "uint16",
    ),
    "colours.tif": (lambda p, good: tifffile.imwrite(p, np.zeros((16, 16, 3), np.uint8), photometric="rgb"), "planes"),
    "empty.npy": (lambda p, good: p.write_bytes(b""), "No data"),
    "objects.npy": (lambda p, good: np.save(p, np.array([{}]), allow_pickle=True), "object"),
    "flat.npy": (lambda p, good: np.save(p, np.zeros(5)), "an array of"),
    "nan.npy": (lambda p, good: np.save(p, np.full((3, 16, 16), np.nan)), "not finite"),
    "two.npz": (lambda p, good: np.savez(p, a=np.zeros(1), b=np.zeros(1)), "name that of the images 'images'"),
}


def test_bad_files_are_named_and_the_others_scored(suite, folder, pixels):
    good = (folder / MOA / "a.png").read_bytes()
    for name, (write, _) in BAD.items():
        write(folder / MOA / name, good)
    tifffile.imwrite(folder / MOA / "cut.tif", pixels[0], photometric="rgb", planarconfig="separate")
    (folder / MOA / "cut.tif").write_bytes((folder / MOA / "cut.tif").read_bytes()[:-200])
    table = score_images(images_of_files(folder, suite.channel_names), suite, batch_size=3)
    assert table["source"].tolist() == [f"{moa}/{name}" for moa in (MOA, "Epithelial") for name in ("a.png", "b.npy")]
    expected = expected_rewards(suite, pixels[[6, 7, 12, 13]], table["moa"].tolist())
    np.testing.assert_allclose(rewards_of(table), expected, atol=1e-5)
    skipped = {reason.split(":")[0].removeprefix(f"{MOA}/"): reason for reason in table.attrs["skipped"]}
    assert set(skipped) == {*BAD, "cut.tif"}
    assert "truncated" in skipped["cut.tif"]
    for name, (_, reason) in BAD.items():
        assert re.search(reason, skipped[name]), skipped[name]


def test_nothing_but_bad_files_is_an_error(suite, tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(ValueError, match=r"none of the 1 images can be scored; the first: a.png: damaged"):
        score_images(images_of_files(tmp_path, suite.channel_names, moa=MOA), suite)
    (tmp_path / "a.png").rename(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"no image can be read of the 1 files; the first: a.npy"):
        images_of_files(tmp_path, suite.channel_names, moa=MOA)
    (tmp_path / "a.npy").unlink()
    with pytest.raises(ValueError, match="holds no images"):
        images_of_files(tmp_path, suite.channel_names, moa=MOA)


def test_a_table_names_moas_and_keeps_its_columns(suite, folder, pixels):
    table = folder / "images.csv"
    table.write_text(f"file,moa,well\n{MOA}/a.png,Epithelial,B02\nEpithelial/b.npy,{MOA},B03\nlost.png,{MOA},B04\n")
    scored = score_images(images_of_files(folder, suite.channel_names, table=table), suite)
    assert scored["well"].tolist() == ["B02", "B03"]
    expected = expected_rewards(suite, pixels[[6, 13]], ["Epithelial", MOA])
    np.testing.assert_allclose(rewards_of(scored), expected, atol=1e-5)
    assert scored.attrs["skipped"] == ["lost.png: there is no such file"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,moa\na.png,DMSO\n", r"the columns \['file'\] are missing"),
        ("file,moa\na.png,\n", "line 2: moa '': it is needed"),
        ("file,moa\n", "no rows"),
        (None, "there is no file"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(suite, folder, content, message):
    if content is not None:
        (folder / "images.csv").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        images_of_files(folder, suite.channel_names, table=folder / "images.csv")


def test_loose_files_need_a_moa(suite, folder):
    (folder / "loose.png").touch()
    with pytest.raises(ValueError, match=r"nothing says the MoA of 'loose.png'.*--moa.*--table"):
        images_of_files(folder, suite.channel_names)


def test_a_suite_of_one_channel_reads_grey_files(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (16, 16)).astype(np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    images = images_of_files(tmp_path / "a.png", ("dna",), moa=MOA)
    assert np.array_equal(images.read(0), image[None])


# --- arguments ---


class Spy:
    """Reads images and counts how many."""

    def __init__(self, pixels, broken_at=None):
        self.pixels, self.broken_at, self.reads = pixels, broken_at, 0

    def __call__(self, row):
        self.reads += 1
        if self.reads == self.broken_at:
            raise KeyboardInterrupt
        return self.pixels[row]


@pytest.mark.parametrize(
    ("moa", "options", "message"),
    [
        ("DNA damages", {}, "unknown MoA 'DNA damages'; did you mean 'DNA damage'"),
        (MOA, {"form": "energi"}, "unknown reward form 'energi'; did you mean 'energy'"),
        (MOA, {"form": "energy", "group_by": ["wells"]}, "unknown column 'wells'; did you mean 'well'"),
        (MOA, {"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_mistakes_are_found_before_anything_is_read(suite, pixels, moa, options, message):
    spy = Spy(pixels)
    rows = pd.DataFrame({"source": "x", "moa": [MOA, moa], "well": "B02"})
    with pytest.raises(ValueError, match=message):
        score_images(ImagesToScore(rows, spy), suite, **options)
    assert spy.reads == 0


def test_no_more_images_than_a_batch_are_in_memory(suite, pixels, monkeypatch):
    sizes = []
    measure = suite.measure

    def spied(images, *arguments, **options):
        sizes.append(len(images))
        return measure(images, *arguments, **options)

    monkeypatch.setattr(suite, "measure", spied)
    rows = pd.DataFrame({"source": [f"{i}" for i in range(18)], "moa": MOA})
    score_images(ImagesToScore(rows, Spy(pixels)), suite, form="energy", batch_size=4)
    assert sizes == [4, 4, 4, 4, 2]


def test_what_is_finished_is_rescued_from_an_interruption(suite, pixels):
    rescued = []
    rows = pd.DataFrame({"source": [f"{i}" for i in range(18)], "moa": MOA})
    with pytest.raises(KeyboardInterrupt):
        score_images(ImagesToScore(rows, Spy(pixels, broken_at=11)), suite, batch_size=4, rescue=rescued.append)
    (table,) = rescued
    assert table["source"].tolist() == [f"{i}" for i in range(8)]
    np.testing.assert_allclose(rewards_of(table), expected_rewards(suite, pixels[:8], [MOA] * 8), atol=1e-5)


def test_groups_are_compared_with_themselves(suite, pixels):
    rows = pd.DataFrame({"source": [f"{i}" for i in range(8)], "moa": MOA, "well": ["a", "b"] * 4})
    table = score_images(ImagesToScore(rows, Spy(pixels)), suite, form="energy", group_by=["well"])
    for start in (0, 1):
        alone = expected_rewards(suite, pixels[start:8:2], [MOA] * 4, form="energy")
        np.testing.assert_allclose(rewards_of(table)[start::2], alone, atol=1e-4)


def test_a_table_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "scores.parquet"
    table = pd.DataFrame({"combined": [1.0]})
    table.attrs = {"form": "deviation"}
    write_parquet(table, path)
    assert pd.read_parquet(path).attrs == {"form": "deviation"}

    def fails(self, path, **options):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(scoring.pd.DataFrame, "to_parquet", fails)
    with pytest.raises(OSError, match="no space"):
        write_parquet(pd.DataFrame({"combined": [2.0]}), path)
    assert [p.name for p in tmp_path.iterdir()] == ["scores.parquet"]
    assert pd.read_parquet(path)["combined"].tolist() == [1.0]


# --- summary and pictures ---


@pytest.fixture(scope="module")
def scored(suite, cells):
    images, _ = images_of_dataset(cells, suite.channel_names)
    return score_images(images, suite), images


def test_the_summary_has_means_errors_and_what_real_cells_have(suite, scored):
    table, _ = scored
    summary = summarize_scores(table, suite)
    assert summary["MoA"].tolist() == [
        "DMSO",
        "  real cells",
        "DNA damage",
        "  real cells",
        "Epithelial",
        "  real cells",
        "all",
        "  real cells",
    ]
    own = table.loc[table["moa"] == MOA, "reward_roundness"]
    assert summary.loc[2, "roundness"] == f"{own.mean():.2f} ± {own.std() / 6**0.5:.2f}"
    for name, value in suite.real_means([MOA]).items():
        assert summary.loc[3, name] == f"{value:.2f}"
    assert summary["images"].tolist() == ["6", "", "6", "", "6", "", "18", ""]


def test_real_cells_weigh_as_the_scored_moas_do(suite):
    single = {moa: suite.real_means([moa])["nucleus_size"] for moa in (CONTROL, MOA)}
    both = suite.real_means([CONTROL, MOA, MOA])["nucleus_size"]
    assert both == pytest.approx((single[CONTROL] + 2 * single[MOA]) / 3, rel=1e-4)


def test_the_energy_form_has_no_line_of_real_cells(suite, cells):
    table = score_images(images_of_dataset(cells, suite.channel_names)[0], suite, form="energy")
    assert "  real cells" not in set(summarize_scores(table, suite)["MoA"])


def test_the_worst_come_first_and_the_best_follow():
    table = pd.DataFrame({"combined": [0.3, -1.0, 0.9, 0.1, 0.5]})
    assert worst_and_best(table, 2).tolist() == [1, 3, 2, 4]
    assert worst_and_best(table, 8).tolist() == [1, 3, 2, 4]
    assert worst_and_best(table.iloc[:1]).tolist() == [0, 0]


@pytest.mark.parametrize("count", [1, 2, 18])
def test_pictures_are_drawn_of_few_and_of_many(suite, scored, tmp_path, count):
    table, images = scored
    table = table.iloc[:: 18 // count].reset_index(drop=True)
    score_violins(table, suite, tmp_path / "violins.png")
    rows = worst_and_best(table)
    shown = [images.read(int(source.split()[1])) for source in table["source"].iloc[rows]]
    score_sheet(table, rows, shown, suite, tmp_path / "sheet.png")
    for name in ("violins.png", "sheet.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 300
            assert len(set(picture.convert("L").tobytes())) > 10, "nothing is drawn"


@pytest.mark.parametrize("channels", [("dna",), ("dna", "er", "rna", "agp", "mito")])
def test_a_sheet_is_drawn_of_any_number_of_channels(tmp_path, channels):
    config = {"moas": ["DMSO"], "channel_names": list(channels), "width": 4}
    suite = RewardSuite(config, rewards=["containment"])
    images = torch.rand(2, len(channels), 16, 16, generator=torch.Generator().manual_seed(0)).numpy()
    table = pd.DataFrame({"moa": "DMSO", "combined": [0.0, 1.0], "reward_containment": [0.0, 1.0]})
    score_sheet(table, [0, 1], list(images), suite, tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as picture:
        assert len(set(picture.convert("L").tobytes())) > 10
    with pytest.raises(ValueError, match="nothing to draw"):
        score_violins(table, suite, tmp_path / "violins.png")
