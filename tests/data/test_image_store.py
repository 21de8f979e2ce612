import io
import logging
import multiprocessing
import os
import pickle
import resource
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cellfluxrl.data import image_store
from cellfluxrl.data.image_store import StoredImages, open_images
from cellfluxrl.data.schema import cell_features

CHANNELS = ("dna", "tubulin", "actin")


def as_stored(image: np.ndarray, published: bool) -> np.ndarray | Image.Image:
    return Image.fromarray(np.ascontiguousarray(image[::-1].transpose(1, 2, 0))) if published else image


def features(size: int, published: bool, channels=CHANNELS) -> datasets.Features:
    return datasets.Features({"image": cell_features(channels, size, published=published)["image"]})


def in_memory(images, published=False) -> datasets.Dataset:
    column = [as_stored(image, published) for image in images]
    return datasets.Dataset.from_dict({"image": column}, features=features(len(images[0][0]), published))


def on_disk(images, folder: Path, published: bool) -> datasets.Dataset:
    """As a user has it: Parquet files, loaded into the cache of `datasets`."""
    folder.mkdir(exist_ok=True)
    in_memory(images, published).to_parquet(folder / "cells.parquet")
    return datasets.load_dataset(
        "parquet", data_files=str(folder / "cells.parquet"), split="train", cache_dir=str(folder / "cache")
    )


def npy_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*images-*"))


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 3, 6, 6), dtype=np.uint8)


@pytest.fixture(params=[False, True], ids=["arrays", "published"])
def cells(request, images, tmp_path) -> datasets.Dataset:
    return on_disk(images, tmp_path, request.param)


def test_images_are_those_of_the_data_set_whatever_its_format(cells, images, tmp_path):
    stored = open_images(cells)
    assert (stored.shape, len(stored), stored.dtype) == (images.shape, 20, np.uint8)
    assert np.array_equal(stored[:], images)
    assert np.array_equal(np.asarray(stored), images)
    assert [path.parent for path in npy_files(tmp_path)] == [Path(cells.cache_files[0]["filename"]).parent]


@pytest.mark.parametrize("published", [False, True], ids=["arrays", "published"])
def test_a_data_set_in_memory_needs_no_file(images, published, tmp_path):
    cells = in_memory(images, published)
    assert np.array_equal(open_images(cells), images)
    assert np.array_equal(open_images(cells, cache_dir=tmp_path)[:], images)
    assert len(npy_files(tmp_path)) == 1


@pytest.mark.parametrize("names", [("dna",), ("dna", "er", "rna", "actin", "mito")], ids=["one", "five"])
def test_any_number_of_channels_can_be_stored(names, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, len(names), 4, 4), dtype=np.uint8)
    cells = datasets.Dataset.from_dict({"image": list(images)}, features=features(4, True, names))
    assert np.array_equal(open_images(cells, cache_dir=tmp_path)[:], images)


@settings(max_examples=15, deadline=None)
@given(data=st.data(), published=st.booleans())
def test_rows_are_chosen_as_in_numpy(data, published, tmp_path_factory, images):
    stored = open_images(in_memory(images, published), cache_dir=tmp_path_factory.mktemp("store"))
    rows = data.draw(st.lists(st.integers(0, 19), max_size=8))
    part = data.draw(st.slices(20))
    assert np.array_equal(stored[np.array(rows, dtype=int)], images[rows])
    assert np.array_equal(stored[part], images[part])
    assert np.array_equal(stored[7], images[7])


def test_rows_that_are_not_there_are_refused(images, tmp_path):
    stored = open_images(in_memory(images), cache_dir=tmp_path)
    for rows, named in (([3, 20], "20"), ([-1, 3], "-1"), (20, "20")):
        with pytest.raises(IndexError, match=rf"row {named} is not in 0\.\.19"):
            stored[rows]
    with pytest.raises(IndexError, match="by row number, got an index of type bool"):
        stored[np.ones(20, dtype=bool)]


