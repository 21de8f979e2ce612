"""What a visitor of the app who means harm can do: requests over HTTP to an app that really runs, on this machine.

`benchmarks/hostile_requests.py` sends more, to a process whose memory it measures.
"""

import contextlib
import http.client
import runpy
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
from small_models import IMAGE_SIZE, with_random_weights

from cellfluxrl import CellFluxFlowMatchScheduler, CellFluxRLPipeline, CellFluxUNet2DModel, CompoundEncoder
from cellfluxrl.app import simulation
from cellfluxrl.app.inputs import example_controls
from cellfluxrl.app.models import Models
from cellfluxrl.app.simulation import Sampling
from cellfluxrl.pipelines.generation.treatments import Treatment

gr = pytest.importorskip("gradio", reason="the app needs gradio: pip install 'cellfluxrl[app]'")

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "hostile_requests.py"
hostile = SimpleNamespace(**runpy.run_path(str(SCRIPT)))


@dataclass
class Served:
    """The app as visitors see it.

    Args:
        app: The page.
        address: Where it is.
        place: Holds its temporary folder, and files of somebody else in it and around it.
    """

    app: gr.Blocks
    address: str
    place: Path

    def visitor(self, session_hash: str | None = None):
        return hostile.Visitor(self.address, session_hash)

    def foreign_files(self) -> dict[str, str]:
        return hostile.foreign_files(self.place)

    def results(self) -> set[str]:
        """Folders of results."""
        (folder,) = self.place.glob("tmp/cellfluxrl-app-*")
        return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module")
def models() -> Models:
    network = CellFluxUNet2DModel.from_preset("tiny", sample_size=IMAGE_SIZE)
    scheduler = CellFluxFlowMatchScheduler(solver="midpoint")
    pipe = CellFluxRLPipeline(with_random_weights(network), scheduler, CompoundEncoder())
    pipe.set_progress_bar_config(disable=True)
    return Models(pipe, "my/pipeline")


@contextlib.contextmanager
def serving(models: Models, place: Path) -> Iterator[Served]:
    from cellfluxrl.app.layout import build_app, launch

    hostile.lay_out(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(place / "tmp"))
        app = build_app(models)
        try:
            yield Served(app, launch(app, wait=False), place)
        finally:
            app.close()


@pytest.fixture(scope="module")
def served(models, tmp_path_factory) -> Iterator[Served]:
    with serving(models, tmp_path_factory.mktemp("machine")) as own:
        yield own


# --------------------------------------------------------------------------------------------------------------------
# Names of sessions and files
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", hostile.NAMES)
def test_a_sessions_name_is_no_path(served, name):
    name = name.replace("{place}", str(served.place))
    before = served.foreign_files()
    served.visitor(name).generate()
    served.visitor().heartbeat(requests.utils.quote(name[:2000], safe="") or "%00")
    assert served.foreign_files() == before


@pytest.mark.parametrize("quoted", ["%2e%2e", "..", "%2e%2e%2fothers", "..%2f..", "%00", "%252e%252e"])
def test_the_end_of_a_session_removes_nothing_else(served, quoted):
    before = served.foreign_files()
    served.visitor().heartbeat(quoted)
    requests.get(f"{served.address}config").raise_for_status()  # the server has seen that the client has left
    assert served.foreign_files() == before


def test_no_hostile_request_touches_serves_or_shows_what_is_not_the_apps(served):
    before, kinds = served.foreign_files(), Counter()
    for kind, send in list(hostile.small_requests(served.address, served.place))[::2]:
        kinds[kind] += 1
        with contextlib.suppress(requests.RequestException, http.client.HTTPException, UnicodeError):
            assert hostile.harm(send()) is None, kind
    assert served.foreign_files() == before
    assert len(kinds) == 11
    assert served.visitor().generate()["success"]


def test_a_session_leaves_one_result_and_the_files_can_be_downloaded(served):
    before = served.results()
    visitor = served.visitor()
    visitor.generate()
    (first,) = served.results() - before
    *_, tiffs, pngs, scores, _ = visitor.generate(Seed=1)["output"]["data"]
    (second,) = served.results() - before
    assert first != second
    for file, kind in ((tiffs, b"PK"), (pngs, b"PK"), (scores, b"source,")):
        assert requests.get(file["url"]).content.startswith(kind)
    assert "at least 0" in visitor.generate(Seed=-1)["output"]["data"][0]
    assert served.results() - before == {second}
    served.app.state_holder.delete_state(visitor.session_hash)  # as gradio does some time after the page is closed
    assert served.results() == before


def test_what_a_client_sends_for_the_servers_own_values_counts_for_nothing(served):
    before = served.foreign_files()
    visitor = served.visitor()
    states = {name: str(served.place / "tmp/others") for name in visitor.values if name.startswith("state-")}
    assert len(states) == 3
    assert visitor.generate(**states)["success"]
    assert served.foreign_files() == before


