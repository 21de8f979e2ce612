"""ZIP archives read without trusting them."""

from __future__ import annotations

import stat
import struct
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, FileIO
from pathlib import Path, PurePosixPath

from cellfluxrl.data.building.downloads import ArchiveError
from cellfluxrl.errors import unknown_name
from cellfluxrl.files import refusal_of_name

MAX_ENTRIES = 20_000  # a plate of BBBC021 has 720
MAX_DIRECTORY_BYTES = 8 << 20
MAX_ENTRY_BYTES = 64 << 20
MAX_TOTAL_BYTES = 16 << 30
MAX_RATIO = 200
RATIO_FREE_BYTES = 8 << 20  # a black image of 2.6 MB shrinks a thousandfold and harms nobody
LOCAL_HEADER_BYTES = 30  # without the name
ENCRYPTED = 0x1 | 0x40  # bits of an entry's flags


class PlateArchive:
    """A ZIP archive from the internet, read entry by entry in memory; nothing is ever written to disk.

    Opening refuses, with an `ArchiveError` that names the file and the entry, what an honest archive of images never
    has: more or larger entries than the constants above allow, entries that overlap, compress too well, or are
    encrypted, links, names that lead out of a folder, the same name twice. Names that differ in case alone differ.
    Not safe to share between threads or processes: each opens it again.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "Week4_27821.zip")
        >>> with zipfile.ZipFile(path, "w") as zip_file:
        ...     zip_file.writestr("Week4_27821/B02_s1_w1.tif", b"pixels")
        >>> with PlateArchive(path) as archive:
        ...     archive.names(), archive.read("B02_s1_w1.tif")
        (['Week4_27821/B02_s1_w1.tif'], b'pixels')
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._file = BoundedReader(FileIO(self.path))
        try:
            with _damage_as_archive_error(str(self.path)):
                self._zip = zipfile.ZipFile(self._file)
                _check_directory(self._zip)
        except BaseException:
            self._file.close()
            raise
        self._file.limit = MAX_ENTRY_BYTES + 1
        files = [e for e in self._zip.infolist() if not e.is_dir() and not e.filename.startswith("__MACOSX/")]
        self._entries = {entry.filename: entry for entry in files}
        self._by_base_name = defaultdict(list)
        for entry in files:
            self._by_base_name[PurePosixPath(entry.filename).name].append(entry)

    def __enter__(self) -> PlateArchive:
        return self

    def __exit__(self, *exception: object) -> None:
        self._zip.close()
        self._file.close()

    def names(self) -> list[str]:
        """Full names of the files, in the archive's order, without folders and what macOS adds (`__MACOSX/`)."""
        return list(self._entries)

    def read(self, name: str) -> bytes:
        """Read one file by its full name, or by what follows the last `/` if that is unique; checks the CRC-32."""
        entry = self._entries.get(name)
        if entry is None:
            entries = self._by_base_name.get(name, [])
            if not entries:
                raise ArchiveError(f"{self.path}: {unknown_name('file', name, self._entries)}")
            if len(entries) > 1:
                full_names = ", ".join(sorted(e.filename for e in entries))
                raise ArchiveError(f"{self.path}: {name!r} could be any of {full_names}")
            entry = entries[0]
        with _damage_as_archive_error(f"{self.path}, entry {entry.filename!r}"):
            with self._zip.open(entry) as file:
                # Asked for a number of bytes, zipfile inflates no more than that, whatever the stream holds.
                data = file.read(entry.file_size + 1)
            if len(data) != entry.file_size:
                raise ArchiveError(f"holds {len(data)} bytes, {entry.file_size} declared")
        return data


class BoundedReader(BufferedReader):
    """Bounds the memory that one read takes: `ZipFile` reads the archive's directory at once, whatever its size."""

    limit = MAX_DIRECTORY_BYTES

    def read(self, size: int | None = -1) -> bytes:
        """As many bytes as are asked for, if they are not too many."""
        if size is None or size < 0:
            size = 1 << 17  # zipfile looks for the end record in the last 64 KiB
        if size > self.limit:
            raise ArchiveError(f"asks for {size} bytes at once, at most {self.limit} allowed")
        return super().read(size)


@contextmanager
def _damage_as_archive_error(where: str) -> Iterator[None]:
    """What `zipfile` raises for damaged files; RuntimeError stands for encrypted and for unsupported entries."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, ValueError, OSError) as error:
        raise ArchiveError(f"{where}: {str(error) or type(error).__name__}") from error


def _check_directory(archive: zipfile.ZipFile) -> None:
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES:
        raise ArchiveError(f"has {len(entries)} entries, at most {MAX_ENTRIES} allowed")
    names = set()
    for entry in entries:
        reason = _refusal(entry)
        if entry.filename in names:
            reason = "the name occurs twice"
        if reason:
            raise ArchiveError(f"entry {entry.orig_filename!r}: {reason}")
        names.add(entry.filename)
    total = sum(entry.file_size for entry in entries)
    if total > MAX_TOTAL_BYTES:
        raise ArchiveError(f"unpacks to {total} bytes, at most {MAX_TOTAL_BYTES} allowed")
    by_offset = sorted(entries, key=lambda entry: entry.header_offset)
    ends = [entry.header_offset + LOCAL_HEADER_BYTES + entry.compress_size for entry in by_offset]
    starts = [entry.header_offset for entry in by_offset[1:]] + [archive.start_dir]
    for entry, end, following in zip(by_offset, ends, starts, strict=True):
        if entry.header_offset < 0 or end > following:
            raise ArchiveError(f"entry {entry.filename!r}: overlaps another or lies outside of the file")


def _refusal(entry: zipfile.ZipInfo) -> str | None:
    """Why an entry is not read, from its record in the archive's directory alone."""
    for name in (entry.orig_filename, entry.filename):  # zipfile cuts at NUL and may take another name from an extra
        for part in name.removesuffix("/").split("/"):  # that of a folder ends in one
            if reason := refusal_of_name(part):
                return f"{part!r} in its name: {reason}"
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a link or another special file"
    if entry.flag_bits & ENCRYPTED:
        return "encrypted"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"compression method {entry.compress_type}; only 0 (stored) and 8 (deflate) are read"
    if entry.file_size > MAX_ENTRY_BYTES:
        return f"{entry.file_size} bytes, at most {MAX_ENTRY_BYTES} allowed"
    if entry.file_size > max(RATIO_FREE_BYTES, MAX_RATIO * entry.compress_size):
        return f"{entry.compress_size} bytes unpack to {entry.file_size}, at most {MAX_RATIO} times as many allowed"
    return None
