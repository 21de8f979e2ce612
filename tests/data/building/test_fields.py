"""Images that can be read are read exactly; all others are refused by name, whatever is wrong with them."""

import io
import logging
import struct
import subprocess
import sys
import warnings

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cellfluxrl.data.building import fields
from cellfluxrl.data.building.fields import ImageError, read_image

IMAGE = np.random.default_rng(0).integers(0, 4096, (40, 60)).astype(np.uint16)
STACK = np.stack([IMAGE, IMAGE + 1, IMAGE + 2])
COMPRESSION_TAG = 259


def as_tiff(image=IMAGE, *, bigtiff=False, ome=False, imagej=False, byteorder="<", **options) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer, bigtiff=bigtiff, ome=ome, imagej=imagej, byteorder=byteorder) as writer:
        writer.write(image, **({"photometric": "minisblack"} | options))
    return buffer.getvalue()


def as_png(image) -> bytes:
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, "PNG")
    return buffer.getvalue()


SINGLE = {
    "plain": as_tiff(),
    "deflate in strips": as_tiff(compression="zlib", rowsperstrip=7),
    "deflate with predictor": as_tiff(compression="zlib", predictor=True),
    "tiles": as_tiff(tile=(16, 32)),
    "BigTIFF": as_tiff(bigtiff=True),
    "big-endian": as_tiff(byteorder=">"),
    "big-endian BigTIFF": as_tiff(byteorder=">", bigtiff=True, compression="zlib"),
    "16 bit PNG": as_png(IMAGE),
}
SEVERAL = {
    "TIFF": as_tiff(STACK),
    "OME-TIFF": as_tiff(STACK, ome=True, metadata={"axes": "CYX"}),
    "ImageJ stack": as_tiff(STACK, imagej=True),
    "ImageJ stack with one header": as_tiff(STACK, imagej=True, truncate=True),
    "big-endian stack with one header": as_tiff(STACK, byteorder=">", truncate=True),
}


@pytest.mark.parametrize("kind", SINGLE)
def test_one_image_is_read_exactly(kind):
    for page in (None, 0):
        image = read_image(SINGLE[kind], "field", page)
        np.testing.assert_array_equal(image, IMAGE)
        assert image.dtype == np.uint16
        assert image.dtype.isnative


def test_8_bit_stays_8_bit():
    image = (IMAGE // 16).astype(np.uint8)
    for content in (as_tiff(image), as_png(image)):
        assert read_image(content, "field").dtype == np.uint8
        np.testing.assert_array_equal(read_image(content, "field"), image)


@pytest.mark.parametrize("kind", SEVERAL)
def test_a_page_of_several(kind):
    for page in range(3):
        np.testing.assert_array_equal(read_image(SEVERAL[kind], "field", page), STACK[page])
    with pytest.raises(ImageError, match="field: 3 pages; say which one with page=0 to page=2"):
        read_image(SEVERAL[kind], "field")
    for page in (-1, 3):
        with pytest.raises(ImageError, match=f"page {page} does not exist; it has 3"):
            read_image(SEVERAL[kind], "field", page)


def test_a_path_is_read_whatever_it_is_called(tmp_path):
    path = tmp_path / "field.jpg"
    path.write_bytes(SINGLE["plain"])
    np.testing.assert_array_equal(read_image(path, "field"), IMAGE)
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "missing.tif", "field")