def test_selected_filtered_and_shuffled_data_sets_have_their_own_images(cells, images):
    open_images(cells)
    shuffled = cells.shuffle(seed=1)
    order = np.array(cells.add_column("row", range(20)).shuffle(seed=1)["row"])
    assert np.array_equal(open_images(shuffled)[:], images[order])
    assert np.array_equal(open_images(cells.select([7, 3, 3]))[:], images[[7, 3, 3]])
    assert np.array_equal(open_images(cells.select(range(5, 9)))[:], images[5:9])
    odd = cells.filter(lambda row, i: i % 2 == 1, with_indices=True)
    assert np.array_equal(open_images(odd)[:], images[1::2])
    assert np.array_equal(open_images(odd.select([2]))[:], images[[5]])
    assert np.array_equal(open_images(datasets.concatenate_datasets([odd, cells]))[:], [*images[1::2], *images])


def test_images_are_decoded_once_and_in_chunks(cells, images, monkeypatch, tmp_path):
    monkeypatch.setattr(image_store, "CHUNK_BYTES", 7 * images[0].nbytes)
    open_images(cells)
    (path,) = npy_files(tmp_path)
    before = path.stat().st_mtime_ns
    assert np.array_equal(open_images(cells)[:], images)
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("length", [0, 100, 1000, None], ids=["empty", "no image", "truncated", "another array"])
def test_a_file_that_does_not_fit_is_written_again(cells, images, tmp_path, length):
    open_images(cells)
    (path,) = npy_files(tmp_path)
    if length is None:
        np.save(path, images[:19])
    else:
        os.truncate(path, length)
    assert np.array_equal(open_images(cells)[:], images)
    assert npy_files(tmp_path) == [path]


def test_a_file_that_is_cut_while_it_is_open_is_an_error(images, tmp_path):
    stored = open_images(in_memory(images), cache_dir=tmp_path)
    os.truncate(stored.path, stored.path.stat().st_size - 1)
    assert np.array_equal(stored[[0, 18]], images[[0, 18]])
    with pytest.raises(OSError, match="ends within row 19"):
        stored[[0, 19]]


def test_a_data_set_that_was_made_anew_in_place_is_decoded_anew(images, tmp_path):
    # The fingerprint of a data set that `datasets` prepared tells the folder, not what is in it.
    cells = on_disk(images, tmp_path, published=False)
    folder = tmp_path / "decoded"
    assert np.array_equal(open_images(cells, cache_dir=folder)[:], images)
    path = Path(cells.cache_files[0]["filename"])
    Path(on_disk(255 - images, tmp_path / "other", published=False).cache_files[0]["filename"]).replace(path)
    again = datasets.Dataset.from_file(str(path))
    again._fingerprint = cells._fingerprint
    assert np.array_equal(open_images(again, cache_dir=folder)[:], 255 - images)


def test_the_images_can_be_sent_to_another_process_without_their_pixels(tmp_path):
    images = np.zeros((50, 3, 32, 32), dtype=np.uint8)
    sent = pickle.dumps(open_images(in_memory(images), cache_dir=tmp_path))
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent)[:], images)


# --------------------------------------------------------------------------------------------------------------------
# Writing
# --------------------------------------------------------------------------------------------------------------------


def _open(cells: datasets.Dataset, folder: Path, barrier, results) -> None:
    barrier.wait()
    results.put(int(open_images(cells, cache_dir=folder)[:].sum()))


