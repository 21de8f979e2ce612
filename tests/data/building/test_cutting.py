"""Crops of one plate: illumination, memory, and a map over processes that leaves nothing behind."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from tiny_plates import CROP, DIAMETER, SHAPE, tiny_fields

from cellfluxrl.data.building.cutting import CropSettings, ImageFile, cut_field, cut_plate
from cellfluxrl.data.cells import FIELD_COLUMNS, ROW_COLUMNS, PlateLog
from cellfluxrl.data.processes import process_map

SETTINGS = CropSettings(CROP, CROP, DIAMETER)


def write_fields(folder: Path, images: list[np.ndarray], sites: int = 4):
    """Fields of view on disk: their table, and the files of each."""
    folder.mkdir()
    files = []
    for number, image in enumerate(images):
        files.append(tuple(ImageFile(str(folder / f"{number}_{c}.tif")) for c in range(len(image))))
        for file, channel in zip(files[-1], image, strict=True):
            tifffile.imwrite(file.path, channel)
    table = pd.DataFrame(dict.fromkeys(FIELD_COLUMNS, ""), index=range(len(images)))
    numbers = np.arange(len(images))
    table = table.assign(field=[f"f{n}" for n in numbers], site=numbers % sites + 1, plate="P", is_control=True)
    return table, files


def cut(fields, files, folder: Path, map=map, settings=SETTINGS):
    scratch = folder / "scratch"
    scratch.mkdir()
    log = PlateLog()
    parts = list(cut_plate(fields, files, settings, scratch, log, map))
    assert list(scratch.iterdir()) == []
    images = np.concatenate([cells.images for cells in parts]) if parts else None
    rows = pd.concat([cells.rows for cells in parts], ignore_index=True) if parts else pd.DataFrame()
    return images, rows, log


def tiny_images(count: int) -> list[np.ndarray]:
    return [tiny_fields(number % 20, f"P{number}") for number in range(count)]


# --- illumination ---


def vignette(site: int) -> np.ndarray:
    """Light that falls to a half from one corner, another at each site, to the opposite one."""
    rows, columns = np.meshgrid(np.linspace(0, 1, 128), np.linspace(0, 1, 160), indexing="ij")
    rows, columns = (rows if site % 2 else 1 - rows), (columns if site > 2 else 1 - columns)
    return 1 - (rows + columns) / 4


def equal_nuclei(count: int) -> list[np.ndarray]:
    """Two channels of fields of view with equal nuclei at random places."""
    random = np.random.default_rng(0)
    rows, columns = np.indices((128, 160))
    images = []
    for _ in range(count):
        image = random.normal(1000, 20, (2, 128, 160))
        for row, column in np.indices((3, 4)).reshape(2, -1).T * (38, 38) + 22 + random.integers(-5, 6, (12, 2)):
            image[0][(rows - row) ** 2 + (columns - column) ** 2 <= (DIAMETER / 2) ** 2] += 2000
        images.append(image)
    return images


@pytest.mark.parametrize("count", [24, 80], ids=["of all sites", "of each site"])
def test_light_that_falls_unevenly_is_evened_out(tmp_path, count):
    """The nuclei, all equally bright, are the same grey wherever they lie."""
    light = {number: vignette(number % 4 + 1 if count == 80 else 1) for number in range(count)}
    images = [np.round(image * light[number]).astype(np.uint16) for number, image in enumerate(equal_nuclei(count))]
    fields, files = write_fields(tmp_path / "images", images)
    pictures, rows, log = cut(fields, files, tmp_path)
    assert log.warnings == []
    place = rows["y"].astype(int), rows["x"].astype(int)
    lit = np.array([light[int(f[1:])][y, x] for f, y, x in zip(rows["field"], *place, strict=True)])
    middle = slice(CROP // 2 - 1, CROP // 2 + 2)
    raw = np.concatenate([cut_field(image, SETTINGS).crops for image in images])[:, 0, middle, middle].mean(
        axis=(1, 2)
    )
    on_nucleus = raw / lit > 2500
    assert on_nucleus.mean() > 0.9
    grey, raw = pictures[on_nucleus, 0, middle, middle].mean(axis=(1, 2)), np.sqrt(raw[on_nucleus])
    assert raw.max() > 1.25 * raw.min()
    assert np.std(grey) / np.mean(grey) < 0.3 * np.std(raw) / np.mean(raw)


def test_with_few_fields_light_is_left_alone_and_the_report_says_so(tmp_path):
    fields, files = write_fields(tmp_path / "images", tiny_images(19))
    *_, log = cut(fields, files, tmp_path)
    assert log.warnings == ["illumination was not corrected: 20 fields of view are needed, the plate has 19"]


# --- fields ---


def test_crops_are_cut_around_the_nuclei():
    image = tiny_fields(3, "P")
    found = cut_field(image, SETTINGS)
    assert found.crops.shape == (4, 3, CROP, CROP)
    rows, columns = np.nonzero(image[0] > 100)
    distance = np.linalg.norm(found.centres[:, None] - np.stack([rows, columns], axis=1), axis=2)
    assert ((distance <= DIAMETER / 2).sum(axis=1) > 60).all()  # a whole disc lies around each
    for crop, (row, column) in zip(found.crops, np.floor(found.centres + 0.5).astype(int), strict=True):
        np.testing.assert_array_equal(crop[:, CROP // 2, CROP // 2], image[:, row, column])
        np.testing.assert_array_equal(crop[:, 0, 0], image[:, row - CROP // 2, column - CROP // 2])


def test_nuclei_near_the_border_are_counted_not_cut():
    found = cut_field(tiny_fields(3, "P"), CropSettings(40, 40, DIAMETER))
    assert (len(found.crops), found.near_border) == (1, 3)
    assert cut_field(tiny_fields(3, "P"), CropSettings(100, 100, DIAMETER)).crops.shape == (0, 3, 100, 100)


def test_8_bits_are_spread_over_16():
    image = (tiny_fields(3, "P") >> 4).astype(np.uint8)
    crops = cut_field(image, SETTINGS).crops
    assert crops.dtype == np.uint16
    assert crops.max() == 257 * int(image.max())


def test_rows_and_pictures_do_not_depend_on_processes(tmp_path):
    fields, files = write_fields(tmp_path / "images", tiny_images(30))
    (tmp_path / "a").mkdir()
    images, rows, log = cut(fields, files, tmp_path / "a")
    assert list(rows.columns) == list(ROW_COLUMNS)
    assert (log.fields, log.cells, len(images)) == (30, 120, 120)
    assert rows["field"].tolist() == [f"f{n}" for n in range(30) for _ in range(4)]
    (tmp_path / "b").mkdir()

    def map_backwards(function, items):
        """As a pool may do it: the last item first."""
        items = list(items)
        return iter([function(item) for item in reversed(items)][::-1])

    other_images, other_rows, other_log = cut(fields, files, tmp_path / "b", map_backwards)
    np.testing.assert_array_equal(images, other_images)
    pd.testing.assert_frame_equal(rows, other_rows)
    assert log == other_log


def test_a_plate_without_nuclei_gives_nothing(tmp_path):
    fields, files = write_fields(tmp_path / "images", [np.full((3, *SHAPE), 100, np.uint16)] * 3)
    images, _, log = cut(fields, files, tmp_path)
    assert images is None
    assert (log.fields, log.cells, log.problems) == (3, 0, [])


def test_fields_unlike_most_are_left_out_even_where_only_they_have_nuclei(tmp_path):
    empty = np.full((3, *SHAPE), 100, np.uint16)
    odd = (tiny_fields(0, "P") >> 4).astype(np.uint8)
    fields, files = write_fields(tmp_path / "images", [empty, odd, empty])
    log = PlateLog()
    (tmp_path / "scratch").mkdir()
    assert list(cut_plate(fields, files, SETTINGS, tmp_path / "scratch", log)) == []
    (problem,) = log.problems
    assert problem["field"] == "f1"
    assert "64 x 80 pixels of 8 bits, most of the plate's have 64 x 80 pixels of 16 bits" in problem["reason"]


def test_memory_does_not_grow_with_the_number_of_fields(tmp_path):
    peaks = []
    for count in (16, 128):
        folder = tmp_path / str(count)
        folder.mkdir()
        fields, files = write_fields(folder / "images", tiny_images(count))
        (folder / "scratch").mkdir()
        tracemalloc.start()
        for _ in cut_plate(fields, files, SETTINGS, folder / "scratch", PlateLog()):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    one_field = 3 * SHAPE[0] * SHAPE[1] * 2
    # The 112 further fields hold 3.4 MB, their crops 1.5 MB.
    assert peaks[1] - peaks[0] < 10 * one_field


# --- processes ---


def square(number: int) -> int:
    return number**2


def fail_at_three(number: int) -> int:
    if number == 3:
        raise ValueError("three is not allowed")
    return number


def end_process(number: int) -> int:
    os._exit(1)


@pytest.mark.parametrize("num_proc", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_results_come_in_order_and_little_is_worked_ahead(num_proc):
    taken = []

    def items():
        for number in range(50):
            taken.append(number)
            yield number

    with process_map(num_proc) as map_ahead:
        for number, result in enumerate(map_ahead(square, items())):
            assert result == number**2
            assert len(taken) <= number + 1 + 2 * num_proc
    assert len(taken) == 50


@pytest.mark.slow
def test_errors_of_processes_are_those_of_the_function():
    with process_map(2) as map_ahead:
        results = map_ahead(fail_at_three, range(10))
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ValueError, match="three is not allowed"):
            next(results)
        assert list(map_ahead(square, [3])) == [9]


@pytest.mark.slow
def test_a_process_that_is_killed_is_an_error_with_advice():
    advice = "ended unexpectedly: where memory ran out, a smaller num_proc"
    with pytest.raises(ChildProcessError, match=advice), process_map(2) as map_ahead:
        list(map_ahead(end_process, range(4)))


def test_at_least_one_process():
    with pytest.raises(ValueError, match="num_proc must be at least 1, got 0"), process_map(0):
        pass
