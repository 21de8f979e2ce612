"""Downloads from a real server that fails in every way we know of, and ZIP archives that lie."""

import errno
import hashlib
import io
import os
import re
import signal
import socket
import stat
import struct
import subprocess
import tempfile
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from file_server import Answer, FileServer
from hypothesis import given, settings
from hypothesis import strategies as st

from cellfluxrl.data.building import downloads, zip_archive
from cellfluxrl.data.building.downloads import (
    ArchiveError,
    DownloadError,
    download,
    read_checksums,
    verified_download,
)
from cellfluxrl.data.building.zip_archive import PlateArchive
from cellfluxrl.files import file_sha256

CONTENT = np.random.default_rng(0).bytes(1_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
DATE = "Sun, 09 Sep 2001 01:46:40 GMT"  # 1e9 seconds after 1970
CUT = Answer(cut_after=300_000)


@pytest.fixture(scope="module", autouse=True)
def _no_waiting():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downloads, "BACKOFF_SECONDS", 0)
        yield


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "plate.zip").write_bytes(CONTENT)
    with FileServer(folder) as server:
        yield server


def get(server: FileServer, path: Path, sha256: str | None = None) -> Path:
    return download(server.url + "plate.zip", path, sha256, progress=False)


def starts(server: FileServer) -> list[int]:
    return [request.start for request in server.requests]


# Downloads


def test_a_download_leaves_the_file_and_nothing_else(server, tmp_path):
    path = tmp_path / "new" / "folder" / "a.zip"
    assert get(server, path, SHA256.upper()) == path
    assert path.read_bytes() == CONTENT
    assert os.listdir(path.parent) == ["a.zip"]


def test_the_progress_bar_counts_bytes(server, tmp_path, capsys):
    server.script = [CUT]
    download(server.url + "plate.zip", tmp_path / "a.zip")
    shown = capsys.readouterr().err
    assert "a.zip: 100%" in shown
    assert "1.00M/1.00M" in shown
    assert "B/s" in shown
    (tmp_path / "a.zip").unlink()
    get(server, tmp_path / "a.zip")
    assert capsys.readouterr().err == ""


def test_an_existing_file_is_verified_and_kept(server, tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(CONTENT)
    assert get(server, path, SHA256) == path
    path.write_bytes(b"damaged")
    with pytest.raises(ArchiveError, match=rf"a\.zip.*expected {SHA256}"):
        get(server, path, SHA256)
    assert path.read_bytes() == b"damaged"
    assert server.requests == []


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(0, len(CONTENT) - 1), again=st.booleans())
def test_only_what_is_missing_is_asked_for_again(cut, again):
    """Both when one call goes on by itself, and when it gave up and the next call goes on."""
    with tempfile.TemporaryDirectory() as folder, FileServer(Path(folder)) as server:
        (server.folder / "plate.zip").write_bytes(CONTENT)
        path = server.folder / "a.zip"
        server.script = [Answer(cut_after=cut)]
        if again:
            server.script += [Answer(cut_after=0)] * (downloads.ATTEMPTS - 1)
            with pytest.raises(DownloadError):
                get(server, path)
        assert get(server, path, SHA256).read_bytes() == CONTENT
        assert set(starts(server)[1:]) == {cut}
        assert sum(request.sent for request in server.requests) == len(CONTENT)


def test_a_connection_that_keeps_breaking_says_what_is_kept(server, tmp_path):
    server.default = Answer(cut_after=100_000)
    kept = downloads.ATTEMPTS * 100_000
    with pytest.raises(DownloadError, match=rf"{kept} of 1000000 bytes are kept in .*a\.zip\.part.*resumes there"):
        get(server, tmp_path / "a.zip")
    assert (tmp_path / "a.zip.part").read_bytes() == CONTENT[:kept]
    server.default = Answer()
    assert get(server, tmp_path / "a.zip").read_bytes() == CONTENT


def test_a_part_that_is_complete_is_not_asked_for_again(server, tmp_path):
    path = tmp_path / "a.zip"
    server.default = Answer(cut_after=0)
    server.script = [CUT]
    with pytest.raises(DownloadError):
        get(server, path)
    asked = len(server.requests)
    (tmp_path / "a.zip.part").write_bytes(CONTENT)  # as if killed just before it was renamed
    assert get(server, path, SHA256) == path
    assert len(server.requests) == asked


