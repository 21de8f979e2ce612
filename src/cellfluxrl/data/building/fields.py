"""Read one microscope image, whatever grey TIFF or PNG it is in, or say what is wrong with it."""

from __future__ import annotations

import importlib.util
import io
import logging
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import tifffile
from PIL import Image
from tifffile import COMPRESSION

MAX_PIXELS = 2**26  # 8192 x 8192, more than any camera has
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# What these unpack to is bounded by the size of the image, with imagecodecs; of others, such as JPEG, by nothing.
UNBOUNDED_ALONE = (COMPRESSION.LZW, COMPRESSION.LZMA, COMPRESSION.ZSTD)  # without imagecodecs
DEFLATES = (COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE)
TIFF_COMPRESSIONS = (COMPRESSION.NONE, COMPRESSION.PACKBITS, *DEFLATES, *UNBOUNDED_ALONE)
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # TIFF and BigTIFF, little- and big-endian
PNG_COLOURS = {2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
GREY = "an 8 or 16 bit grey image (unsigned integers) is needed"


class ImageError(ValueError):
    """An image that cannot be read; the message names it and says why."""


def read_image(content: bytes | Path, name: str, page: int | None = None, max_pixels: int | None = None) -> np.ndarray:
    """Read one grey image, `(H, W)` uint8 or uint16, from a TIFF (also BigTIFF and OME-TIFF) or PNG.

    The format is recognised by the first bytes. Damage is an error where the format shows it: a file cut short, a part
    outside the file, a compressed part that decodes to another size, a wrong checksum in a PNG. Changed pixels of an
    uncompressed TIFF cannot be noticed.

    Args:
        content: The file's bytes, or its path.
        name: What error messages call it.
        page: Index of the plane in a file that has several, in the order of the file; not needed if it has one.
        max_pixels: What has more is refused before it is unpacked; `MAX_PIXELS` by default.

    Raises:
        ImageError: If it is damaged or neither TIFF nor PNG, has more than `max_pixels` pixels, is not 8 or 16 bit
            grey (but float, signed, RGB, palette, 1-bit or inverted), has several planes and `page` is not given or
            out of range, or its compression needs the package `imagecodecs` or is not one of
            `TIFF_COMPRESSIONS`.
        OSError: If a path cannot be opened.
    """
    with content.open("rb") if isinstance(content, Path) else io.BytesIO(content) as file:
        try:
            with _quiet():
                image = _read(file, page, MAX_PIXELS if max_pixels is None else max_pixels)
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from None
        except Exception as error:  # on damaged data the two libraries raise whatever they stumble over
            raise ImageError(f"{name}: damaged, {type(error).__name__}: {str(error)[:200]}") from error
    return np.ascontiguousarray(image, dtype=image.dtype.newbyteorder("="))


def _read(file: BinaryIO, page: int | None, max_pixels: int) -> np.ndarray:
    magic = file.read(8)
    file.seek(0)
    if magic == PNG_MAGIC:
        return _read_png(file, page, max_pixels)
    if magic[:4] in TIFF_MAGICS:
        return _read_tiff(file, page, max_pixels)
    raise ImageError(f"neither TIFF nor PNG; it begins with {magic!r}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the log lines of tifffile and the warnings of Pillow about files that are refused or fine."""
    thread = threading.get_ident()

    def of_other_threads(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger = logging.getLogger("tifffile")
    logger.addFilter(of_other_threads)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.removeFilter(of_other_threads)


def _check_size(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise ImageError(f"{height} x {width} pixels, more than the {max_pixels} that are read")
    if height < 1 or width < 1:
        raise ImageError(f"it has no pixels ({height} x {width})")


def _chosen_page(page: int | None, count: int) -> int:
    if page is None and count != 1:
        raise ImageError(f"{count} pages; say which one with page=0 to page={count - 1}")
    if page is not None and not 0 <= page < count:
        raise ImageError(f"page {page} does not exist; it has {count}, counted from 0")
    return page or 0


def _read_tiff(file: BinaryIO, page: int | None, max_pixels: int) -> np.ndarray:
    # OME-XML may name other files; the planes are all that is read here.
    with tifffile.TiffFile(file, is_ome=False) as tiff:
        count = len(tiff.pages)
        # tifffile stops at a page that it cannot find, and calls the pages before it the whole file.
        file.seek(tiff.pages.next_page_offset)
        if file.read(tiff.tiff.offsetsize) != bytes(tiff.tiff.offsetsize):
            raise ImageError("truncated or damaged, its list of pages breaks off")
        frames = _frames_after_first_page(tiff) if count == 1 else 1
        chosen = _chosen_page(page, max(count, frames))
        keyframe = tiff.pages[0 if frames > 1 else chosen]
        if not isinstance(keyframe, tifffile.TiffPage):
            keyframe = keyframe.aspage()
        _check_tiff_page(keyframe, tiff.filehandle.size, max_pixels)
        check_compression(keyframe)
        shape = (keyframe.imagelength, keyframe.imagewidth)
        if frames > 1:
            return _read_frame(file, tiff, keyframe, chosen)
        image = keyframe.asarray()
    if image.shape != shape:
        raise ImageError(f"damaged, its pixels have the shape {image.shape}, not {shape}")
    return image


def _frames_after_first_page(tiff: tifffile.TiffFile) -> int:
    """Number of planes of an ImageJ or tifffile stack whose header describes the first one only; else 1."""
    series = tiff.series[0]
    first = tiff.pages[0]
    return series.size // first.size if series.dataoffset is not None and first.size else 1


def _read_frame(file: BinaryIO, tiff: tifffile.TiffFile, first: tifffile.TiffPage, index: int) -> np.ndarray:
    """Plane `index` of an uncompressed stack; the planes lie one behind the other."""
    file.seek(tiff.series[0].dataoffset + index * first.size * first.dtype.itemsize)
    content = file.read(first.size * first.dtype.itemsize)
    image = np.frombuffer(content, dtype=first.dtype.newbyteorder(tiff.byteorder))
    return image.reshape(first.imagelength, first.imagewidth)


def check_compression(page: tifffile.TiffPage) -> None:
    """Refuse compressed pixels that may unpack to more than the image needs: few bytes can hide very many.

    Raises:
        ImageError: If the compression is not one of `TIFF_COMPRESSIONS` or needs the package `imagecodecs`, or a part
            of the image unpacks to more than its size.
    """
    kind = getattr(page.compression, "name", page.compression)
    if page.compression not in TIFF_COMPRESSIONS:
        names = ", ".join(compression.name for compression in TIFF_COMPRESSIONS)
        raise ImageError(f"{kind} compression; what is read: {names}")
    if importlib.util.find_spec("imagecodecs"):
        return
    if page.compression in UNBOUNDED_ALONE:
        raise ImageError(f'{kind} compression needs imagecodecs: pip install "cellfluxrl[tiff]"')
    if page.compression not in DEFLATES:
        return
    size = int(np.prod(page.chunks)) * page.dtype.itemsize
    file = page.parent.filehandle
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.seek(offset)
        if len(zlib.decompressobj().decompress(file.read(count), size + 1)) > size:
            raise ImageError(f"damaged, a part unpacks to more than the {size} bytes of its pixels")


def _check_tiff_page(page: tifffile.TiffPage, file_size: int, max_pixels: int) -> None:
    """Refuse what is not grey, and what tifffile would fill with zeros, before anything is decoded."""
    _check_size(page.imagelength, page.imagewidth, max_pixels)
    if page.is_tiled:
        _check_size(page.tilelength, page.tilewidth, max_pixels)
    if page.imagedepth != 1:
        raise ImageError(f"a volume of depth {page.imagedepth}; {GREY}")
    if page.samplesperpixel != 1:
        raise ImageError(f"{page.samplesperpixel} samples per pixel (RGB?); {GREY}")
    if page.photometric != tifffile.PHOTOMETRIC.MINISBLACK:
        raise ImageError(f"photometric interpretation {getattr(page.photometric, 'name', page.photometric)}; {GREY}")
    if page.dtype not in (np.uint8, np.uint16) or page.bitspersample not in (8, 16):
        raise ImageError(f"{page.bitspersample} bits per sample of the type {page.dtype}; {GREY}")

    offsets, sizes = page.dataoffsets, page.databytecounts
    tiled = "tiles" if page.is_tiled else "strips"
    if not len(offsets) == len(sizes) == np.prod(page.chunked):
        raise ImageError(f"damaged, {len(offsets)} {tiled} of {len(sizes)} sizes where {np.prod(page.chunked)} belong")
    for offset, size in zip(offsets, sizes, strict=True):
        if offset <= 0 or size <= 0 or offset + size > file_size:
            raise ImageError(f"truncated or damaged, {size} bytes at {offset} of a file of {file_size} bytes")
    pixels = page.size * page.dtype.itemsize
    if page.compression == COMPRESSION.NONE and sum(sizes) < pixels:
        raise ImageError(f"truncated or damaged, {sum(sizes)} bytes for {pixels} bytes of pixels")
    # No codec doubles the size of what it compresses, but few bytes can hide very many: see `zlib`.
    chunk = np.prod(page.chunks) * page.dtype.itemsize
    if page.compression != COMPRESSION.NONE and max(sizes) > 2 * chunk + 1024:
        raise ImageError(f"damaged, {max(sizes)} compressed bytes for {chunk} bytes of pixels")


def _read_png(file: BinaryIO, page: int | None, max_pixels: int) -> np.ndarray:
    content = file.read()
    _check_png_chunks(content)
    width, height, bits, colour = struct.unpack(">IIBB", content[16:26])
    _check_size(height, width, max_pixels)
    _chosen_page(page, 1)
    if colour != 0 or bits not in (8, 16):
        raise ImageError(f"{PNG_COLOURS.get(colour, 'grey')} of {bits} bits; {GREY}")
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        pixels = np.asarray(image)  # 16 bit come as uint16, or as int32 from older versions of Pillow
    if pixels.shape != (height, width):
        raise ImageError(f"damaged, its pixels have the shape {pixels.shape}, not {(height, width)}")
    return pixels.astype(np.uint8 if bits == 8 else np.uint16)


def _check_png_chunks(content: bytes) -> None:
    """Compare every chunk's checksum; Pillow does not for pixels, and then stops where they break off."""
    position, kind = len(PNG_MAGIC), b""
    while kind != b"IEND":
        if position + 12 > len(content):
            raise ImageError("truncated or damaged, it has no end")
        (length,) = struct.unpack(">I", content[position : position + 4])
        kind = content[position + 4 : position + 8]
        end = position + 8 + length
        if position == len(PNG_MAGIC) and (kind, length) != (b"IHDR", 13):
            raise ImageError("damaged, it has no header")
        if content[end : end + 4] != struct.pack(">I", zlib.crc32(content[position + 4 : end])):
            raise ImageError(f"truncated or damaged, wrong checksum of its part {kind!r}")
        position = end + 4
