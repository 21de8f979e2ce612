"""Pipelines and classifiers on a Hub on loopback: published by one process, loaded by others, as users do."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import READER, HubServer, HubUser, Request
from huggingface_hub import ModelCard

from cellfluxrl import CellFluxPipeline, MoAClassifier
from cellfluxrl.commands.push import push_folder

pytestmark = pytest.mark.slow

COMPONENTS = ("unet", "encoder", "rewards")
CLASSES = {"unet": "unet", "encoder": "compound_encoder", "rewards": "suite", "scheduler": "flow_match"}
FILES = {
    *("README.md", "model_index.json", "cellfluxrl_pipeline.py", "rewards/README.md"),
    *(f"{name}/cellfluxrl_{file}.py" for name, file in CLASSES.items()),
    *(f"{name}/config.json" for name in COMPONENTS),
    *(f"{name}/diffusion_pytorch_model.safetensors" for name in COMPONENTS),
    "scheduler/scheduler_config.json",
}
IMPORTS = """
import hashlib, numpy, torch
from diffusers import DiffusionPipeline
from cellfluxrl import CellFluxPipeline, CellFluxRLPipeline, CellFluxUNet2DModel, MoAClassifier, RewardSuite
torch.set_num_threads(1)
"""
GENERATE = """
pipe.set_progress_bar_config(disable=True)
images = pipe(
    numpy.load({controls!r}), compound="taxol", num_inference_steps=2, output_type="pt",
    generator=torch.Generator().manual_seed(0),
).images
result = [type(pipe).__name__, hashlib.sha256(images.numpy().tobytes()).hexdigest()]
"""


class User(HubUser):
    def load(self, call: str, fails: bool = False) -> Any:
        """Evaluate an expression that loads something; the class of it, or the error."""
        return self(f"{IMPORTS}result = type({call}).__name__", fails)

    def generate(self, call: str, controls: Path) -> list[str]:
        """The class of the pipeline that an expression loads, and a hash of what it generates."""
        return self(f"{IMPORTS}pipe = {call}" + GENERATE.format(controls=str(controls)))

    def push(self, folder: Path, repo_id: str, fails: bool = False, **options: object) -> str:
        code = "from cellfluxrl.commands.push import push_folder\nresult = push_folder({!r}, {!r}, **{})"
        return self(code.format(str(folder), repo_id, options), fails)

    def run(self, *command: object) -> list:
        """The exit status of a command, and what it printed on standard error."""
        code = (
            "import contextlib, io\nfrom cellfluxrl.commands import cli\nerrors = io.StringIO()\n"
            "try:\n    with contextlib.redirect_stderr(errors):\n"
            f"        status = cli.main({list(map(str, command))!r})\n"
            "except SystemExit as exit:\n    status = exit.code\n"
            "result = [status, errors.getvalue()]"
        )
        return self(code)


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def users(hub, tmp_path_factory):
    """The owner, somebody else with a token, somebody without, and the latter without a network."""
    home = tmp_path_factory.mktemp("stranger")
    everybody = [
        User(hub, tmp_path_factory.mktemp("owner"), hub.token),
        User(hub, home, None, HF_HUB_ETAG_TIMEOUT="4", HF_HUB_DOWNLOAD_TIMEOUT="4"),
        User(hub, home, None, HF_HUB_OFFLINE="1"),
    ]
    yield everybody
    for user in everybody:
        user.process.kill()
        user.process.communicate()


@pytest.fixture(scope="module")
def owner(users):
    return users[0]


@pytest.fixture(scope="module")
def stranger(users):
    return users[1]


@pytest.fixture(scope="module")
def offline(users):
    return users[2]


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "pipeline"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def controls_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("controls") / "controls.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16)).astype(np.uint8))
    return path


@pytest.fixture
def repo_id(request):
    """Each test has its own repository."""
    return "org/" + re.sub(r"[^a-z]+", "-", request.node.name).strip("-")[:80]


def published(hub: HubServer, repo_id: str) -> dict[str, bytes]:
    return {name: file.content for name, file in hub.repos[repo_id].files.items() if name != ".gitattributes"}


def weights(files: dict[str, bytes]) -> set[str]:
    return {name for name in files if name.endswith(".safetensors")}


def downloads(hub: HubServer, repo_id: str, since: int = 0) -> list[str]:
    """Which files were fetched, as opposed to asked about."""
    prefix = f"/{repo_id}/resolve/"
    asked = [r.path for r in hub.requests[since:] if r.method == "GET" and r.path.startswith(prefix)]
    return [path.removeprefix(prefix).partition("/")[2] for path in asked]


def uploads(hub: HubServer, repo_id: str, since: int = 0) -> list[Request]:
    return [r for r in hub.requests[since:] if r.method == "PUT" and r.path.startswith(f"/lfs/{repo_id}/")]


# --- the round trip ---


def test_a_pipeline_from_the_hub_is_the_one_that_was_pushed(
    hub, owner, stranger, saved, pipeline, repo_id, controls_file, tmp_path
):
    url = owner(f"{IMPORTS}result = CellFluxRLPipeline.from_pretrained({str(saved)!r}).push_to_hub({repo_id!r})")
    assert url == f"{hub.endpoint}/{repo_id}"
    assert len(hub.repos[repo_id].commits) == 2, "the initial one, and one for everything"
    files = published(hub, repo_id)
    assert set(files) == FILES
    for name in weights(files):
        assert files[name] == (saved / name).read_bytes(), name
    assert str(saved).encode() not in b"".join(files.values()), "where it was saved is published"

    images = pipeline(
        np.load(controls_file),
        compound="taxol",
        num_inference_steps=2,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images
    expected = hashlib.sha256(images.numpy().tobytes()).hexdigest()
    for call, kind in (
        (f"CellFluxRLPipeline.from_pretrained({repo_id!r})", "CellFluxRLPipeline"),
        (f"CellFluxPipeline.from_pretrained({repo_id!r})", "CellFluxPipeline"),
        (f"DiffusionPipeline.from_pretrained({repo_id!r}, trust_remote_code=True)", "CellFluxRLPipeline"),
        # now the files that diffusers runs are in the cache, and still nobody has to trust them
        (f"CellFluxRLPipeline.from_pretrained({repo_id!r})", "CellFluxRLPipeline"),
        (f"DiffusionPipeline.from_pretrained({str(saved)!r}, trust_remote_code=True)", "CellFluxRLPipeline"),
    ):
        assert stranger.generate(call, controls_file) == [kind, expected], call

    again = tmp_path / "again"
    load = f"DiffusionPipeline.from_pretrained({repo_id!r}, trust_remote_code=True)"
    stranger(f"{IMPORTS}{load}.save_pretrained({str(again)!r})\nresult = None")
    shutil.rmtree(again / "rewards" / "README.md", ignore_errors=True)
    for name in set(files) - {"README.md"}:
        here = (again / name).read_bytes()
        if name.endswith("config.json"):
            here, there = (json.loads(content) for content in (here, files[name]))
            assert {**here, "_name_or_path": None} == {**there, "_name_or_path": None}, name
        else:
            assert here == files[name], name


def test_parts_of_a_pipeline_load_on_their_own(owner, stranger, saved, repo_id):
    owner.push(saved, repo_id)
    call = f"CellFluxUNet2DModel.from_pretrained({repo_id!r}, subfolder='unet')"
    assert stranger.load(call) == "CellFluxUNet2DModel"
    assert stranger.load(f"RewardSuite.from_pretrained({repo_id!r}, subfolder='rewards')") == "RewardSuite"
    assert stranger.load(f"CellFluxRLPipeline.from_pretrained({repo_id!r}, rewards=None).rewards") == "NoneType"


def test_a_command_takes_a_pipeline_of_the_hub(owner, stranger, saved, repo_id, controls_file, tmp_path):
    owner.push(saved, repo_id)
    where = ["--pipeline", repo_id, "--output_dir", tmp_path / "cells"]
    settings = ["--compounds", "taxol", "--steps", "2", "--format", "npy", "--cpu"]
    status, error = stranger.run("generate", controls_file, *where, *settings)
    assert status == 0, error
    assert len(list((tmp_path / "cells").rglob("*.npy"))) == 2
    assert repo_id in (tmp_path / "cells/provenance.json").read_text()


def test_code_in_a_repository_is_run_only_where_it_is_trusted(hub, owner, stranger, saved, repo_id, tmp_path):
    owner.push(saved, repo_id)
    repo = hub.repos[repo_id]
    file = repo.files["cellfluxrl_pipeline.py"]
    trap = type(file)(f"open({str(tmp_path / 'sprung')!r}, 'w')\n".encode() + file.content)
    code = {name: trap for name in repo.files if name.endswith(".py")}
    repo.add_commit("a trap", {**repo.files, **code, "unet/cellfluxrl.models.unet.py": trap})
    assert stranger.load(f"CellFluxRLPipeline.from_pretrained({repo_id!r})") == "CellFluxRLPipeline"
    assert "trust_remote_code=True" in stranger.load(f"DiffusionPipeline.from_pretrained({repo_id!r})", fails=True)
    assert not (tmp_path / "sprung").exists()
    stranger.load(f"DiffusionPipeline.from_pretrained({repo_id!r}, trust_remote_code=True)")
    assert (tmp_path / "sprung").exists(), "the trap does not work, so that it proves nothing"


def test_a_new_version_replaces_the_old_one_and_both_can_be_had(hub, owner, stranger, saved, repo_id, controls_file):
    owner.push(saved, repo_id)
    repo = hub.repos[repo_id]
    repo.tags["v1.0"] = repo.commits[-1].sha
    code = f"{IMPORTS}pipe = CellFluxPipeline.from_pretrained({str(saved)!r})\n"
    code += "[p.data.mul_(1.5) for p in pipe.unet.parameters()]\n"
    owner(code + f"result = pipe.push_to_hub({repo_id!r})")
    assert not [name for name in repo.files if name.startswith("rewards/") and not name.endswith(".md")]

    load = f"CellFluxPipeline.from_pretrained({repo_id!r}, revision={{!r}})"
    old, new = (stranger.generate(load.format(name), controls_file)[1] for name in ("v1.0", "main"))
    assert old != new
    assert stranger.generate(load.format(repo.commits[-1].sha), controls_file)[1] == new
    error = stranger.load(load.format("v1.1"), fails=True)
    assert error == (f"ValueError: unknown revision of {repo_id}: 'v1.1'; did you mean 'v1.0'? 2 known: main, v1.0")


def test_a_variant_is_fetched_without_the_others(hub, owner, stranger, pipeline, saved, repo_id, tmp_path):
    folder = tmp_path / "both"
    shutil.copytree(saved, folder)
    half = type(pipeline).from_pretrained(saved)
    half.unet.half()
    half.save_pretrained(folder, variant="fp16")
    owner.push(folder, repo_id)
    assert len(weights(published(hub, repo_id))) == 2 * len(COMPONENTS)
    repo = hub.repos[repo_id]
    kept = {k: v for k, v in repo.files.items() if k != "encoder/diffusion_pytorch_model.fp16.safetensors"}
    repo.add_commit("a component without the variant", kept)

    before = len(hub.requests)
    load = f"CellFluxRLPipeline.from_pretrained({repo_id!r}, variant={{!r}})"
    assert stranger.load(load.format("fp16")) == "CellFluxRLPipeline"
    fetched = {name for name in downloads(hub, repo_id, before) if name.endswith(".safetensors")}
    names = {"unet": ".fp16", "rewards": ".fp16", "encoder": ""}
    assert fetched == {f"{name}/diffusion_pytorch_model{part}.safetensors" for name, part in names.items()}
    weight = f"{load.format('fp16')}.unet.state_dict()"
    stored = stranger(f"{IMPORTS}result = {{k: v.float().sum().item() for k, v in {weight}.items()}}")
    assert stored == {k: pytest.approx(v.float().sum().item()) for k, v in half.unet.state_dict().items()}

    before = len(hub.requests)
    stranger.load(load.format(None))
    fetched = {name for name in downloads(hub, repo_id, before) if name.endswith(".safetensors")}
    assert fetched == {"unet/diffusion_pytorch_model.safetensors"}, "the others are the same in both, and in the cache"
    error = stranger.load(load.format("fp61"), fails=True)
    assert "ValueError: unknown variant" in error
    assert "did you mean 'fp16'" in error


def test_another_cache_is_used(hub, owner, stranger, saved, repo_id, tmp_path):
    owner.push(saved, repo_id)
    call = f"CellFluxRLPipeline.from_pretrained({repo_id!r}, cache_dir={str(tmp_path)!r})"
    assert stranger.load(call) == "CellFluxRLPipeline"
    assert list(tmp_path.glob("models--org--*/snapshots/*/model_index.json"))
    before = len(hub.requests)
    stranger.load(call)
    assert downloads(hub, repo_id, before) == [], "fetched again"


def test_what_was_loaded_once_loads_without_a_network(hub, owner, stranger, offline, saved, repo_id, controls_file):
    owner.push(saved, repo_id)
    call = f"CellFluxRLPipeline.from_pretrained({repo_id!r})"
    error = offline.load(call, fails=True)
    assert "FileNotFoundError: " in error
    assert "is not, or not wholly, in the cache, and nothing may be fetched" in error
    expected = stranger.generate(call, controls_file)
    before = len(hub.requests)
    assert offline.generate(call, controls_file) == expected
    assert len(hub.requests) == before
    error = offline.load(f"CellFluxRLPipeline.from_pretrained({repo_id!r}, revision='v2')", fails=True)
    assert f"'{repo_id}' at revision 'v2' is not, or not wholly, in the cache" in error


def test_half_of_a_pipeline_in_the_cache_is_said_to_be_half(hub, owner, stranger, offline, saved, repo_id):
    owner.push(saved, repo_id)
    call = f"CellFluxRLPipeline.from_pretrained({repo_id!r})"
    stranger.load(f"CellFluxRLPipeline.from_pretrained({repo_id!r}, rewards=None)")
    assert offline.load(call.replace(")", ", rewards=None)")) == "CellFluxRLPipeline"
    assert "FileNotFoundError" in offline.load(call, fails=True)


# --- who may ---


def test_a_private_pipeline_needs_the_right_token(hub, owner, stranger, saved, repo_id):
    owner.push(saved, repo_id, private=True)
    assert hub.repos[repo_id].private
    call = "CellFluxRLPipeline.from_pretrained({!r}, token={!r})"
    assert stranger.load(call.format(repo_id, hub.token)) == "CellFluxRLPipeline"
    assert owner.load(f"CellFluxRLPipeline.from_pretrained({repo_id!r})") == "CellFluxRLPipeline"
    shutil.rmtree(Path(stranger("import os\nresult = os.environ['HF_HOME']")) / "hub", ignore_errors=True)
    nothing = f"FileNotFoundError: there is no folder '{repo_id}' and no such pipeline on the Hub; if it is private"
    error = stranger.load(call.format(repo_id, None), fails=True)
    assert error == f"{nothing} there, run `hf auth login`, or set HF_TOKEN"
    error = stranger.load(call.format(repo_id, READER), fails=True)
    assert error == f"{nothing} there, your access token may not read it"
    error = stranger.load(call.format(repo_id, "hf_wrong"), fails=True)
    assert error.startswith("PermissionError: the Hub does not accept the access token (401)")


def test_terms_that_have_to_be_accepted_are_said_to_be(hub, owner, stranger, saved, repo_id):
    owner.push(saved, repo_id)
    hub.repos[repo_id].gated = True
    error = stranger.load(f"CellFluxRLPipeline.from_pretrained({repo_id!r})", fails=True)
    assert error == (
        f"PermissionError: {repo_id} is only for those who accept its terms: do so at {hub.endpoint}/{repo_id}"
    )


# --- what goes wrong on the way ---


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ({"status": 500}, "ConnectionError: the Hub failed with status 500 "),
        ({"status": 401}, r"PermissionError: the Hub asks for an access token \(401\): run `hf auth login`"),
        ({"status": 404}, "ConnectionError: the Hub failed with status 404 "),
        ({"cut": True}, "ConnectionError: the Hub cannot be reached "),
        ({"delay": 6.0}, "ConnectionError: the Hub cannot be reached "),
    ],
    ids=["broken", "unauthorized", "missing", "cut", "slow"],
)
def test_a_hub_that_fails_is_told_in_one_line(hub, owner, stranger, saved, repo_id, failure, message):
    owner.push(saved, repo_id)
    hub.fail(f"(GET|HEAD) /(api/models/)?{repo_id}[/$]", times=40, **failure)
    error = stranger.load(f"CellFluxRLPipeline.from_pretrained({repo_id!r})", fails=True)
    hub.stop_failing()
    assert re.match(message, error), error
    assert "\n" not in error
    assert stranger.load(f"CellFluxRLPipeline.from_pretrained({repo_id!r})") == "CellFluxRLPipeline"


def test_a_download_goes_on_where_the_connection_broke(hub, owner, stranger, saved, repo_id):
    owner.push(saved, repo_id)
    name = "unet/diffusion_pytorch_model.safetensors"
    hub.fail(f"GET /{repo_id}/resolve/.*{name}", cut=True, times=40)
    error = stranger.load(f"CellFluxRLPipeline.from_pretrained({repo_id!r})", fails=True)
    assert error.startswith("ConnectionError: the Hub cannot be reached")
    assert "try again: what has arrived is kept" in error
    hub.stop_failing()
    before = len(hub.requests)
    assert stranger.load(f"CellFluxRLPipeline.from_pretrained({repo_id!r})") == "CellFluxRLPipeline"
    assert downloads(hub, repo_id, before).count(name) == 1
    assert len(downloads(hub, repo_id, before)) < len(FILES) - 5, "everything was fetched again"


def test_what_is_not_there_is_told_in_one_line(hub, owner, stranger, saved, suite, repo_id, tmp_path):
    suite.save_pretrained(tmp_path / "suite")
    owner.push(tmp_path / "suite", repo_id)
    for call, message in (
        ("CellFluxRLPipeline.from_pretrained('org/nowhere')", "there is no folder 'org/nowhere' and no such pipeline"),
        ("MoAClassifier.from_pretrained('org/nowhere')", "there is no folder 'org/nowhere' and no such classifier"),
        ("RewardSuite.from_pretrained('org/nowhere')", "there is no folder 'org/nowhere' and no such reward suite"),
        (
            f"CellFluxRLPipeline.from_pretrained({repo_id!r})",
            "is not a pipeline: a file of it is missing (model",
        ),
        ("CellFluxRLPipeline.from_pretrained('runs/my/rl')", "there is no folder 'runs/my/rl', and a repository of"),
        ("MoAClassifier.from_pretrained('moa')", "there is no folder 'moa', and a repository of the Hub is named"),
        (f"RewardSuite.from_pretrained({repo_id!r}, revision='man')", "'man'; did you mean 'main'?"),
    ):
        error = stranger.load(call, fails=True)
        assert message in error
        assert "\n" not in error


def test_nothing_is_published_where_the_connection_broke_and_the_rest_follows(hub, owner, saved, repo_id):
    hub.part_size = 20_000
    broken = hashlib.sha256((saved / "unet/diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
    hub.fail(f"PUT .*{repo_id}/{broken}/2", cut=True, times=6)
    error = owner.push(saved, repo_id, fails=True)
    assert error.startswith("ConnectionError: the Hub cannot be reached")
    assert published(hub, repo_id) == {}, "half of a pipeline was published"
    before = len(hub.requests)
    arrived = set(hub.repos[repo_id].blobs)
    owner.push(saved, repo_id)
    hub.part_size = None
    assert set(published(hub, repo_id)) == FILES
    assert not {r.path.split("/")[4] for r in uploads(hub, repo_id, before)} & arrived, "sent again"
    assert len(hub.repos[repo_id].commits) == 2
    name = "unet/diffusion_pytorch_model.safetensors"
    assert published(hub, repo_id)[name] == (saved / name).read_bytes(), "sent in parts"


# --- classifiers, and folders of any kind ---


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("classifier") / "moa"
    MoAClassifier(moas=["DMSO", "Eg5 inhibitors"], width=4).eval().save_pretrained(folder)
    return folder


def test_a_classifier_from_the_hub_gives_identical_logits(hub, owner, stranger, classifier, repo_id):
    owner(f"{IMPORTS}result = MoAClassifier.from_pretrained({str(classifier)!r}).push_to_hub({repo_id!r})")
    files = published(hub, repo_id)
    assert set(files) == {"README.md", "config.json", "diffusion_pytorch_model.safetensors"}
    (name,) = weights(files)
    assert files[name] == (classifier / name).read_bytes()
    assert ModelCard(files["README.md"].decode()).data.pipeline_tag == "image-classification"
    images = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)
    with torch.no_grad():
        logits = MoAClassifier.from_pretrained(classifier)(images).logits
    code = (
        f"{IMPORTS}classifier = MoAClassifier.from_pretrained({repo_id!r})\n"
        "images = torch.linspace(-1, 1, 2 * 3 * 16 * 16).reshape(2, 3, 16, 16)\n"
        "with torch.no_grad():\n    result = [x.hex() for x in classifier(images).logits.flatten().tolist()]"
    )
    assert stranger(code) == [x.hex() for x in logits.flatten().tolist()]


def test_the_command_publishes_whatever_a_folder_holds(hub, owner, saved, suite, classifier, repo_id, tmp_path):
    suite.save_pretrained(tmp_path / "suite")
    build = ["data", "build", "--source", "simulated", "--cells_per_moa", "4", "--controls_per_plate", "4"]
    build += ["--num_plates", "2", "--image_size", "16", "--num_proc", "1"]
    assert owner.run(*build, "--output_dir", tmp_path / "cells")[0] == 0
    folders = {"pipeline": saved, "suite": tmp_path / "suite", "classifier": classifier, "cells": tmp_path / "cells"}
    for kind, folder in folders.items():
        assert owner.run("push", folder, f"{repo_id}-{kind}") == [0, ""]
    assert {f"{repo_id}-{kind}" for kind in ("pipeline", "suite", "classifier")} <= set(hub.repos)
    repo = hub.repos[f"datasets/{repo_id}-cells"]
    loaded = "from datasets import load_dataset\nresult = load_dataset({!r})['train'].num_rows"
    assert owner(loaded.format(f"{repo_id}-cells")) > 0
    assert len(repo.commits) == 2
    status, error = owner.run("push", tmp_path / "cell", "org/cells")
    assert status == 2
    assert "did you mean 'cells'?" in error
    status, error = owner.run("push", tmp_path, "org/cells")
    assert "is neither a pipeline nor a classifier, a reward suite or a data set; it holds: cells, suite" in error


SMALL = ["--cpu", "--image_size", "16", "--simulated_cells_per_moa", "8", "--max_train_steps", "2"]
# Enough for samples of a group to differ, without which post-training refuses to begin.
BASE = ["--preset", "tiny", "--train_batch_size", "4", "--max_train_steps", "60", "--learning_rate", "3e-3"]
BASE += ["--lr_warmup_steps", "5", "--ema_decay", "0.9"]
ROLLOUTS = ["--conditions_per_step", "1", "--controls_per_condition", "2", "--rollouts_per_control", "2"]


def test_training_scripts_publish_what_they_trained(hub, owner, stranger, tmp_path):
    base, moa, rl = (tmp_path / name for name in ("base", "moa", "rl"))
    assert owner.run("pretrain", *SMALL, *BASE, "--output_dir", base, "--push_to_hub")[0] == 0
    files = published(hub, "tester/base")
    assert {"log.jsonl", "samples.png"} <= set(files)
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "apache-2.0"
    assert "![" in card.text
    assert "(samples.png)" in card.text
    assert "Not evaluated" in card.text
    assert str(tmp_path) not in card.content

    moa_options = [*SMALL, "--train_batch_size", "8", "--output_dir", moa, "--push_to_hub", "--private"]
    assert owner.run("moa", *moa_options, "--hub_model_id", "org/moa")[0] == 0
    assert hub.repos["org/moa"].private
    assert "balanced_accuracy" in published(hub, "org/moa")["README.md"].decode()

    rl_options = ["--pretrained_model_name_or_path", base, "--classifier", moa, "--output_dir", rl, "--push_to_hub"]
    hub.fail("POST .*org/rl/commit", status=500)
    status, error = owner.run("rl", *SMALL, *ROLLOUTS, *rl_options, "--hub_model_id", "org/rl")
    assert status == 2, error
    assert f"{rl} is saved, but not published: the Hub failed with status 500" in error
    command = re.search(r"`(cellfluxrl push .*)` publishes it", error)[1]
    assert owner.run(*command.split()[1:])[0] == 0
    card = ModelCard(published(hub, "org/rl")["README.md"].decode())
    assert "Pretraining by flow matching" in card.text
    assert "Post-training with biological rewards" in card.text
    assert stranger.load("CellFluxRLPipeline.from_pretrained('org/rl')") == "CellFluxRLPipeline"


def test_a_mistake_shows_before_the_training_begins(hub, owner, stranger, tmp_path):
    output = ["--output_dir", tmp_path / "base"]
    for user, options, message in (
        (stranger, ["--push_to_hub"], "there is no access token for the Hub"),
        (owner, ["--push_to_hub", "--hub_model_id", "base"], "must be named 'owner/name'"),
        (owner, ["--hub_model_id", "org/base"], "need --push_to_hub: without it nothing is published"),
    ):
        status, error = user.run("pretrain", *SMALL, *BASE, *output, *options)
        assert status == 2
        assert message in error
    assert not (tmp_path / "base").exists()


def test_what_the_hub_refuses_is_told_and_nothing_is_published(hub, owner, saved, repo_id):
    hub.fail(f"POST .*{repo_id}/commit/", status=400)
    error = owner.push(saved, repo_id, fails=True)
    assert error.startswith(f"ValueError: the Hub refuses what was sent to {repo_id}: ")
    assert "failure injected by the test" in error
    assert published(hub, repo_id) == {}


# --- what needs no Hub ---


def test_an_incomplete_pipeline_is_not_published(saved, tmp_path):
    folder = tmp_path / "pipeline"
    shutil.copytree(saved, folder)
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"unet' has no weights: save the whole of it again"):
        CellFluxPipeline.push_folder(folder, "org/x", token="hf_unused")


def test_a_card_of_ones_own_is_not_overwritten(saved, tmp_path):
    folder = tmp_path / "pipeline"
    shutil.copytree(saved, folder)
    (folder / "README.md").write_text("---\ntags: [a]\n---\n[More Information Needed]")
    with pytest.raises(ValueError, match="still has the placeholder"):
        push_folder(folder, "org/x", token="hf_unused")
    with pytest.raises(ValueError, match="is the card, write the licence there"):
        push_folder(folder, "org/x", token="hf_unused", license="mit")