def test_processes_that_write_at_once_do_not_disturb_each_other(images, tmp_path):
    fork = multiprocessing.get_context("fork")
    barrier, results, cells = fork.Barrier(3), fork.Queue(), in_memory(images, published=True)
    processes = [fork.Process(target=_open, args=(cells, tmp_path, barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [results.get(timeout=60) for _ in processes] == [int(images.sum())] * 3
    for process in processes:
        process.join()
    assert len(npy_files(tmp_path)) == 1


def test_what_a_killed_process_left_is_removed_when_it_is_old(images, tmp_path):
    cells = in_memory(images)
    path = open_images(cells, cache_dir=tmp_path).path
    path.unlink()
    old, new = (path.with_name(f".partial-{name}-{path.name}") for name in ("old", "new"))
    old.write_bytes(b"half")
    new.write_bytes(b"half")
    os.utime(old, (0, 0))
    open_images(cells, cache_dir=tmp_path)
    assert npy_files(tmp_path) == sorted([path, new])


def test_a_full_disk_is_a_clear_error_and_leaves_no_half_file(images, tmp_path):
    cells = in_memory(images)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # a limit on the size of a file stops the writing where a full disk would
        resource.setrlimit(resource.RLIMIT_FSIZE, (images.nbytes // 2, limits[1]))
        with pytest.raises(OSError, match=r"0\.0 GB of decoded images cannot be written: .*images-.*npy"):
            open_images(cells, cache_dir=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not npy_files(tmp_path)


def test_a_folder_that_cannot_be_written_is_replaced_with_a_warning(images, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "file").write_text("not a folder")
    cells = in_memory(images)
    with caplog.at_level(logging.WARNING):
        stored = open_images(cells, cache_dir=tmp_path / "file")
    assert "cannot write to" in caplog.text
    assert str(tmp_path / "temporary") in caplog.text
    assert np.array_equal(stored[:], images)
    assert stored.path.parent.parent == tmp_path / "temporary"


# --------------------------------------------------------------------------------------------------------------------
# Data sets that cannot be opened
# --------------------------------------------------------------------------------------------------------------------


def png(mode: str, size: tuple[int, int], length: int | None = None) -> dict:
    file = io.BytesIO()
    Image.effect_noise(size, 50).convert(mode).save(file, format="PNG")
    return {"bytes": file.getvalue()[:length], "path": None}


GOOD = png("RGB", (4, 4))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (png("RGB", (5, 4)), r"row 2 has shape \(3, 4, 5\), those before it \(3, 4, 4\)"),
        (png("L", (4, 4)), "row 2 has mode 'L'"),
        (png("RGBA", (4, 4)), "row 2 has mode 'RGBA'"),
        (png("RGB", (4, 4), length=60), "the image of row 2 cannot be decoded"),
        ({"bytes": b"not a picture", "path": None}, "the image of row 2 cannot be decoded"),
        ({"bytes": None, "path": "absent.png"}, "the image of row 2 cannot be decoded: .*absent.png"),
        (None, "row 2 has no image"),
    ],
    ids=["another size", "grey", "with alpha", "truncated", "not a picture", "absent", "null"],
)
def test_a_picture_that_does_not_fit_is_named(image, message, tmp_path):
    cells = datasets.Dataset.from_dict({"image": [GOOD, GOOD, image, GOOD]}, features=features(4, True))
    with pytest.raises(ValueError, match=message):
        open_images(cells, cache_dir=tmp_path)
    assert not npy_files(tmp_path)


@pytest.mark.parametrize("shape", [(3, 5, 4), (3, 4, 5), (2, 4, 4), (3, 2, 8)])
def test_an_array_that_does_not_fit_is_named(shape, tmp_path, monkeypatch):
    monkeypatch.setattr(image_store, "CHUNK_BYTES", 2 * 48)
    arrays = [np.zeros((3, 4, 4), dtype=np.uint8)] * 3 + [np.zeros(shape, dtype=np.uint8)]
    cells = datasets.Dataset.from_dict({"image": arrays}, features=features(4, False))
    with pytest.raises(ValueError, match=r"row 3 has length \d along axis \d; all must have the shape \(3, 4, 4\)"):
        open_images(cells, cache_dir=tmp_path)
    assert not npy_files(tmp_path)


def test_pictures_hold_three_channels():
    image = datasets.Image(mode="RGB", id="dna,actin")
    cells = datasets.Dataset.from_dict({"image": [GOOD]}, features=datasets.Features({"image": image}))
    with pytest.raises(ValueError, match=r"holds three channels, the data set names 2: \('dna', 'actin'\)"):
        open_images(cells)


def test_an_empty_data_set_has_no_images(images):
    with pytest.raises(ValueError, match="the data set has no rows"):
        open_images(in_memory(images).select([]))


def test_only_a_file_of_numbers_is_opened(tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        StoredImages(tmp_path / "objects.npy")
