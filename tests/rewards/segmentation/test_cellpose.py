"""Cellpose: its installation and weights, degenerate images, and small networks that are trained here and used.

Fast tests use a tiny network with random weights; slow ones train two small networks on simulated cells.
"""

import dataclasses
import json
import os
import subprocess
import sys
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage as ndi
from small_cellpose import ROUGH_FLOWS, WIDTHS, eval_loop, eval_model, precision, simulated_crops, train_cellpose

from cellfluxrl.rewards.segmentation.cellpose.flows import flow_errors, masks_from_flows
from cellfluxrl.rewards.segmentation.cellpose.models import load_network
from cellfluxrl.rewards.segmentation.cellpose.segmenter import CellposeSegmenter, normalize_images
from cellfluxrl.rewards.segmentation.labelling import remove_small
from cellfluxrl.rewards.segmentation.measurements import measure
from cellfluxrl.rewards.segmentation.protocol import make_segmenter
from cellfluxrl.rewards.segmentation.watershed import WatershedSegmenter

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tiny_weights(tmp_path_factory):
    """Weights that mean nothing, of a network that is not as wide as Cellpose's."""
    resnet = pytest.importorskip("cellpose.resnet_torch")
    torch.manual_seed(0)
    network = resnet.CPnet([2, 4, 8, 8], nout=3, sz=3)
    network.diam_labels.fill_(24.0)
    network.output[2].weight.data *= 40  # flows long enough to make heaps
    path = tmp_path_factory.mktemp("tiny") / "weights"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def tiny(tiny_weights):
    """A segmenter that finds masks in anything, for whatever the tiny network puts out is foreground."""
    return CellposeSegmenter(
        nucleus_model=str(tiny_weights),
        cell_model=str(tiny_weights),
        flow_threshold=0,
        cellprob_threshold=-100,
        bfloat16=False,
    )


def assert_labels(masks, shape):
    for labels in (masks.nuclei, masks.cells):
        assert labels.shape == shape
        assert labels.dtype == np.int32
        for image in labels:
            np.testing.assert_array_equal(np.unique(image[image > 0]), np.arange(1, image.max() + 1))


def rolling_discs(centres, radius, size=48):
    """Return flows towards centres (row, column) and the discs around them."""
    rows, columns = np.mgrid[:size, :size]
    flows = np.zeros((2, size, size), dtype=np.float32)
    labels = np.zeros((size, size), dtype=np.int32)
    for k, (row, column) in enumerate(centres, start=1):
        towards = np.stack([row - rows, column - columns]).astype(np.float32)
        disc = np.hypot(*towards) < radius
        flows[:, disc] = (towards / np.maximum(np.hypot(*towards), 1))[:, disc]
        labels[disc] = k
    return flows, labels


# Installation


def test_importing_rewards_does_not_import_cellpose():
    code = "import sys, cellfluxrl.rewards; from cellfluxrl.rewards.segmentation.protocol import make_segmenter; "
    code += "make_segmenter('cellpose'); assert not any(name.split('.')[0] == 'cellpose' for name in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cellpose", None)
    with pytest.raises(ImportError, match=r'pip install "cellfluxrl\[cellpose\]"'):
        CellposeSegmenter()(np.zeros((1, 3, 24, 24), dtype=np.float32))


@pytest.mark.parametrize("version", ["3.1.0", "2.3.2", "5.0", "11.1.2"])
def test_a_version_that_was_not_tested_is_named(monkeypatch, version):
    package = types.ModuleType("cellpose")
    package.version = version
    monkeypatch.setitem(sys.modules, "cellpose", package)
    known = rf"tested with Cellpose 3\.1\.1 and later, below 5; {version} is installed: pip install"
    with pytest.raises(ImportError, match=known):
        CellposeSegmenter()(np.zeros((1, 3, 24, 24), dtype=np.float32))


