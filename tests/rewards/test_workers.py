"""Scores from other processes: the same numbers, and what happens when an image cannot be scored."""

import logging
import os
import signal
import subprocess
import sys
import textwrap

import psutil
import pytest
import torch

from cellfluxrl import MoAClassifier, RewardSuite
from cellfluxrl.data.compounds import CONTROL, MOAS
from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.images import images_to_tensor
from cellfluxrl.rewards.partial import PartlyMeasured, measure_finite, scaled_statistics, score_partly
from cellfluxrl.rewards.workers import RewardWorkers

COUNT = 12
RAISE, HANG, DIE = 0.5, 0.25, -0.25  # the first pixel of an image tells the plug-in below what to do

PLUGIN = """
    import os, signal, time
    from cellfluxrl.rewards import Reward

    def score(seen):
        for pixel in seen.images[:, 0, 0, 0].tolist():
            if pixel == 0.5:
                raise ZeroDivisionError("a cell of no size")
            if pixel == 0.25:
                time.sleep(600)
            if pixel == -0.25:
                os.kill(os.getpid(), signal.SIGKILL)
        return seen.images.mean(dim=(1, 2, 3))

    fragile = Reward("fragile", score=score)
"""

# Starts a worker, is interrupted while that loads, and ends with the worker in the middle of an image.
PARENT = """
    import sys, time, torch
    from cellfluxrl import RewardSuite
    from cellfluxrl.rewards.workers import RewardWorkers

    if __name__ == "__main__":
        suite = RewardSuite.from_pretrained(sys.argv[1])
        images, moa = torch.load(sys.argv[2], weights_only=True).values()
        with RewardWorkers(suite) as workers:
            while workers._workers[0].process is None or workers._workers[0].process.pid is None:
                time.sleep(0.01)
            try:
                print(workers._workers[0].process.pid, flush=True)
                time.sleep(60)
            except KeyboardInterrupt:
                print(not workers.submit(images, moa).result().failed.any().item(), flush=True)
            images[0, 0, 0, 0] = 0.25
            workers.submit(images, moa).result()
"""


@pytest.fixture(scope="module")
def cells(simulated_cells):
    """Images of two mechanisms, their mechanisms, and their groups."""
    names = simulated_cells["test"]["moa"]
    rows = [i for moa in ("DNA damage", "Protein synthesis") for i in [i for i, n in enumerate(names) if n == moa][:6]]
    # Cloned into memory that torch aligned, as rollouts are: the last bit of a product may depend on where it lies.
    images = images_to_tensor(open_images(simulated_cells["test"].select(rows))[:]).clone()
    return images, [names[i] for i in rows], torch.arange(COUNT) // 3


def scores_of(workers, images, moa, form="deviation", groups=None):
    return score_partly(workers.suite, workers.submit(images, moa).result(), moa, form, groups)


def assert_same(scores, expected):
    """But for rounding, which differs in batches of another size, and is large in units of an untrained classifier."""
    assert scores.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(
            scores[name], values, rtol=1e-3, atol=1e-3, equal_nan=True, msg=lambda m, n=name: n + m
        )


# --------------------------------------------------------------------------------------------------------------------
# The form, apart from the measurements
# --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["deviation", "energy"])
@pytest.mark.parametrize("grouped", [False, True])
def test_scores_of_measured_images_are_the_suites(suite, cells, form, grouped):
    images, moa, groups = cells
    groups = groups if grouped else None
    scores = score_partly(suite, measure_finite(suite, images, moa), moa, form, groups)
    assert_same(scores, suite(images, moa, form, groups))


@pytest.mark.parametrize("form", ["deviation", "energy"])
def test_a_failed_image_gets_nan_and_the_others_what_they_get_without_it(suite, cells, form):
    images, moa, groups = cells
    seen = measure_finite(suite, images, moa)
    seen.failed[[1, 7]] = True
    seen.measured.values[[1, 7]] = torch.nan
    scores = score_partly(suite, seen, moa, form, groups)
    rest = [i for i in range(COUNT) if i not in (1, 7)]
    expected = suite(images[rest], [moa[i] for i in rest], form, groups[rest])
    assert_same({name: values[rest] for name, values in scores.items()}, expected)
    assert all(values[[1, 7]].isnan().all() for values in scores.values())