def test_an_upload_is_read_whatever_it_is_called_and_nothing_else_is(served, tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((3, IMAGE_SIZE, IMAGE_SIZE), np.float32))
    visitor = served.visitor()
    (path,) = visitor.upload("../../<b>a</b>.npy", (tmp_path / "a.npy").read_bytes()).json()
    assert Path(path).is_relative_to(served.place / "tmp/gradio")
    shown = visitor.take({"path": path})["output"]["data"][-1]
    assert "ba" in shown
    assert "<b>a</b>" not in shown
    assert not visitor.take({"path": str(tmp_path / "a.npy")})["success"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/config", "https://example.org/a.npy", "HTTP://example.org/"])
def test_the_server_downloads_nothing_for_a_visitor(served, url):
    url = url.format(port=urlsplit(served.address).port)
    before = sorted(served.place.glob("tmp/gradio/*"))
    assert not served.visitor().take({"path": url, "url": url})["success"]
    assert requests.get(f"{served.address}gradio_api/file={url}").status_code == 403
    assert sorted(served.place.glob("tmp/gradio/*")) == before


# --------------------------------------------------------------------------------------------------------------------
# Hosts
# --------------------------------------------------------------------------------------------------------------------


def status_as(address: str, host: str) -> int:
    where = urlsplit(address)
    with contextlib.closing(http.client.HTTPConnection(where.hostname, where.port)) as connection:
        connection.request("GET", "/config", headers={"Host": host})
        return connection.getresponse().status


@pytest.mark.parametrize("host", ["example.org", "localhost.example.org", "192.0.2.1", "0.0.0.0", "*", ""])
def test_a_page_of_another_name_is_refused(served, host):
    assert status_as(served.address, host) == 400


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:7860", "[::1]:1", "LOCALHOST"])
def test_the_names_of_this_machine_are_served(served, host):
    assert status_as(served.address, host) == 200


def test_the_names_that_a_page_may_have(monkeypatch):
    from cellfluxrl.app.guard import allowed_hosts

    monkeypatch.delenv("SPACE_HOST", raising=False)
    local = ["127.0.0.1", "[::1]", "localhost"]
    assert allowed_hosts("127.0.0.1") == local
    assert allowed_hosts("::1") == local
    assert allowed_hosts("127.0.0.1", ["lab.example.org"]) == sorted([*local, "lab.example.org"])
    assert allowed_hosts("192.0.2.7") == sorted([*local, "192.0.2.7"])
    assert {*allowed_hosts("0.0.0.0")} >= {*local}
    assert not {*allowed_hosts("0.0.0.0")} & {"*", "0.0.0.0", ""}
    monkeypatch.setenv("SPACE_HOST", "me-cells.hf.space,cells.example.org")
    assert {*allowed_hosts("0.0.0.0")} >= {"me-cells.hf.space", "cells.example.org", "*.hf.space"}
    with pytest.raises(ValueError, match=r"'a\.\*'"):
        allowed_hosts("127.0.0.1", ["a.*"])


# --------------------------------------------------------------------------------------------------------------------
# Limits
# --------------------------------------------------------------------------------------------------------------------


def test_large_requests_are_refused(served):
    from cellfluxrl.app.layout import MAX_UPLOAD

    visitor = served.visitor()
    assert visitor.upload("a.npy", bytes(MAX_UPLOAD + 1)).status_code == 413
    assert visitor.join("load", [None, "x" * 2**20]).status_code == 413
    many = [("files", (f"{k}.npy", bytes(MAX_UPLOAD // 2))) for k in range(3)]
    assert requests.post(f"{served.address}gradio_api/upload", files=many).status_code == 413


def test_all_uploads_together_are_bounded(served, monkeypatch):
    monkeypatch.setattr("cellfluxrl.app.guard.MAX_KEPT", 0)
    assert served.visitor().upload("a.npy", b"x").status_code == 413


def test_a_request_that_takes_too_long_ends_with_advice(models):
    control = example_controls(models).images[0]
    with pytest.raises(ValueError, match=r"longer than the 0 seconds .* fewer images, candidates or steps"):
        simulation.generate(models, control, "cell", Treatment("taxol"), Sampling(1, 1), max_seconds=0)


def test_a_full_queue_takes_no_more(models, tmp_path, monkeypatch):
    from cellfluxrl.app import layout

    go_on = threading.Event()

    def wait(*_: object, **__: object) -> None:
        go_on.wait(60)
        raise ValueError("enough")

    monkeypatch.setattr(layout, "generate", wait)
    with serving(models, tmp_path) as own:
        visitor = own.visitor()
        try:
            statuses = [visitor.join("run", list(visitor.values.values())).status_code for _ in range(30)]
        finally:
            go_on.set()
        assert statuses[-1] == 503
        assert layout.MAX_WAITING <= statuses.count(200) <= layout.MAX_WAITING + 1
        assert len(visitor.messages())


def test_the_oldest_sessions_are_forgotten_with_their_files(models, tmp_path, monkeypatch):
    from cellfluxrl.app import layout

    monkeypatch.setattr(layout, "MAX_SESSIONS", 2)
    with serving(models, tmp_path) as own:
        for _ in range(4):
            assert own.visitor().generate()["success"]
        deadline = time.monotonic() + 30
        while len(own.results()) > 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(own.results()) == 2


READ = """
import resource, sys
from pathlib import Path
from cellfluxrl.data.image_files import images_of_files
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
for file in sorted(Path(sys.argv[1]).iterdir()):
    try:
        channels = ("dna",) if file.name in ("grey.png", "wide.tif") else ("dna", "tubulin", "actin")
        images_of_files(file, channels, "DMSO").read(0)
        print("read", file.name)
    except ValueError as error:
        print("refused", file.name, str(error)[:300])
print("MB", peak() - before)
"""


@pytest.mark.parametrize("imagecodecs", ["with", "without"])
def test_files_that_unpack_to_much_are_refused_before_they_are(tmp_path, imagecodecs):
    for name, content in hostile.bombs().items():
        (tmp_path / name).write_bytes(content)
    code = READ if imagecodecs == "with" else f"import sys; sys.modules['imagecodecs'] = None{READ}"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    *lines, memory = done.stdout.splitlines()
    refused = {line.split()[1] for line in lines if line.startswith("refused")}
    assert refused == {*hostile.bombs()} - {"more.npz"}  # whose array is small
    assert int(memory.split()[1]) < 200
