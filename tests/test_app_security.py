"""What a visitor of the app who means harm can do: requests over HTTP to an app that really runs, on this machine."""

import json
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from small_models import IMAGE_SIZE, with_random_weights

from cellfluxrl import CellFluxFlowMatchScheduler, CellFluxRLPipeline, CellFluxUNet2DModel, CompoundEncoder
from cellfluxrl.app.simulation import Models

gr = pytest.importorskip("gradio", reason="the app needs gradio: pip install 'cellfluxrl[app]'")

GRADIO_STATE = "state"  # inputs that the server keeps; what a client sends for them counts for nothing


class Visitor:
    """
    Speaks to the app as the page does.

    Args:
        address: Of the page.
        session_hash: What it calls its session.
    """

    def __init__(self, address: str, session_hash: str | None = None) -> None:
        self.address = address
        self.session_hash = uuid.uuid4().hex if session_hash is None else session_hash
        config = requests.get(f"{address}config").json()
        components = {component["id"]: component for component in config["components"]}
        (self.run,) = [entry for entry in config["dependencies"] if entry["api_name"] == "run"]
        self.values = {}
        for number in self.run["inputs"]:
            properties = components[number]["props"]
            name = properties.get("elem_id") or properties.get("label") or f"{components[number]['type']}-{number}"
            self.values[name] = properties.get("value")
        self.values |= {"cf-images": 1, "cf-candidates": 1, "Steps of the solver": 1}

    def join(self, **changes: Any) -> requests.Response:
        """Put a generation into the queue."""
        body = {
            "fn_index": self.run["id"],
            "data": list((self.values | changes).values()),
            "session_hash": self.session_hash,
        }
        return requests.post(f"{self.address}gradio_api/queue/join", json=body)

    def messages(self) -> list[dict]:
        """Of this session, until its events are over."""
        url = f"{self.address}gradio_api/queue/data"
        with requests.get(url, params={"session_hash": self.session_hash}, stream=True, timeout=60) as answer:
            lines = [line[6:] for line in answer.iter_lines() if line.startswith(b"data: ")]
        return [json.loads(line) for line in lines]

    def generate(self, **changes: Any) -> list[Any]:
        """The values of the outputs."""
        self.join(**changes).raise_for_status()
        (completed,) = [message for message in self.messages() if message["msg"] == "process_completed"]
        assert completed["success"], completed
        return completed["output"]["data"]

    def heartbeat(self, quoted: str) -> None:
        """Say that a session is there, and leave; the session's name is sent as it is written."""
        prepared = requests.Request("GET", f"{self.address}gradio_api/heartbeat/x").prepare()
        prepared.url = f"{self.address}gradio_api/heartbeat/{quoted}"
        with requests.Session() as session, session.send(prepared, stream=True, timeout=10) as answer:
            if answer.ok:
                next(answer.iter_lines())


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """The address of an app and the temporary folder that it has, with files of somebody else in it and around it."""
    from cellfluxrl.app.layout import build_app, launch

    network = CellFluxUNet2DModel.from_preset("tiny", sample_size=IMAGE_SIZE)
    scheduler = CellFluxFlowMatchScheduler(solver="midpoint")
    pipe = CellFluxRLPipeline(with_random_weights(network), scheduler, CompoundEncoder())
    pipe.set_progress_bar_config(disable=True)
    place = tmp_path_factory.mktemp("machine")
    for name in ("canary", "tmp/canary", "tmp/others/canary"):
        (place / name).parent.mkdir(exist_ok=True, parents=True)
        (place / name).write_text("somebody's work")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(place / "tmp"))
        app = build_app(Models(pipe, "my/pipeline"))
        yield launch(app, wait=False), place
        app.close()


def foreign_files(place: Path) -> dict[str, str]:
    """What lies in and around the temporary folder, but for the app's folder and gradio's."""
    files = {path.relative_to(place).as_posix(): path for path in sorted(place.rglob("*"))}
    own = ("tmp/cellfluxrl-app-", "tmp/gradio")
    return {
        name: path.read_text() if path.is_file() else "" for name, path in files.items() if not name.startswith(own)
    }


HOSTILE_NAMES = {
    "absolute": "{place}/made",
    "existing": "{place}/tmp/others",
    "parent": "../../escaped",
    "the temporary folder": "..",
    "backslashes": "..\\..\\escaped",
    "nul": "a\0b",
    "long": "a" * 5000,
    "empty": "",
    "script": "<script>alert(1)</script>",
}


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_sessions_name_is_no_path(served, name):
    address, place = served
    before = foreign_files(place)
    visitor = Visitor(address, HOSTILE_NAMES[name].format(place=place))
    answer = visitor.join()
    if answer.ok and visitor.session_hash:
        visitor.messages()
    visitor.heartbeat(requests.utils.quote(visitor.session_hash, safe=""))
    assert foreign_files(place) == before


@pytest.mark.parametrize("quoted", ["%2e%2e", "..", "%2e%2e%2fothers", "..%2f..", "%00", "%252e%252e"])
def test_the_end_of_a_session_removes_nothing_else(served, quoted):
    address, place = served
    before = foreign_files(place)
    Visitor(address).heartbeat(quoted)
    requests.get(f"{address}config").raise_for_status()  # the server has seen that the client has left
    assert foreign_files(place) == before


def results(place: Path) -> list[str]:
    (folder,) = place.glob("tmp/cellfluxrl-app-*")
    return sorted(path.name for path in folder.iterdir())


def test_a_session_leaves_one_result_and_the_files_can_be_downloaded(served):
    address, place = served
    before = results(place)
    visitor = Visitor(address)
    visitor.generate()
    (first,) = set(results(place)) - set(before)
    *_, tiffs, pngs, scores, _ = visitor.generate(Seed=1)
    (second,) = set(results(place)) - set(before)
    assert first != second
    for file, kind in ((tiffs, b"PK"), (pngs, b"PK"), (scores, b"source,")):
        assert requests.get(file["url"]).content.startswith(kind)
    assert "at least 0" in visitor.generate(Seed=-1)[0]
    assert set(results(place)) - set(before) == {second}


def test_what_a_client_sends_for_the_servers_own_values_counts_for_nothing(served):
    address, place = served
    before = foreign_files(place)
    visitor = Visitor(address)
    states = {name: str(place / "tmp/others") for name in visitor.values if name.startswith(GRADIO_STATE)}
    assert len(states) == 3
    visitor.generate(**states)
    assert foreign_files(place) == before