@pytest.mark.parametrize("if_range", [True, False], ids=["If-Range heeded", "If-Range ignored"])
@pytest.mark.parametrize("size", [1_000_000, 400_000, 200_000])
def test_a_file_that_changed_on_the_server_is_never_spliced(server, tmp_path, if_range, size):
    path = tmp_path / "a.zip"
    server.default = Answer(cut_after=0, if_range=if_range)
    server.script = [CUT]
    with pytest.raises(DownloadError):
        get(server, path)
    changed = CONTENT[::-1][:size]
    (server.folder / "plate.zip").write_bytes(changed)
    os.utime(server.folder / "plate.zip", (1, 1))
    server.default = Answer(if_range=if_range)
    assert get(server, path).read_bytes() == changed


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"etag": '"strong"'}, (300_000, '"strong"')),
        ({"etag": None}, (300_000, DATE)),
        ({"etag": 'W/"weak"'}, (300_000, DATE)),
        ({"etag": None, "last_modified": False}, (0, None)),
        ({"etag": 'W/"weak"', "last_modified": False}, (0, None)),
    ],
)
def test_it_resumes_only_with_a_validator(server, tmp_path, answer, expected):
    os.utime(server.folder / "plate.zip", (1e9, 1e9))
    server.script = [Answer(cut_after=300_000, **answer)]
    server.default = Answer(**answer)
    assert get(server, tmp_path / "a.zip").read_bytes() == CONTENT
    assert [(request.start, request.if_range) for request in server.requests] == [(0, None), expected]


def test_a_server_without_ranges_begins_anew(server, tmp_path):
    server.script = [CUT]
    server.default = Answer(ranges=False)
    assert get(server, tmp_path / "a.zip").read_bytes() == CONTENT
    assert [request.status for request in server.requests] == [200, 200]


def test_a_server_may_answer_a_range_in_pieces(server, tmp_path):
    server.script = [CUT, Answer(max_range=1000), Answer(max_range=50_000)]
    assert get(server, tmp_path / "a.zip").read_bytes() == CONTENT
    assert starts(server) == [0, 300_000, 301_000, 351_000]


def test_a_part_of_another_url_is_not_continued(server, tmp_path):
    server.default = Answer(cut_after=0, etag='"the same"')
    server.script = [Answer(cut_after=300_000, etag='"the same"')]
    with pytest.raises(DownloadError):
        get(server, tmp_path / "a.zip")
    (server.folder / "other.zip").write_bytes(CONTENT[::-1])
    server.default = Answer(etag='"the same"')
    path = download(server.url + "other.zip", tmp_path / "a.zip", progress=False)
    assert path.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("state", [b"", b'{"url": ', b"[]", b"\xff", b'{"size": 3}'])
def test_a_damaged_note_beside_the_part_begins_anew(server, tmp_path, state):
    (tmp_path / "a.zip.part").write_bytes(b"unknown")
    (tmp_path / "a.zip.part.json").write_bytes(state)
    assert get(server, tmp_path / "a.zip").read_bytes() == CONTENT
    assert starts(server) == [0]


