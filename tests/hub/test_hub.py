"""Suites pushed to a Hub on loopback and loaded from it, each by a process of its own, as users do."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub_server import HubServer, HubUser, Request

from cellfluxrl.data.compounds import CONTROL
from cellfluxrl.hub.cards import load_card
from cellfluxrl.hub.download import check_repo_id
from cellfluxrl.hub.push import push_files
from cellfluxrl.rewards.card import suite_card

IMPORTS = "import numpy, torch\nfrom cellfluxrl import RewardSuite\ntorch.set_num_threads(1)\n"
FILES = {"README.md", "config.json", "diffusion_pytorch_model.safetensors"}


class User(HubUser):
    def push(self, folder: Path, repo_id: str, fails: bool = False, **options: object) -> str:
        code = IMPORTS + "result = RewardSuite.from_pretrained({!r}).push_to_hub({!r}, **{})"
        return self(code.format(str(folder), repo_id, options), fails)

    def score(self, repo_id: str, images: Path, moas: list[str], fails: bool = False) -> Any:
        """`combined` of the images, as text of the exact numbers."""
        code = (
            f"{IMPORTS}suite = RewardSuite.from_pretrained({repo_id!r})\n"
            f"scores = suite(numpy.load({str(images)!r}), moa={moas!r})\n"
            "result = {name: [x.hex() for x in values.tolist()] for name, values in scores.items()}"
        )
        return self(code, fails)


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def users(hub, tmp_path_factory):
    """One with a token, and one without an account, who shares no cache with the first."""
    both = [User(hub, tmp_path_factory.mktemp(name), token) for name, token in (("a", hub.token), ("b", None))]
    yield both
    for user in both:
        user.process.kill()
        user.process.communicate()


@pytest.fixture(scope="module")
def owner(users):
    return users[0]


@pytest.fixture(scope="module")
def stranger(users):
    return users[1]


@pytest.fixture(scope="module")
def saved(suite, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "suite"
    suite.save_pretrained(folder)
    return folder


@pytest.fixture
def repo_id(request):
    """Each test has its own repository."""
    return "org/" + re.sub(r"[^a-z]+", "-", request.node.name).strip("-")[:80]


def published(hub: HubServer, repo_id: str) -> set[str]:
    return set(hub.repos[repo_id].files) - {".gitattributes"}


def commits(hub: HubServer, repo_id: str) -> int:
    """How many there are, but for the one that makes a repository."""
    return len(hub.repos[repo_id].commits) - 1


def uploads(hub: HubServer, repo_id: str, since: int = 0) -> list[Request]:
    return [r for r in hub.requests[since:] if r.method == "PUT" and r.path.startswith(f"/lfs/{repo_id}/")]


# --- what is published, and what others load ---


@pytest.mark.slow
def test_a_suite_from_the_hub_gives_identical_scores(hub, owner, stranger, suite, saved, repo_id, tmp_path):
    assert owner.push(saved, repo_id, commit_message="My rewards") == f"{hub.endpoint}/{repo_id}"
    assert published(hub, repo_id) == FILES
    assert commits(hub, repo_id) == 1
    assert hub.repos[repo_id].commits[-1].summary == "My rewards"
    assert hub.repos[repo_id].files["README.md"].content.decode() == suite_card(suite)

    images = np.random.default_rng(0).integers(0, 256, (3, 3, 16, 16)).astype(np.uint8)
    np.save(tmp_path / "images.npy", images)
    moas = [CONTROL, "DNA damage", "Epithelial"]
    theirs = stranger.score(repo_id, tmp_path / "images.npy", moas)
    ours = suite(images, moa=moas)
    assert {name: [x.hex() for x in values.tolist()] for name, values in ours.items()} == theirs


@pytest.mark.slow
def test_a_new_version_replaces_the_old_one(hub, owner, repo_id, saved):
    owner.push(saved, repo_id)
    old = hub.repos[repo_id]
    old.add_commit(
        "shards", {**old.files, "diffusion_pytorch_model-00001-of-00002.safetensors": old.files["README.md"]}
    )
    code = IMPORTS + "suite = RewardSuite.from_pretrained({!r})\nsuite.mean += 1\nresult = suite.push_to_hub({!r})"
    owner(code.format(str(saved), repo_id))
    assert published(hub, repo_id) == FILES
    assert commits(hub, repo_id) == 3


@pytest.mark.slow
def test_saving_can_publish_at_once(hub, owner, repo_id, saved, tmp_path):
    code = (
        f"{IMPORTS}suite = RewardSuite.from_pretrained({str(saved)!r})\n"
        f"suite.save_pretrained({str(tmp_path / 'copy')!r}, push_to_hub=True, repo_id={repo_id!r}, private=True)\n"
        "result = None"
    )
    owner(code)
    assert {path.name for path in (tmp_path / "copy").iterdir()} == FILES
    assert published(hub, repo_id) == FILES
    assert hub.repos[repo_id].private


# --- interruptions ---


@pytest.mark.slow
def test_a_hub_that_fails_twice_is_asked_again(hub, owner, repo_id, saved):
    hub.fail(f"PUT .*{repo_id}/", status=500, times=2)
    owner.push(saved, repo_id)
    assert sorted(request.status for request in uploads(hub, repo_id)) == [200, 500, 500]
    assert commits(hub, repo_id) == 1


@pytest.mark.slow
def test_nothing_is_published_where_the_connection_broke(hub, owner, repo_id, saved):
    hub.fail(f"PUT .*{repo_id}/", cut=True, times=6)
    error = owner.push(saved, repo_id, fails=True)
    assert error.startswith("ConnectionError: the Hub cannot be reached")
    assert "run the same command again" in error
    assert published(hub, repo_id) == set(), "half of a suite was published"
    owner.push(saved, repo_id)
    assert published(hub, repo_id) == FILES
    assert commits(hub, repo_id) == 1


@pytest.mark.slow
def test_a_commit_that_failed_is_repeated_without_sending_weights(hub, owner, repo_id, saved):
    hub.fail(f"POST .*{repo_id}/commit/", status=500)
    assert "ConnectionError: the Hub failed with status 500" in owner.push(saved, repo_id, fails=True)
    before = len(hub.requests)
    owner.push(saved, repo_id)
    assert uploads(hub, repo_id, since=before) == []
    assert published(hub, repo_id) == FILES


# --- who may ---


@pytest.mark.slow
def test_a_private_suite_needs_a_token(hub, owner, stranger, repo_id, saved, tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((1, 3, 16, 16), np.uint8))
    owner.push(saved, repo_id, private=True)
    assert hub.repos[repo_id].private
    error = stranger.score(repo_id, tmp_path / "images.npy", [CONTROL], fails=True)
    assert f"FileNotFoundError: there is no folder '{repo_id}' and no such reward suite on the Hub; if it is" in error
    assert "run `hf auth login`" in error
    assert "combined" in owner.score(repo_id, tmp_path / "images.npy", [CONTROL])


@pytest.mark.slow
def test_a_public_repository_is_not_taken_for_a_private_one(owner, repo_id, saved):
    owner.push(saved, repo_id)
    assert f"{repo_id} is there already and is public" in owner.push(saved, repo_id, private=True, fails=True)


@pytest.mark.slow
def test_nothing_is_made_without_a_token_that_may_write(hub, owner, stranger, repo_id, saved):
    assert "PermissionError: there is no access token" in stranger.push(saved, repo_id, fails=True)
    error = stranger.push(saved, repo_id, token="hf_wrong", fails=True)
    assert "PermissionError: the Hub does not accept the access token (401)" in error
    hub.fail("POST /api/repos/create", status=403)
    assert f"PermissionError: the access token may not write to {repo_id}" in owner.push(saved, repo_id, fails=True)
    assert repo_id not in hub.repos


@pytest.mark.slow
def test_nothing_is_made_on_a_hub_that_refuses_fails_or_is_away(hub, owner, repo_id, saved):
    hub.fail("POST /api/validate-yaml", status=400)
    assert "ValueError: the Hub refuses" in owner.push(saved, repo_id, fails=True)
    hub.fail("POST /api/repos/create", status=503)
    assert "ConnectionError: the Hub failed with status 503" in owner.push(saved, repo_id, fails=True)
    hub.fail("POST /api/repos/create", cut=True)
    assert "ConnectionError: the Hub cannot be reached" in owner.push(saved, repo_id, fails=True)
    assert repo_id not in hub.repos


@pytest.mark.slow
def test_the_command_line_scores_with_a_suite_from_the_hub(hub, owner, stranger, repo_id, saved, tmp_path):
    owner.push(saved, repo_id)
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (4, 3, 16, 16)).astype(np.uint8))
    line = ["rewards", "score", str(tmp_path / "images.npy"), "--moa", "DNA damage"]
    line += ["--output", str(tmp_path / "scores.parquet"), "--suite"]
    run = "from cellfluxrl.commands import cli\nresult = cli.main({!r})"
    assert stranger(run.format([*line, repo_id])) == 0
    assert (tmp_path / "scores.parquet").is_file()
    assert stranger(run.format([*line, "org/nowhere"])) == 2


# --- what needs no Hub ---


@pytest.mark.parametrize("name", ["suite", "org/suite/more", "org/my suite", "org/", "/x", ""])
def test_a_malformed_repository_name_is_refused(suite, name):
    with pytest.raises(ValueError, match="must be named 'owner/name'"):
        check_repo_id(name)
    with pytest.raises(ValueError, match="must be named 'owner/name'"):
        suite.push_to_hub(name, token="hf_unused")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "README.md is missing"),
        ("---\nlicense: [: \n---\n", "cannot be read as a card"),
        ("---\ntags: [a]\n---\n[More Information Needed]", "still has the placeholder"),
    ],
)
def test_a_card_that_cannot_be_published_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "README.md").write_text(content)
    with pytest.raises(ValueError, match=message):
        load_card(tmp_path / "README.md", "model")
    with pytest.raises(ValueError, match=message):
        push_files(tmp_path, ["README.md"], "org/x", "model", "a message", token="hf_unused")