def test_where_all_images_failed_all_is_nan(suite, cells):
    images, moa, groups = cells
    seen = measure_finite(suite, images, moa)
    seen.failed[:] = True
    scores = score_partly(suite, seen, moa, "energy", groups)
    assert set(scores) == {*suite.weights, "combined"}
    assert all(values.isnan().all() and values.shape == (COUNT,) for values in scores.values())


def test_scaled_statistics_are_the_suites_and_nan_without_nuclei(suite, cells):
    images, moa, _ = cells
    images = images.clone()
    images[4] = -1
    statistics = scaled_statistics(suite, measure_finite(suite, images, moa), moa)
    assert statistics[4].isnan().all()
    rest = [i for i in range(COUNT) if i != 4 and statistics[i].isfinite().all()]
    assert_same({"": statistics[rest]}, {"": suite.statistics(images, moa)[rest]})


def test_parts_measured_apart_are_put_together(suite, cells):
    images, moa, groups = cells
    whole = PartlyMeasured.nothing(suite, COUNT)
    for rows in torch.arange(COUNT).split(5):
        whole.put(rows, measure_finite(suite, images[rows], [moa[i] for i in rows]))
    whole = PartlyMeasured.from_tensors(whole.tensors())
    assert_same(score_partly(suite, whole, moa, "energy", groups), suite(images, moa, "energy", groups))


# --------------------------------------------------------------------------------------------------------------------
# Processes
# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workers(suite):
    with RewardWorkers(suite, chunk_size=5) as workers:
        yield workers


@pytest.mark.parametrize("form", ["deviation", "energy"])
def test_a_process_scores_as_the_suite_does(workers, cells, form):
    images, moa, groups = cells
    pending = workers.submit(images, moa)
    assert_same(
        score_partly(workers.suite, pending.result(), moa, form, groups),
        workers.suite(images, moa, form, groups, batch_size=5),
    )
    assert workers.failed_images == 0


def test_several_batches_may_be_pending_and_are_not_mixed_up(workers, cells):
    images, moa, _ = cells
    pending = [workers.submit(images[i : i + 6], moa[i : i + 6]) for i in range(6)]
    for i in reversed(range(6)):
        own = moa[i : i + 6]
        scores = score_partly(workers.suite, pending[i].result(), own)
        assert_same(scores, workers.suite(images[i : i + 6], own, batch_size=5))


def test_an_image_that_is_not_finite_is_named_and_left_out(workers, cells, caplog):
    images, moa, groups = cells
    images = images.clone()
    images[7, 0, 3, 3] = torch.nan
    before = workers.failed_images
    with caplog.at_level(logging.WARNING):
        scores = scores_of(workers, images, moa, "energy", groups)
    assert "no reward for 1 of 12 images: 7 (its pixels are not finite)" in caplog.text
    assert workers.failed_images == before + 1
    assert scores["combined"].isnan().nonzero()[:, 0].tolist() == [7]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moa": ["DNA damge"] * COUNT}, "did you mean 'DNA damage'"),
        ({"moa": ["DNA damage"]}, "one MoA for each of the 12 images"),
        ({"images": torch.zeros(COUNT, 2, 24, 24)}, r"one plane for each of"),
        ({"images": torch.zeros(COUNT, 3, 20, 20)}, r"\(20, 20\)"),
    ],
)
def test_what_the_suite_refuses_is_refused_at_once(workers, cells, change, message):
    images, moa, _ = cells
    with pytest.raises(ValueError, match=message):
        workers.submit(**({"images": images, "moa": moa} | change))


@pytest.mark.parametrize("name", ["num_workers", "timeout", "chunk_size"])
def test_numbers_that_are_not_positive_are_refused(suite, name):
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        RewardWorkers(suite, **{name: 0})