@pytest.mark.slow
def test_missing_weights_say_which_file_goes_where(tmp_path):
    """With the real package, and a network that cannot be reached."""
    pytest.importorskip("cellpose.resnet_torch")
    code = "import numpy as np; from cellfluxrl.rewards.segmentation.protocol import make_segmenter; "
    code += "make_segmenter('cellpose')(np.zeros((1, 3, 24, 24)))"
    nowhere = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
    environment = {**os.environ, **nowhere, "no_proxy": "", "CELLPOSE_LOCAL_MODELS_PATH": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "FileNotFoundError: the weights of the Cellpose model 'nuclei' are not on this machine" in result.stderr
    assert "'nucleitorch_0'" in result.stderr
    assert f"into the folder {tmp_path}" in result.stderr
    assert "CELLPOSE_LOCAL_MODELS_PATH" in result.stderr
    assert not list(tmp_path.iterdir())


# Weights


def test_networks_of_any_width_load_from_a_path(tiny_weights):
    network = load_network(str(tiny_weights), CPU, bfloat16=False)
    assert network.channels == 2
    assert network.trained_diameter == 24
    assert network.object_diameter == 30


@pytest.mark.parametrize("path", ["nowhere/weights", "weights.pt"])
def test_path_to_nothing_is_refused(path, tiny_weights):
    with pytest.raises(FileNotFoundError, match=path):
        load_network(path, CPU, bfloat16=False)


def test_files_of_other_things_are_refused(tiny_weights, tmp_path):
    weights = torch.load(tiny_weights, weights_only=True)
    path = tmp_path / "weights"

    def refused(content, message):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            load_network(str(path), CPU, bfloat16=False)

    refused({**weights, "output.2.weight": torch.zeros(4, 4, 1, 1)}, r"'output.2.weight' has the shape \(4, 4, 1, 1\)")
    refused({**weights, "extra": torch.zeros(2)}, "'extra'")
    refused({k: w for k, w in weights.items() if k != "output.2.bias"}, "'output.2.bias' has the shape None")
    refused({**weights, "W2": torch.zeros(1)}, "Cellpose 4")
    refused({"a": torch.zeros(1)}, "does not hold the weights of a Cellpose 3 network")
    refused([1, 2], "does not hold the weights of a network, but list")
    refused({"weights": np.random.default_rng}, "is not a file of PyTorch weights")  # would run code when unpickled
    path.write_bytes(b"no weights")
    with pytest.raises(ValueError, match="is not a file of PyTorch weights"):
        load_network(str(path), CPU, bfloat16=False)


def test_a_network_of_one_channel_cannot_see_dna(tmp_path):
    resnet = pytest.importorskip("cellpose.resnet_torch")
    torch.save(resnet.CPnet([1, 4, 4], nout=3, sz=3).state_dict(), tmp_path / "one")
    one = str(tmp_path / "one")
    images = np.zeros((1, 3, 24, 24), dtype=np.float32)
    assert_labels(CellposeSegmenter(nucleus_model=one, cell_model=one)(images), (1, 24, 24))
    with pytest.raises(ValueError, match="cells_see_dna must be False"):
        CellposeSegmenter(nucleus_model=one, cell_model=one, cells_see_dna=True)(images)


# Version 4, of which there is only a stand-in here


class StandInModel:
    """Version 4's `CellposeModel`, as far as it is used: a network on full tiles of three channels."""

    def __init__(self, pretrained_model, device, use_bfloat16):
        self.pretrained_model, self.use_bfloat16 = pretrained_model, use_bfloat16
        self.net = StandInNetwork().to(device, torch.bfloat16 if use_bfloat16 else torch.float32)


class StandInNetwork(torch.nn.Module):
    """Flows to the middle of the bright disc, which is in the middle of the tile."""

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(1))

    def forward(self, images):
        assert images.shape[1:] == (3, 256, 256)
        centre = torch.arange(256) - 127.5
        rows, columns = torch.meshgrid(-centre, -centre, indexing="ij")
        flows = 5 * torch.stack([rows, columns]) / torch.hypot(rows, columns)
        logits = 10 * images[:, :1] - 5
        return torch.cat([flows.expand(len(images), 2, 256, 256).to(logits), logits], dim=1) * self.one, None


@pytest.fixture
def version_4(monkeypatch, tmp_path):
    package, models = types.ModuleType("cellpose"), types.ModuleType("cellpose.models")
    package.version, package.__path__ = "4.2.1.1", []
    models.CellposeModel, models.MODEL_NAMES = StandInModel, ["cpsam_v2", "cpsam"]
    models.MODEL_DIR, models._MODEL_URL = tmp_path, "http://127.0.0.1:9/"
    package.models = models
    monkeypatch.setitem(sys.modules, "cellpose", package)
    monkeypatch.setitem(sys.modules, "cellpose.models", models)
    return tmp_path


@pytest.mark.parametrize("bfloat16", [True, False])
def test_version_4_segments_on_full_tiles(version_4, bfloat16):
    (version_4 / "cpsam").write_bytes(b"read by version 4 itself")
    _, disc = rolling_discs([(23.5, 23.5)], 10)
    images = np.stack([disc, disc, disc])[None].astype(np.float32)
    masks = CellposeSegmenter(nucleus_model="cpsam", cell_model="cpsam", bfloat16=bfloat16)(images)
    assert_labels(masks, (1, 48, 48))
    for labels in (masks.nuclei, masks.cells):
        np.testing.assert_array_equal(labels[0], disc)