WRONG_KINDS = {
    "neither TIFF nor PNG": b"GIF89a and so on",
    "begins with b''": b"",
    "float32": as_tiff(IMAGE.astype(np.float32)),
    "int16": as_tiff(IMAGE.astype(np.int16)),
    "uint32": as_tiff(IMAGE.astype(np.uint32)),
    "1 bits per sample": as_tiff(IMAGE > 2000),
    "3 samples per pixel": as_tiff(np.zeros((8, 8, 3), np.uint8), photometric="rgb"),
    "MINISWHITE": as_tiff(photometric="miniswhite"),
    "PALETTE": as_tiff((IMAGE // 16).astype(np.uint8), photometric="palette", colormap=np.zeros((3, 256), np.uint16)),
    "RGB of 8 bits": as_png(np.zeros((8, 8, 3), np.uint8)),
    "palette of": as_png(Image.new("P", (8, 8))),
    "grey of 1 bits": as_png(Image.new("1", (8, 8))),
    "page 1 does not exist": None,
}


@pytest.mark.parametrize("reason", WRONG_KINDS)
def test_other_kinds_of_images_are_refused(reason):
    content = WRONG_KINDS[reason]
    with pytest.raises(ImageError, match=f"B02.*{reason}"):
        read_image(SINGLE["16 bit PNG"] if content is None else content, "B02", 1 if content is None else None)


def with_tag(content: bytes, tag: int, value: int) -> bytes:
    """A TIFF with another value of a SHORT tag."""
    with tifffile.TiffFile(io.BytesIO(content)) as tiff:
        offset = tiff.pages[0].tags[tag].valueoffset
    return content[:offset] + struct.pack("<H", value) + content[offset + 2 :]


def test_a_codec_that_is_not_installed_is_named(tmp_path):
    (tmp_path / "lzw.tif").write_bytes(with_tag(SINGLE["plain"], COMPRESSION_TAG, 5))
    code = (
        "import sys; sys.modules['imagecodecs'] = None\n"
        "from cellfluxrl.data.building.fields import read_image\n"
        f"read_image(open({str(tmp_path / 'lzw.tif')!r}, 'rb').read(), 'field')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'field: LZW compression needs imagecodecs: pip install "cellfluxrl[tiff]"' in done.stderr


def test_size_is_checked_before_anything_is_decoded(monkeypatch):
    monkeypatch.setattr(fields, "MAX_PIXELS", IMAGE.size - 1)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", None)
    monkeypatch.setattr(Image, "open", None)
    for kind in ("plain", "deflate in strips", "16 bit PNG"):
        with pytest.raises(ImageError, match="40 x 60 pixels, more than"):
            read_image(SINGLE[kind], "field")


@pytest.mark.parametrize("kind", SINGLE)
def test_every_truncation_is_an_error(kind):
    content = SINGLE[kind]
    for length in range(0, len(content), 97):
        with pytest.raises(ImageError, match=r"^field: "):
            read_image(content[:length], "field")


@pytest.mark.parametrize("kind", SEVERAL)
def test_a_truncated_stack_loses_no_page_silently(kind):
    content = SEVERAL[kind]
    pixels = content.rindex((STACK[2] if "big" not in kind else STACK[2].astype(">u2")).tobytes()[:40])
    for length in range(0, pixels, 397):
        with pytest.raises(ImageError, match=r"^field: "):
            read_image(content[:length], "field", 2)


def test_a_part_that_decodes_to_another_size_is_an_error():
    content = as_tiff(compression="zlib")
    with tifffile.TiffFile(io.BytesIO(content)) as tiff:
        offset = tiff.pages[0].tags["ImageLength"].valueoffset
    for height in (41, 80):
        with pytest.raises(ImageError):
            read_image(content[:offset] + struct.pack("<H", height) + content[offset + 2 :], "field")


@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from(sorted(SINGLE | SEVERAL)),
    changes=st.lists(st.tuples(st.integers(0, 700), st.integers(0, 255)), min_size=1, max_size=6),
    cut=st.one_of(st.none(), st.integers(0, 16000)),
)
def test_damage_is_an_image_error_or_an_image_and_never_printed(kind, changes, cut):
    content = bytearray((SINGLE | SEVERAL)[kind])
    for position, value in changes:
        content[position] = value
    logs, image, message = io.StringIO(), None, ""
    handler = logging.StreamHandler(logs)
    logging.getLogger("tifffile").addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            image = read_image(bytes(content[:cut]), "field", 0)
    except ImageError as error:
        message = str(error)
    finally:
        logging.getLogger("tifffile").removeHandler(handler)
    if image is None:
        assert message.startswith("field: ")
    else:
        assert image.ndim == 2
        assert image.dtype in (np.uint8, np.uint16)
    assert logs.getvalue() == ""


def test_any_changed_byte_of_a_png_is_noticed():
    content = SINGLE["16 bit PNG"]
    for position in range(0, len(content), 61):
        changed = bytearray(content)
        changed[position] ^= 0x10
        with pytest.raises(ImageError):
            read_image(bytes(changed), "field")


@pytest.mark.parametrize("imagecodecs", ["with", "without"])
def test_a_part_that_unpacks_to_more_than_its_pixels_is_damage(tmp_path, imagecodecs):
    content = as_tiff(np.zeros((40, 60), np.uint16), compression="zlib")
    with tifffile.TiffFile(io.BytesIO(content)) as tiff:
        offset = tiff.pages[0].tags["ImageLength"].valueoffset, tiff.pages[0].tags["RowsPerStrip"].valueoffset
    for place in offset:
        content = content[:place] + struct.pack("<H", 20) + content[place + 2 :]
    (tmp_path / "half.tif").write_bytes(content)
    code = (
        f"import sys, pathlib; {'' if imagecodecs == 'with' else 'sys.modules.update(imagecodecs=None)'}\n"
        "from cellfluxrl.data.building.fields import read_image\n"
        f"read_image(pathlib.Path({str(tmp_path / 'half.tif')!r}), 'field')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImageError: field: damaged, " in done.stderr


def test_compressions_whose_size_nothing_bounds_are_not_read():
    with pytest.raises(ImageError, match="field: JPEG compression; what is read: NONE, PACKBITS, ADOBE_DEFLATE"):
        read_image(with_tag(SINGLE["plain"], COMPRESSION_TAG, 7), "field")


def test_a_caller_may_allow_fewer_pixels():
    for kind in ("plain", "16 bit PNG"):
        with pytest.raises(ImageError, match=f"40 x 60 pixels, more than the {IMAGE.size - 1}"):
            read_image(SINGLE[kind], "field", max_pixels=IMAGE.size - 1)
