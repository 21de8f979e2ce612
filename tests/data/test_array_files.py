"""`.npy` and `.npz` files of images: which array is taken, and what is refused before it is unpacked."""

import io
import os
import zipfile

import numpy as np
import pytest

from cellfluxrl.data.array_files import open_array
from cellfluxrl.data.building.fields import ImageError
from cellfluxrl.data.image_files import images_of_files

IMAGES = np.random.default_rng(0).integers(0, 255, (4, 3, 8, 8), np.uint8)
CHANNELS = ("dna", "tubulin", "actin")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("names", [["anything"], ["other", "images"]])
def test_the_array_of_the_images_is_taken(tmp_path, save, names):
    save(tmp_path / "a.npz", **{name: np.zeros(3) for name in names[:-1]}, **{names[-1]: IMAGES})
    np.testing.assert_array_equal(open_array(tmp_path / "a.npz"), IMAGES)


def test_an_npz_of_more_bytes_than_are_read_is_refused_and_an_npy_is_mapped(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", IMAGES)
    np.save(tmp_path / "a.npy", IMAGES)
    assert open_array(tmp_path / "a.npz", IMAGES.nbytes).shape == IMAGES.shape
    with pytest.raises(ImageError, match=rf"{IMAGES.nbytes} bytes unpacked, more than the {IMAGES.nbytes - 1}"):
        open_array(tmp_path / "a.npz", IMAGES.nbytes - 1)
    assert isinstance(open_array(tmp_path / "a.npy", 1), np.memmap)


def test_a_file_that_has_changed_is_opened_anew(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, IMAGES)
    images = images_of_files(path, CHANNELS, "DMSO")
    np.testing.assert_array_equal(images.read(3), IMAGES[3])
    np.savez(path, IMAGES[:2][::-1])
    os.utime(path, ns=(1, 1))
    np.testing.assert_array_equal(images.read(0), IMAGES[1])
    with pytest.raises(ImageError, match="held more than 2 images"):
        images.read(3)


def written(compression: int, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("images.npy", content)
    return file.getvalue()


def as_npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


WHOLE = written(zipfile.ZIP_DEFLATED, as_npy(IMAGES))
DAMAGED = {
    "cut": WHOLE[:-40],
    "changed": WHOLE[:100] + bytes([WHOLE[100] ^ 255]) + WHOLE[101:],
    "lzma": written(zipfile.ZIP_LZMA, as_npy(IMAGES)),
    "bzip2": written(zipfile.ZIP_BZIP2, as_npy(IMAGES)),
    "pickle": written(zipfile.ZIP_STORED, as_npy(np.array([{"a": 1}], dtype=object))),
    "no array": written(zipfile.ZIP_STORED, b"these are notes"),
    "header": written(zipfile.ZIP_STORED, b"\x93NUMPY\x01\x00\x04\x00{{{("),
    "version": written(zipfile.ZIP_STORED, as_npy(IMAGES).replace(b"NUMPY\x01", b"NUMPY\x03")),
    "notes": b"these are notes",
    "empty": b"",
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_named_and_left_out(tmp_path, kind):
    np.save(tmp_path / "good.npy", IMAGES)
    (tmp_path / "bad.npz").write_bytes(DAMAGED[kind])
    images = images_of_files(tmp_path, CHANNELS, "DMSO")
    assert len(images.rows) == len(IMAGES)
    (skipped,) = images.skipped
    assert skipped.startswith("bad.npz: ")


def test_an_image_of_more_values_than_are_read_is_left_out(tmp_path):
    np.save(tmp_path / "good.npy", IMAGES)
    array = np.lib.format.open_memmap(tmp_path / "large.npy", "w+", np.uint8, (3, 4096, 4096))
    del array
    (skipped,) = images_of_files(tmp_path, CHANNELS, "DMSO").skipped
    assert skipped.startswith("large.npy: an image of shape (3, 4096, 4096) has more than the 16777216 values")