def test_version_4_has_other_models(version_4):
    with pytest.raises(ValueError, match="unknown model of Cellpose 4, or file of weights: 'cyto3'"):
        load_network("cyto3", CPU, bfloat16=False)


def test_version_4_says_where_its_weights_go(version_4):
    with pytest.raises(FileNotFoundError, match=f"Put the file 'cpsam' .* into the folder {version_4}"):
        load_network("cpsam", CPU, bfloat16=False)


def test_version_4_without_torchvision_says_so(version_4, monkeypatch):
    class Broken(types.ModuleType):
        def __getattr__(self, name):
            raise RuntimeError("operator torchvision::nms does not exist")

    broken = Broken("cellpose")
    broken.__dict__.update(version="4.2.1.1", __path__=[], __spec__=None)
    monkeypatch.setitem(sys.modules, "cellpose", broken)
    with pytest.raises(ImportError, match="Cellpose 4 needs a torchvision that fits the installed PyTorch"):
        load_network("cpsam", CPU, bfloat16=False)


# Settings and images


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"channel_names": ("er", "actin")}, "one 'dna'"),
        ({"channel_names": ("dna",)}, "at least one other channel"),
        ({"nucleus_model": ""}, "nucleus_model .* ''"),
        ({"cell_model": None}, "cell_model .* None"),
        ({"cell_diameter": 0}, "cell_diameter must be positive and finite, or None, got 0"),
        ({"nucleus_diameter": float("nan")}, "nucleus_diameter .* nan"),
        ({"flow_threshold": -0.1}, "flow_threshold must be at least 0 and finite, got -0.1"),
        ({"cellprob_threshold": float("inf")}, "cellprob_threshold must be finite, got inf"),
        ({"min_size": -1}, "min_size .* -1"),
        ({"max_size_fraction": 1.5}, "max_size_fraction .* 1.5"),
        ({"batch_size": 0}, "batch_size .* 0"),
        ({"batch_size": 2.5}, "batch_size .* 2.5"),
    ],
)
def test_bad_settings_are_refused_by_value(wrong, message):
    with pytest.raises(ValueError, match=message):
        CellposeSegmenter(**wrong)


def test_settings_survive_json():
    segmenter = CellposeSegmenter(channel_names=("dna", "er"), cell_model="mine", cell_diameter=35, bfloat16=False)
    saved = json.loads(json.dumps(dataclasses.asdict(segmenter)))
    assert make_segmenter("cellpose", **saved) == segmenter


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 3, 24, 24), dtype=np.uint8), "floats in"),
        (np.zeros((2, 2, 24, 24), dtype=np.float32), r"images must be \(N, 3, H, W\)"),
        (np.zeros((3, 24, 24), dtype=np.float32), r"images must be \(N, 3, H, W\)"),
        (np.full((1, 3, 24, 24), np.nan, dtype=np.float32), "nan"),
        (np.full((1, 3, 24, 24), 2.0, dtype=np.float32), "2.0"),
    ],
)
def test_wrong_images_are_refused(tiny, images, message):
    with pytest.raises(ValueError, match=message):
        tiny(images)


def test_no_images_give_no_masks(tiny):
    assert_labels(tiny(np.zeros((0, 3, 24, 24), dtype=np.float32)), (0, 24, 24))