def test_a_wrong_announced_size_is_an_error(server, tmp_path):
    server.default = Answer(extra_length=5)
    with pytest.raises(DownloadError, match="of 1000005 bytes"):
        get(server, tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


def test_a_wrong_hash_deletes_the_download(server, tmp_path):
    with pytest.raises(ArchiveError, match=rf"plate\.zip, now deleted, has SHA-256 {SHA256}, expected {'0' * 64}"):
        get(server, tmp_path / "a.zip", "0" * 64)
    assert not [path for path in tmp_path.glob("a.zip*") if path.suffix != ".lock"]
    assert get(server, tmp_path / "a.zip", SHA256).read_bytes() == CONTENT


def test_transient_errors_are_retried(server, tmp_path):
    server.script = [Answer(status=500), Answer(status=503), CUT, Answer(status=502)]
    assert get(server, tmp_path / "a.zip").read_bytes() == CONTENT
    assert starts(server) == [0, 0, 0, 300_000, 300_000]


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_refusal_names_the_url_and_keeps_the_part(server, tmp_path, status):
    path = tmp_path / "a.zip"
    server.script = [CUT]
    server.default = Answer(status=status)
    url = re.escape(server.url + "plate.zip")
    with pytest.raises(DownloadError, match=rf"{url}: the server answered {status} .*300000 of 1000000 bytes"):
        get(server, path)
    assert not path.exists()
    server.default = Answer()
    assert get(server, path).read_bytes() == CONTENT
    assert starts(server)[-1] == 300_000


def test_an_encoded_answer_is_refused(server, tmp_path):
    server.default = Answer(headers={"Content-Encoding": "gzip"})
    with pytest.raises(DownloadError, match="gzip"):
        get(server, tmp_path / "a.zip")


def test_nobody_answers(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/a.zip"
        with pytest.raises(DownloadError, match=r"127\.0\.0\.1.*refused.*nothing has arrived yet"):
            download(url, tmp_path / "a.zip", progress=False)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/a.zip", "a.zip", "http:///a.zip", ""])
def test_only_web_addresses(url, tmp_path):
    with pytest.raises(ValueError, match=f"{re.escape(repr(url))}.*http://"):
        download(url, tmp_path / "a.zip")


def test_a_hash_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="'abc' is not a SHA-256"):
        download("http://127.0.0.1/a.zip", tmp_path / "a.zip", "abc")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk(server, tmp_path):
    part = tmp_path / "a.zip.part"
    part.symlink_to("/dev/full")
    with pytest.raises(OSError, match="disk is full") as error:
        get(server, tmp_path / "a.zip")
    assert error.value.errno == errno.ENOSPC
    assert part.is_symlink()


@pytest.fixture
def interruptible():
    """Ctrl-C has its usual effect also where tests run in the background of a shell, which has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_keeps_the_part(server, tmp_path):
    path, part = tmp_path / "a.zip", tmp_path / "a.zip.part"
    released = threading.Event()
    server.script = [Answer(cut_after=900_000, wait=released)]

    def interrupt() -> None:
        while not (part.exists() and part.stat().st_size >= downloads.CHUNK_BYTES):
            time.sleep(0.005)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):  # `get` cannot end before: the server sends no more until released
        get(server, path)
    thread.join()
    released.set()
    kept = part.stat().st_size
    assert part.read_bytes() == CONTENT[:kept]
    assert get(server, path).read_bytes() == CONTENT
    assert starts(server)[-1] == kept


def test_of_several_at_once_one_downloads(server, tmp_path):
    server.script = [Answer(pause=0.01)]
    threads = [threading.Thread(target=get, args=(server, tmp_path / "a.zip", SHA256)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a.zip").read_bytes() == CONTENT
    assert len(server.requests) == 1


# The record of hashes


def verified(server: FileServer, folder: Path, checksums: dict[str, str] | None = None) -> Path:
    return verified_download(server.url + "plate.zip?version=2", folder, checksums or {}, progress=False)


def test_published_hashes_must_match(server, tmp_path):
    with pytest.raises(ArchiveError, match="SHA-256"):
        verified(server, tmp_path / "a", {"plate.zip": "0" * 64})
    assert verified(server, tmp_path / "a", {"plate.zip": SHA256}) == tmp_path / "a" / "plate.zip"
    assert not (tmp_path / "a" / "SHA256SUMS").exists()


def test_without_a_published_hash_the_first_download_is_recorded(server, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "SHA256SUMS").write_text(f"# by hand, without a line break at its end\n{'1' * 64}  other.zip")
    path = verified(server, tmp_path / "a")
    assert verified(server, tmp_path / "a") == path
    assert len(server.requests) == 1
    assert read_checksums(tmp_path / "a" / "SHA256SUMS") == {"other.zip": "1" * 64, "plate.zip": SHA256}

    status = path.stat()
    path.write_bytes(b"\0" + CONTENT[1:])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size, same date
    with pytest.raises(ArchiveError, match=r"plate\.zip.*expected " + SHA256):
        verified(server, tmp_path / "a")
    path.unlink()
    assert verified(server, tmp_path / "a").read_bytes() == CONTENT
    path.unlink()
    (server.folder / "plate.zip").write_bytes(CONTENT[::-1])
    with pytest.raises(ArchiveError, match="expected " + SHA256):
        verified(server, tmp_path / "a")


def test_sha256sum_reads_our_record_and_we_read_its(server, tmp_path):
    verified(server, tmp_path / "a")
    try:
        subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=tmp_path / "a", check=True)
        sums = subprocess.run(["sha256sum", "-b", "a/plate.zip"], cwd=tmp_path, check=True, capture_output=True).stdout
    except FileNotFoundError:
        pytest.skip("no sha256sum here")
    (tmp_path / "sums").write_bytes(sums)
    assert read_checksums(tmp_path / "sums") == {"plate.zip": SHA256}


@pytest.mark.parametrize(
    "line",
    [
        f"{'0' * 63}  a.zip",
        f"{'0' * 64}a.zip",
        f"{'0' * 64}  ",
        f"SHA256 (a.zip) = {'0' * 64}",
        f"{'2' * 64}  b/a.zip",
    ],
)
def test_unusable_lines_are_named(tmp_path, line):
    (tmp_path / "sums").write_text(f"{'1' * 64}  a.zip\n{line}\n")
    with pytest.raises(ValueError, match="sums, line 2"):
        read_checksums(tmp_path / "sums")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        ".",
        "%2e%2e",
        "..%2Fa.zip",
        "%2Fetc%2Fpasswd",
        "..%5Ca.zip",
        "C:a.zip",
        ".ssh",
        "a%00.zip",
        "SHA256SUMS",
    ],
)
def test_file_names_from_urls(tmp_path, name):
    with pytest.raises(ValueError, match="does not end in a file name"):
        verified_download(f"http://127.0.0.1/folder/{name}", tmp_path / "a", {})
    assert not (tmp_path / "a").exists()


# ZIP archives

FILES = {
    "Week4_27821/B02_s1_w1.tif": b"pixels " * 5000,
    "Week4_27821/B02_s1_w2.tif": CONTENT[:20_000],
    "Week4_27821/B02_s2_w1.tif": b"",
    "Week4_27821/b02_s2_w1.tif": b"another case",
}


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED, **fields: int) -> bytes:
    """A ZIP archive; `fields` are set in each entry. Names go in as they are, and nothing is checked."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo("name")
            info.filename, info.compress_type = name, compression
            for field, value in fields.items():
                setattr(info, field, value)
            archive.writestr(info, content)
    return buffer.getvalue()


def patched(archive: bytes, entry: int, offset: int, layout: str, value: int) -> bytes:
    """Overwrites one field in the record of an entry in the archive's directory."""
    mangled, at = bytearray(archive), -1
    for _ in range(entry + 1):
        at = archive.index(b"PK\1\2", at + 1)
    struct.pack_into(layout, mangled, at + offset, value)
    return bytes(mangled)


LOCAL_HEADER = 30
METHOD, CRC, PACKED, UNPACKED, HEADER = (10, "<H"), (16, "<L"), (20, "<L"), (24, "<L"), (42, "<L")


@pytest.fixture
def write(tmp_path):
    def write(content: bytes) -> Path:
        (tmp_path / "plate.zip").write_bytes(content)
        return tmp_path / "plate.zip"

    return write


def test_files_are_read_by_full_and_by_base_name(write):
    extra = {"Week4_27821/": b"", "__MACOSX/Week4_27821/._B02_s1_w1.tif": b"x", "other/B02_s1_w2.tif": b"y"}
    with PlateArchive(write(zipped(FILES | extra))) as archive:
        assert archive.names() == [*FILES, "other/B02_s1_w2.tif"]
        assert {name: archive.read(name) for name in FILES} == FILES
        assert archive.read("B02_s1_w1.tif") == FILES["Week4_27821/B02_s1_w1.tif"]
        assert archive.read("b02_s2_w1.tif") == b"another case"
        with pytest.raises(ArchiveError, match=r"plate\.zip.*Week4_27821/B02_s1_w2.tif, other/B02_s1_w2.tif|other"):
            archive.read("B02_s1_w2.tif")
        with pytest.raises(ArchiveError, match=r"plate\.zip: unknown file 'Week4_27821/B02_s1_w3.tif'; did you mean"):
            archive.read("Week4_27821/B02_s1_w3.tif")
        with pytest.raises(ArchiveError, match="unknown file"):
            archive.read("__MACOSX/Week4_27821/._B02_s1_w1.tif")


def test_a_black_image_is_no_bomb(write):
    black = bytes(1024 * 1280 * 2)
    with PlateArchive(write(zipped({"a.tif": black}))) as archive:
        assert archive.read("a.tif") == black


def test_stored_archives_and_archives_after_other_bytes(write):
    with PlateArchive(write(b"something before" + zipped(FILES, zipfile.ZIP_STORED))) as archive:
        assert {name: archive.read(name) for name in archive.names()} == FILES


@pytest.mark.parametrize(
    "content", [b"", b"PK\5\6", b"<html>404</html>", bytes(5000), zipped(FILES)[:-1], zipped(FILES)[:15_000]]
)
def test_what_is_no_whole_archive(write, content):
    with pytest.raises(ArchiveError, match=r"plate\.zip: "):
        PlateArchive(write(content))


def test_a_missing_archive(tmp_path):
    with pytest.raises(FileNotFoundError):
        PlateArchive(tmp_path / "none.zip")


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "//host/a",
        "../a.tif",
        "a/../../b.tif",
        "..",
        "C:/a.tif",
        "c:a.tif",
        "a\\b.tif",
        "..\\a",
        "a\0.tif",
    ],
)
def test_names_that_lead_elsewhere(write, name):
    with pytest.raises(ArchiveError, match=rf"entry {re.escape(repr(name))}: .*name"):
        PlateArchive(write(zipped({"a.tif": b"x", name: b"y"})))


