"""Downloads that resume and are verified."""

from __future__ import annotations

import errno
import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

import requests
import urllib3
from filelock import FileLock
from tqdm.auto import tqdm

from cellfluxrl.files import contained_path, file_sha256, refusal_of_name

ATTEMPTS = 5  # of one call, before it gives up on a connection that keeps breaking
BACKOFF_SECONDS = 0.5  # doubled at every further attempt
TIMEOUT_SECONDS = (30, 60)  # to connect, and without receiving a byte
CHUNK_BYTES = 1 << 18
TRANSIENT_STATUSES = (429, 500, 502, 503, 504)
RECORD_NAME = "SHA256SUMS"


class DownloadError(OSError):
    """A server that does not answer, refuses, or stops midway. What has arrived is kept."""


class ArchiveError(ValueError):
    """A file that is not what was published, is damaged, or is not safe to read."""


def download(url: str, path: Path, sha256: str | None = None, *, progress: bool = True) -> Path:
    """Download a file, resuming where an earlier call has stopped; one that exists is verified and left as it is.

    What arrives is kept in `<path>.part`, and what the server said of the file (size; ETag or Last-Modified) in
    `<path>.part.json`, so that a file that has changed on the server in the meantime is never spliced: it is begun
    anew. `path` appears only once everything is there. Of several processes one downloads and the others wait.

    Raises:
        DownloadError: If the server refuses, cannot be reached, or breaks the connection again and again.
        OSError: If the disk is full (`errno.ENOSPC`); what has arrived is kept.
        ArchiveError: If the file does not have this SHA-256. A download is then deleted, a file that existed is not.
        ValueError: If `url` or `sha256` cannot be one.
    """
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ValueError(f"cannot download {url!r}: allowed are http:// and https:// addresses")
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"{sha256!r} is not a SHA-256: it has 64 hexadecimal digits")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, part = Path(f"{path}.lock"), Path(f"{path}.part")
    if not path.exists():
        with FileLock(lock):
            if not path.exists():
                _download_part(url, part, progress=progress)
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


def verified_download(url: str, folder: Path, checksums: Mapping[str, str], *, progress: bool = True) -> Path:
    """Download a file into a folder, and notice at every later call if it is no longer the same.

    Its SHA-256 must be the one in `checksums` (by file name). For a file that is published without one, the SHA-256 of
    the first download is appended to `folder/SHA256SUMS` and must hold from then on (`sha256sum -c` reads that file
    too). A file that somebody else has put there is recorded as it is. The file is read in full at every call, about a
    second for 1 GB: cheap beside what is done with a plate, and it notices damage that leaves size and date alone.

    Raises as [`download`], and `ValueError` if `url` does not end in a usable file name.
    """
    folder = Path(folder)
    name = _file_name(url)
    record = folder / RECORD_NAME
    recorded = read_checksums(record) if record.exists() else {}
    expected = checksums.get(name, recorded.get(name))
    path = download(url, contained_path(folder, name), expected, progress=progress)
    if expected is None:
        line_break = "\n" if record.exists() and not record.read_bytes().endswith(b"\n") else ""
        with open(record, "a", encoding="utf-8") as lines:
            lines.write(f"{line_break}{file_sha256(path)}  {name}\n")
    return path


def read_checksums(path: Path) -> dict[str, str]:
    """SHA-256 by file name of a file as `sha256sum` writes it; lines that are empty or begin with `#` are comments."""
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


def _verify(path: Path, sha256: str | None, what: str) -> None:
    if sha256 is not None and (found := file_sha256(path)) != sha256.lower():
        raise ArchiveError(f"{what} has SHA-256 {found}, expected {sha256.lower()}")


def _file_name(url: str) -> str:
    name = unquote(urlsplit(url).path.rpartition("/")[2])
    reason = refusal_of_name(name)
    if reason or name.startswith(".") or name == RECORD_NAME:
        raise ValueError(f"{url!r} does not end in a file name that can be used: {name!r}{reason and f', {reason}'}")
    return name


def _download_part(url: str, part: Path, *, progress: bool) -> None:
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
                if _request_rest(session, url, part, progress=progress):
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


def _request_rest(session: requests.Session, url: str, part: Path, *, progress: bool) -> bool:
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