@pytest.mark.slow
def test_closed_workers_leave_no_process_and_take_no_more(suite, cells):
    images, moa, _ = cells
    with RewardWorkers(suite) as workers:
        workers.submit(images, moa).result()
        process = psutil.Process(workers._workers[0].process.pid)
    assert not process.is_running()
    with pytest.raises(ValueError, match="closed"):
        workers.submit(images, moa)


# --------------------------------------------------------------------------------------------------------------------
# Rewards that fail
# --------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """An installed package whose reward raises, hangs or ends its process."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "fragile_reward.py").write_text(textwrap.dedent(PLUGIN))
    metadata = folder / "fragile_reward-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: fragile-reward\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[cellfluxrl.rewards]\nfragile = fragile_reward:fragile\n")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def fragile_suite(plugin, simulated_cells):
    classifier = MoAClassifier(moas=[CONTROL, *MOAS], width=4).eval()
    return RewardSuite.fit(simulated_cells["train"], classifier, rewards=["nucleus_size", "fragile"])


@pytest.fixture(scope="module")
def fragile(fragile_suite):
    # Long enough for a piece on a busy machine; the tests below wait for it up to three times.
    with RewardWorkers(fragile_suite, timeout=8, chunk_size=6) as workers:
        yield workers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (RAISE, "ZeroDivisionError: a cell of no size"),
        (HANG, "no answer within 8 s"),
        (DIE, "its process ended"),
    ],
    ids=["raises", "hangs", "ends its process"],
)
def test_one_image_that_cannot_be_scored_is_one_image(fragile, fragile_suite, cells, caplog, what, reason):
    images, moa, groups = cells
    images = images.clone()
    images[8, 0, 0, 0] = what
    before = fragile.failed_images
    with caplog.at_level(logging.WARNING):
        scores = scores_of(fragile, images, moa, "energy", groups)
    assert f"no reward for 1 of 12 images: 8 ({reason})" in caplog.text
    assert fragile.failed_images == before + 1
    rest = [i for i in range(COUNT) if i != 8]
    expected = fragile_suite(images[rest], [moa[i] for i in rest], "energy", groups[rest])
    assert_same({name: values[rest] for name, values in scores.items()}, expected)
    assert all(values[8].isnan() for values in scores.values())


@pytest.mark.slow
def test_a_process_that_is_killed_loses_nothing(fragile, fragile_suite, cells):
    images, moa, groups = cells
    expected = fragile_suite(images, moa, "energy", groups, batch_size=6)
    assert_same(scores_of(fragile, images, moa, "energy", groups), expected)
    before = fragile.failed_images
    os.kill(fragile._workers[0].process.pid, signal.SIGKILL)
    assert_same(scores_of(fragile, images, moa, "energy", groups), expected)
    assert fragile.failed_images == before


@pytest.mark.slow
def test_a_suite_that_processes_cannot_load_is_an_error_that_says_so(fragile_suite, cells, monkeypatch, plugin):
    images, moa, _ = cells
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder != str(plugin)])
    with (
        RewardWorkers(fragile_suite) as workers,
        pytest.raises(RuntimeError, match="cannot load the suite: ValueError: unknown reward 'fragile'"),
    ):
        workers.submit(images, moa).result()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="Ctrl-C for a process group is POSIX")
def test_processes_ignore_ctrl_c_and_end_with_their_parent(fragile_suite, plugin, cells, tmp_path):
    images, moa, _ = cells
    fragile_suite.save_pretrained(tmp_path / "suite")
    torch.save({"images": images, "moa": moa}, tmp_path / "cells.pt")
    (tmp_path / "parent.py").write_text(textwrap.dedent(PARENT))
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "parent.py", tmp_path / "suite", tmp_path / "cells.pt"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(plugin)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        worker = psutil.Process(int(parent.stdout.readline()))
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.stdout.readline() == "True\n"
        assert worker.is_running()
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert not psutil.wait_procs([worker], timeout=30)[1]
    finally:
        parent.kill()
        parent.communicate()