UNIX_FILE = 0o644 << 16


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zipped(FILES, external_attr=UNIX_FILE | stat.S_IFLNK << 16), "a link"),
        (zipped(FILES, external_attr=UNIX_FILE | stat.S_IFIFO << 16), "special file"),
        (patched(zipped(FILES), 1, 8, "<H", 1), "encrypted"),
        (zipped(FILES, zipfile.ZIP_BZIP2), "compression method 12"),
        (zipped(FILES, zipfile.ZIP_LZMA), "compression method 14"),
        (patched(zipped(FILES), 1, *METHOD, 9), "compression method 9"),
        (patched(zipped(FILES), 1, *UNPACKED, (64 << 20) + 1), "67108865 bytes, at most 67108864"),
        (zipped({"a.tif": bytes(9 << 20)}), "at most 200 times"),
        (patched(zipped(FILES), 1, *HEADER, 0), "overlaps another"),
        (patched(zipped(FILES), 0, *PACKED, 1000), "overlaps another"),
        (patched(zipped(FILES), 3, *HEADER, 50_000_000), "outside of the file"),
        (zipped({"a": b"x", "b": b"y"}).replace(b"b", b"a"), "the name occurs twice"),
    ],
)
def test_what_is_refused_at_opening(write, content, message):
    with pytest.raises(ArchiveError, match=rf"plate\.zip: entry '.*{re.escape(message)}"):
        PlateArchive(write(content))


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("MAX_ENTRIES", 3, "4 entries, at most 3"),
        ("MAX_TOTAL_BYTES", 50_000, "55012 bytes, at most 50000"),
        ("MAX_ENTRY_BYTES", 34_999, "35000 bytes, at most 34999"),
    ],
)
def test_limits(write, monkeypatch, limit, value, message):
    path = write(zipped(FILES))
    monkeypatch.setattr(zip_archive, limit, value + 1 if limit != "MAX_TOTAL_BYTES" else 55_012)
    PlateArchive(path).__exit__()
    monkeypatch.setattr(zip_archive, limit, value)
    with pytest.raises(ArchiveError, match=message):
        PlateArchive(path)


