"""Published archives: downloads that resume and are verified, and ZIP files read without trusting them."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import stat
import struct
import time
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader, FileIO
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import requests
import urllib3
from filelock import FileLock
from tqdm.auto import tqdm

from ..errors import unknown_name
from ..files import contained_path, refusal_of_name

ATTEMPTS = 5  # of one call, before it gives up on a connection that keeps breaking
BACKOFF_SECONDS = 0.5  # doubled at every further attempt
TIMEOUT_SECONDS = (30, 60)  # to connect, and without receiving a byte
CHUNK_BYTES = 1 << 18
TRANSIENT_STATUSES = (429, 500, 502, 503, 504)
RECORD_NAME = "SHA256SUMS"

MAX_ENTRIES = 20_000  # a plate of BBBC021 has 720
MAX_DIRECTORY_BYTES = 8 << 20
MAX_ENTRY_BYTES = 64 << 20
MAX_TOTAL_BYTES = 16 << 30
MAX_RATIO = 200
RATIO_FREE_BYTES = 8 << 20  # a black image of 2.6 MB shrinks a thousandfold and harms nobody
LOCAL_HEADER_BYTES = 30  # without the name
ENCRYPTED = 0x1 | 0x40  # bits of an entry's flags


class DownloadError(OSError):
    """A server that does not answer, refuses, or stops midway. What has arrived is kept."""


class ArchiveError(ValueError):
    """A file that is not what was published, is damaged, or is not safe to read."""


# Downloads


def download(url: str, path: Path, sha256: str | None = None, progress: bool = True) -> Path:
    """
    Download a file, going on where an earlier call has stopped.

    What arrives is kept in `<path>.part`, and what the server said of the file (size; ETag or Last-Modified) in
    `<path>.part.json`, so that a file that has changed on the server in the meantime is never spliced: it is begun
    anew. `path` appears only once everything is there. Of several processes one downloads and the others wait.

    Args:
        url (`str`): With `http://` or `https://`.
        path (`Path`): Where the file goes. If it exists, it is verified and left as it is.
        sha256 (`str`, *optional*): The file's SHA-256, as 64 hexadecimal digits.
        progress (`bool`, defaults to `True`): Show a progress bar, in bytes.

    Returns:
        `Path`: `path`.

    Raises:
        DownloadError: If the server refuses, cannot be reached, or breaks the connection again and again.
        OSError: If the disk is full (`errno.ENOSPC`); what has arrived is kept.
        ArchiveError: If the file does not have this SHA-256. A download is then deleted, a file that existed is not.
        ValueError: If `url` or `sha256` cannot be one.
    """
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ValueError(f"cannot download {url!r}: allowed are http:// and https:// addresses")
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"{sha256!r} is no SHA-256: it has 64 hexadecimal digits")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, part = Path(f"{path}.lock"), Path(f"{path}.part")
    if not path.exists():
        with FileLock(lock):
            if not path.exists():
                _download_part(url, part, progress)
                try:
                    _verify(part, sha256, f"the download of {url}, now deleted,")
                except ArchiveError:
                    _forget(part)
                    raise
                part.replace(path)
                _state_file(part).unlink()
                with suppress(OSError):  # those who wait for it will find the file
                    lock.unlink()
                return path
    _verify(path, sha256, f"{path}, which may be deleted to download it again,")
    return path


def verified_download(url: str, folder: Path, checksums: Mapping[str, str], progress: bool = True) -> Path:
    """
    Download a file into a folder, and notice at every later call if it is no longer the same.

    Its SHA-256 must be the one in `checksums`. For a file that is published without one, the SHA-256 of the first
    download is appended to `folder/SHA256SUMS` and must hold from then on (`sha256sum -c` reads that file too). A file
    that somebody else has put there is recorded as it is. The file is read in full at every call, about a second
    for 1 GB: cheap beside what is done with a plate, and it notices damage that leaves size and date alone.

    Args:
        url (`str`): The last part of its path becomes the name of the file.
        folder (`Path`): Created if need be.
        checksums (`Mapping[str, str]`): SHA-256 by file name, see [`read_checksums`]; may be empty.
        progress (`bool`, defaults to `True`): Show a progress bar.

    Returns:
        `Path`: The file.

    Raises:
        DownloadError, ArchiveError, OSError, ValueError: As [`download`]; or `url` ends in no usable file name.
    """
    folder = Path(folder)
    name = _file_name(url)
    record = folder / RECORD_NAME
    recorded = read_checksums(record) if record.exists() else {}
    expected = checksums.get(name, recorded.get(name))
    path = download(url, contained_path(folder, name), expected, progress)
    if expected is None:
        line_break = "\n" if record.exists() and not record.read_bytes().endswith(b"\n") else ""
        with open(record, "a", encoding="utf-8") as lines:
            lines.write(f"{line_break}{file_sha256(path)}  {name}\n")
    return path


def read_checksums(path: Path) -> dict[str, str]:
    """
    Read a file as `sha256sum` writes it; lines that are empty or begin with `#` say nothing.

    Returns:
        `dict[str, str]`: SHA-256 (64 lower-case digits) by file name, without folders.

    Raises:
        ValueError: If a line is something else, or a file name has two different hashes.
    """
    checksums: dict[str, str] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](?:.*/)?([^/]+)", line)
        if not match:
            raise ValueError(f"{path}, line {number}: expected 64 hexadecimal digits and a file name, got {line!r}")
        name, digest = match[2], match[1].lower()
        if checksums.setdefault(name, digest) != digest:
            raise ValueError(f"{path}, line {number}: a second, different SHA-256 of {name!r}")
    return checksums


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as 64 lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _verify(path: Path, sha256: str | None, what: str) -> None:
    if sha256 is not None and (found := file_sha256(path)) != sha256.lower():
        raise ArchiveError(f"{what} has SHA-256 {found}, expected {sha256.lower()}")


def _file_name(url: str) -> str:
    name = unquote(urlsplit(url).path.rpartition("/")[2])
    reason = refusal_of_name(name)
    if reason or name.startswith(".") or name == RECORD_NAME:
        raise ValueError(f"{url!r} does not end in a file name that can be used: {name!r}{reason and f', {reason}'}")
    return name


def _download_part(url: str, part: Path, progress: bool) -> None:
    retry = urllib3.Retry(
        total=ATTEMPTS, backoff_factor=BACKOFF_SECONDS, status_forcelist=TRANSIENT_STATUSES, raise_on_status=False
    )
    cause: Exception | None = None
    with requests.Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=retry))
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(BACKOFF_SECONDS * 2 ** (attempt - 1))
            try:
                if _request_rest(session, url, part, progress):
                    return
            except urllib3.exceptions.HTTPError as error:  # the connection broke, or went silent
                cause = error
            except requests.RequestException as error:
                raise DownloadError(f"{url}: {error}; {_kept(url, part)}") from error
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    message = f"the disk is full; free some space: {_kept(url, part)}"
                    raise OSError(errno.ENOSPC, message, str(part)) from error
                raise
    raise DownloadError(f"{url}: the connection broke in all of {ATTEMPTS} attempts; {_kept(url, part)}") from cause


def _request_rest(session: requests.Session, url: str, part: Path, progress: bool) -> bool:
    """Ask for what is missing of `part` and append it; whether everything is there now."""
    kept, known = _size(part), _read_state(part, url)
    if kept and kept == known["size"]:
        return True
    headers = {"Accept-Encoding": "identity"}
    resume = kept > 0 and known["validator"] is not None
    if resume:
        headers |= {"Range": f"bytes={kept}-", "If-Range": known["validator"]}
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        status = response.status_code
        if resume and (status == 416 or (status == 206 and not _continues(response, kept, known))):
            _forget(part)  # the file has changed on a server that does not heed If-Range
            return False
        if status != 200 and not (resume and status == 206):
            raise DownloadError(f"{url}: the server answered {status} {response.reason}; {_kept(url, part)}")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise DownloadError(f"{url}: the server encodes it ({response.headers['Content-Encoding']}), unasked")
        if status == 200:
            kept = 0
            part.write_bytes(b"")  # before the state, which must never describe other bytes than these
            known = {"url": url, "size": _announced_size(response), "validator": _validator(response)}
            _state_file(part).write_text(json.dumps(known))
        size = known["size"] if status == 200 else int(response.headers["Content-Range"].rpartition("/")[2])
        name = part.name.removesuffix(".part")
        bar = tqdm(desc=name, total=size, initial=kept, unit="B", unit_scale=True, disable=not progress)
        with bar, open(part, "ab") as file:
            for chunk in response.raw.stream(CHUNK_BYTES, decode_content=False):
                file.write(chunk)
                bar.update(len(chunk))
    return size is None or _size(part) == size


def _continues(response: requests.Response, kept: int, known: dict) -> bool:
    content_range = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    return (
        content_range is not None
        and int(content_range[1]) == kept
        and known["size"] in (None, int(content_range[2]))
        and _validator(response) in (None, known["validator"])
    )


def _announced_size(response: requests.Response) -> int | None:
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else None


def _validator(response: requests.Response) -> str | None:
    etag = response.headers.get("ETag")
    if etag and not etag.startswith("W/"):  # a weak one does not promise the same bytes
        return etag
    return response.headers.get("Last-Modified")


def _state_file(part: Path) -> Path:
    return Path(f"{part}.json")


def _read_state(part: Path, url: str) -> dict:
    with suppress(FileNotFoundError, ValueError):  # one that was cut off counts as none
        known = json.loads(_state_file(part).read_text())
        if isinstance(known, dict) and known.keys() == {"url", "size", "validator"} and known["url"] == url:
            return known
    return {"url": url, "size": None, "validator": None}


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _state_file(part).unlink(missing_ok=True)


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _kept(url: str, part: Path) -> str:
    known, kept = _read_state(part, url), _size(part)
    size = "an unknown number of" if known["size"] is None else known["size"]
    if not kept:
        return "nothing has arrived yet"
    again = "resumes there" if known["validator"] else "begins anew, as the server gives no ETag or Last-Modified"
    return f"{kept} of {size} bytes are kept in {part}, and running the same again {again}"


# ZIP archives


class PlateArchive:
    """
    A ZIP archive from the internet, read entry by entry in memory; nothing is ever written to disk.

    Opening refuses what an honest archive of images never has: more or larger entries than the constants above
    allow, entries that overlap, compress too well, or are encrypted, links, names that lead out of a folder, the same
    name twice. Names that differ only in case are different names. Not safe to share between threads or processes:
    each opens its own.

    Args:
        path (`Path`): The archive.

    Raises:
        ArchiveError: If it is damaged, cut off, no ZIP archive, or refused; names the file, and the entry.

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
        """
        Read one file.

        Args:
            name (`str`): The full name, or the part after the last `/` where only one file ends in it.

        Raises:
            ArchiveError: If there is no such file, more than one, or it is damaged (its CRC-32 is checked).
        """
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