@pytest.mark.parametrize("size", [(24, 24), (1, 1), (1, 40), (31, 60), (200, 90)])
@pytest.mark.parametrize("bfloat16", [True, False])
def test_any_size_and_content_gives_masks(tiny, size, bfloat16):
    images = np.zeros((5, 3, *size), dtype=np.float32)
    images[1] = 1
    images[2, :, size[0] // 2, size[1] // 2] = 1  # a single bright pixel
    images[3, 0] = 1  # nucleus all over
    images[4] = np.random.default_rng(0).random((3, *size))
    segmenter = dataclasses.replace(tiny, bfloat16=bfloat16)
    assert_labels(segmenter(images), (5, *size))


def test_images_larger_than_a_tile_give_masks(tiny):
    images = np.random.default_rng(0).random((2, 3, 260, 100), dtype=np.float32)
    assert_labels(tiny(images), (2, 260, 100))


def test_constant_images_have_no_contrast():
    levels = np.array([0, 0.3, 1], dtype=np.float32)[:, None, None]
    np.testing.assert_array_equal(normalize_images(np.broadcast_to(levels, (3, 8, 9))), np.zeros((3, 8, 9)))


def test_normalisation_is_that_of_cellpose():
    transforms = pytest.importorskip("cellpose.transforms")
    images = np.random.default_rng(0).random((4, 20, 30), dtype=np.float32) ** 3
    expected = [transforms.normalize99(image) for image in images]
    np.testing.assert_allclose(normalize_images(images), expected, atol=1e-6)


@settings(max_examples=6, deadline=None)
@given(order=st.permutations(range(5)), batch_size=st.integers(1, 6))
def test_masks_do_not_depend_on_the_batch(tiny, order, batch_size):
    images, _, _ = simulated_crops(5, image_size=32)
    together = tiny(images)
    reordered = dataclasses.replace(tiny, batch_size=batch_size)(images[order])
    assert together.nuclei.max(axis=(1, 2)).min() > 0
    np.testing.assert_array_equal(reordered.nuclei, together.nuclei[order])
    np.testing.assert_array_equal(reordered.cells, together.cells[order])


def test_cells_are_found_without_the_dna_unless_told(tiny):
    images, _, _ = simulated_crops(4)
    other = images.copy()
    other[:, 0] = other[::-1, 0]
    np.testing.assert_array_equal(tiny(images).cells, tiny(other).cells)
    seeing = dataclasses.replace(tiny, cells_see_dna=True)
    assert (seeing(images).cells != seeing(other).cells).any()


# From flows to masks


def test_masks_follow_the_flows():
    """Touching discs, and one whose middle is on the border."""
    flows, labels = rolling_discs([(12, 12), (12, 30), (40, 0)], 9)
    masks = masks_from_flows(torch.from_numpy(flows)[None], torch.from_numpy(labels > 0)[None], 100, flow_threshold=0)[
        0
    ]
    assert masks.max() == 3
    for k in (1, 2, 3):
        found = masks == masks[labels == k][0]
        np.testing.assert_array_equal(found, labels == k)


def test_masks_without_flows_of_their_own_are_removed():
    flows, labels = rolling_discs([(24, 24)], 12)
    flows[:, 24:] = [[[0]], [[-1]]]  # half of the disc flows elsewhere
    strips = torch.from_numpy(flows)[None], torch.from_numpy(labels > 0)[None]
    kept = masks_from_flows(*strips, steps=100, flow_threshold=0)
    assert masks_from_flows(*strips, steps=100, flow_threshold=0.4).max() < kept.max()


def test_holes_are_filled_and_small_and_large_masks_removed():
    flows, labels = rolling_discs([(14, 14), (38, 38)], 9)
    holed = labels > 0
    holed[14, 14] = False
    strips = torch.from_numpy(flows)[None], torch.from_numpy(holed)[None]
    np.testing.assert_array_equal(masks_from_flows(*strips, steps=100)[0] > 0, labels > 0)
    area = (labels == 1).sum()
    assert masks_from_flows(*strips, steps=100, min_size=area + 1).max() == 0
    assert masks_from_flows(*strips, steps=100, max_size_fraction=(area - 4) / 48**2).max() == 0


@pytest.mark.slow
def test_masks_and_flow_errors_are_those_of_cellpose():
    """Noisy flows of simulated cells through our functions and Cellpose's."""
    dynamics, metrics = pytest.importorskip("cellpose.dynamics"), pytest.importorskip("cellpose.metrics")
    _, nuclei, cells = simulated_crops(13, seed=5)
    noise = np.random.default_rng(0).normal(size=(13, 2, 48, 48))
    noise = 1.5 * ndi.gaussian_filter(noise, (0, 0, 2, 2))
    for labels in (nuclei, cells):
        flows = np.stack([dynamics.masks_to_flows(image) for image in labels]) + noise
        flows = ndi.gaussian_filter(flows, (0, 0, 1, 1)).astype(np.float32)
        expected = [
            dynamics.resize_and_compute_masks(5 * flow, image > 0, 200, cellprob_threshold=0.5, max_size_fraction=1)
            for flow, image in zip(flows, labels.astype(np.float32), strict=True)
        ]
        masks = masks_from_flows(torch.from_numpy(flows), torch.from_numpy(labels > 0), steps=200)
        assert precision(np.stack(expected), masks, overlap=0.9) > 0.97
        errors = [metrics.flow_error(image, 5 * flow, CPU)[0] for image, flow in zip(masks, flows, strict=True)]
        before = np.cumsum([0, *map(len, errors)])[:-1]
        unique = masks + (masks > 0) * before[:, None, None]
        np.testing.assert_allclose(flow_errors(unique, flows), np.concatenate(errors), atol=1e-4)


# Trained networks


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Paths of a nucleus and a cell network that have seen simulated cells."""
    pytest.importorskip("cellpose.train")
    folder = tmp_path_factory.mktemp("cellpose")
    return {kind: train_cellpose(kind, folder) for kind in ("nucleus", "cell")}


@pytest.fixture(scope="session")
def segmenter(trained):
    # Flows are rough after half a minute of training, so the quality that is asked of them is lower than by default.
    return CellposeSegmenter(
        nucleus_model=str(trained["nucleus"]), cell_model=str(trained["cell"]), flow_threshold=ROUGH_FLOWS
    )


def without_slivers(labels, area=30):
    """Drop what the border cuts off, which is not expected to be found."""
    counts = labels.max(axis=(1, 2))
    unique = labels + (labels > 0) * (np.cumsum(counts) - counts)[:, None, None]
    return remove_small(unique, area)


@pytest.mark.slow
def test_trained_networks_find_held_out_cells(segmenter):
    images, nuclei, cells = simulated_crops(130, seed=99)
    masks = segmenter(images)
    assert_labels(masks, nuclei.shape)
    nuclei, cells, found_nuclei, found_cells = map(without_slivers, (nuclei, cells, masks.nuclei, masks.cells))
    assert precision(nuclei, found_nuclei) > 0.7
    assert precision(cells, found_cells) > 0.55
    assert np.mean(nuclei.max(axis=(1, 2)) == found_nuclei.max(axis=(1, 2))) > 0.55
    assert abs(nuclei.max(axis=(1, 2)).mean() - found_nuclei.max(axis=(1, 2)).mean()) < 0.7


@pytest.mark.slow
def test_trained_networks_agree_with_the_watershed(segmenter):
    images, _, _ = simulated_crops(65, seed=98)
    ours, watershed = segmenter(images), WatershedSegmenter()(images)
    assert precision(without_slivers(watershed.nuclei), without_slivers(ours.nuclei)) > 0.7
    overlap = ((ours.cells > 0) & (watershed.cells > 0)).sum() / ((ours.cells > 0) | (watershed.cells > 0)).sum()
    assert overlap > 0.7


@pytest.mark.slow
@pytest.mark.parametrize("image_size", [48, 96])
def test_masks_are_those_of_a_loop_of_eval(trained, segmenter, image_size):
    images, _, _ = simulated_crops(20, image_size=image_size, seed=97)
    models = {kind: eval_model(path, WIDTHS["small"]) for kind, path in trained.items()}
    diameters = {kind: model.diam_labels * image_size / 48 for kind, model in models.items()}
    looped = eval_loop(models, images, diameters)
    sized = dataclasses.replace(
        segmenter,
        nucleus_diameter=diameters["nucleus"],
        cell_diameter=diameters["cell"],
        flow_threshold=0.4,
        bfloat16=False,
    )
    masks = sized(images)
    assert precision(looped.nuclei, masks.nuclei, overlap=0.9) > 0.97
    assert precision(looped.cells, masks.cells, overlap=0.9) > 0.97
    rounded = dataclasses.replace(sized, bfloat16=True)(images)
    assert precision(looped.nuclei, rounded.nuclei) > 0.95
    assert precision(looped.cells, rounded.cells) > 0.95


@pytest.mark.slow
def test_trained_masks_do_not_depend_on_the_batch(segmenter):
    images, _, _ = simulated_crops(16, seed=96)
    # Some processors round bfloat16 otherwise in other batches, which moves the borders of a few masks.
    for bfloat16, overlap in ((False, 0.9), (True, 0.5)):
        whole = dataclasses.replace(segmenter, bfloat16=bfloat16)
        together = whole(images)
        for batch_size in (1, 5):
            parts = dataclasses.replace(whole, batch_size=batch_size)(images)
            assert precision(together.nuclei, parts.nuclei, overlap=overlap) > 0.97
            assert precision(together.cells, parts.cells, overlap=overlap) > 0.97


@pytest.mark.slow
def test_nuclei_outside_of_cells_are_not_contained(segmenter):
    """Cells are found without the DNA, so nuclei on background stay outside."""
    images, _, _ = simulated_crops(130, seed=95)
    sparse = images[np.argsort(images[:, 1:].mean(axis=(1, 2, 3)))[:20]]
    shifted = sparse.copy()
    shifted[:, 0] = np.roll(shifted[:, 0], 24, axis=2)
    before, after = (measure(segmenter(batch))["containment"].mean() for batch in (sparse, shifted))
    assert before > 0.9
    assert after < before - 0.15