def test_a_huge_directory_is_not_read(write):
    """Ten million entries would take gigabytes before anybody could count them."""
    path = write(zipped({"a.tif": b"x"}))
    content = path.read_bytes()
    end = content.index(b"PK\5\6")
    directory = bytes(zip_archive.MAX_DIRECTORY_BYTES + 1)
    end_record = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(directory), 0, 0)
    path = write(content[:end] + directory + end_record)
    with pytest.raises(ArchiveError, match="8388609 bytes at once"):
        PlateArchive(path)


@pytest.mark.parametrize("field", [CRC, UNPACKED])
@pytest.mark.parametrize("value", [0, 1, 4_000_000])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_lying_sizes_and_checksums_are_found_when_read(write, field, value, compression):
    with PlateArchive(write(patched(zipped(FILES, compression), 0, *field, value))) as archive:
        with pytest.raises(ArchiveError, match=r"plate\.zip, entry 'Week4_27821/B02_s1_w1\.tif': "):
            archive.read("B02_s1_w1.tif")
        assert archive.read("B02_s1_w2.tif") == FILES["Week4_27821/B02_s1_w2.tif"]


def test_a_damaged_stream(write):
    content = bytearray(zipped(FILES))
    content[LOCAL_HEADER + len("Week4_27821/B02_s1_w1.tif")] = 0xFF
    with (
        PlateArchive(write(bytes(content))) as archive,
        pytest.raises(ArchiveError, match=r"w1\.tif': .*invalid block"),
    ):
        archive.read("B02_s1_w1.tif")


@pytest.mark.parametrize("size", [0, 10, 35, 400_000])
def test_an_archive_that_is_cut_while_it_is_open(write, size):
    path = write(zipped({"a.tif": CONTENT}, zipfile.ZIP_STORED))
    with PlateArchive(path) as archive:
        os.truncate(path, size)
        with pytest.raises(ArchiveError, match=r"plate\.zip, entry 'a\.tif': ."):
            archive.read("a.tif")


def test_a_bomb_that_declares_little_inflates_to_no_more(write):
    path = write(patched(zipped({"a.tif": bytes(100 << 20)}), 0, *UNPACKED, 1000))
    tracemalloc.start()
    try:
        with PlateArchive(path) as archive, pytest.raises(ArchiveError, match="CRC"):
            archive.read("a.tif")
        assert tracemalloc.get_traced_memory()[1] < 2 << 20
    finally:
        tracemalloc.stop()


def mangled(seed: int) -> bytes:
    """A good archive with one to four kinds of damage, often in the headers, where it hurts most."""
    random = np.random.default_rng(seed)
    files = {name: content[:3000] for name, content in FILES.items()}
    content = bytearray(zipped(files, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[seed % 2]))
    signatures = [match.start() for match in re.finditer(b"PK(\x01\x02|\x03\x04|\x05\x06)", bytes(content))]
    for _ in range(random.integers(1, 5)):
        at = int(random.integers(len(content) or 1))
        if random.random() < 0.7:
            at = int(random.choice(signatures)) + int(random.integers(46))
        length = int(random.integers(1, 9))
        match random.integers(6):
            case 0:
                content[at : at + 1] = random.bytes(1)
            case 1:
                content[at : at + 1] = (
                    bytes([content[at] ^ (1 << int(random.integers(8)))]) if at < len(content) else b""
                )
            case 2:
                content[at : at + length] = random.choice([b"\0", b"\xff"]) * length
            case 3:
                del content[at : at + int(random.integers(1, 200))]
            case 4:
                content[at:at] = random.bytes(length)
            case 5 if random.random() < 0.3:
                del content[at:]
    return bytes(content)


@pytest.mark.parametrize("seeds", [range(300), pytest.param(range(300, 2300), marks=pytest.mark.slow)], ids=str)
def test_damage_gives_an_archive_error_or_the_right_bytes(write, seeds):
    right = refused_at_opening = refused_when_read = 0
    for seed in seeds:
        path = write(mangled(seed))
        try:
            with PlateArchive(path) as archive:
                for name in archive.names():
                    try:
                        content = archive.read(name)
                    except ArchiveError:
                        refused_when_read += 1
                    else:
                        assert content == FILES[name][:3000], f"seed {seed}"
                        right += 1
        except ArchiveError:
            refused_at_opening += 1
    print(f"{len(seeds)} archives: {refused_at_opening} refused, then {refused_when_read} files, {right} files right")
    assert min(right, refused_at_opening, refused_when_read) > len(seeds) // 20


def test_file_sha256(tmp_path):
    (tmp_path / "a").write_bytes(CONTENT * 3)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(CONTENT * 3).hexdigest()
