"""Saves one small example of everything that can be saved, and what it gives; the README says with which revision.

python tests/compatibility/make.py FOLDER
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import numpy as np
import torch

from cellfluxrl import (
    CellFluxFlowMatchScheduler,
    CellFluxPipeline,
    CellFluxRLPipeline,
    CellFluxUNet2DModel,
    CompoundEncoder,
    ControlTreatedPairs,
    MoAClassifier,
    RewardSuite,
    SimulatedCells,
)
from cellfluxrl.data.calibration import control_levels
from cellfluxrl.data.compounds import CONTROL, MOAS, known_compounds
from cellfluxrl.data.image_store import open_images
from cellfluxrl.data.pairs import images_to_tensor

IMAGE_SIZE, NUM_BITS = 16, 32
ADDED = {"my-compound": {"smiles": "CCO", "moa": "Protein synthesis"}}
COMPOUNDS = ["taxol", "my-compound"]
CONCENTRATIONS = [0.3, 10.0]
RUN_OPTIONS = {
    "image_size": IMAGE_SIZE,
    "conditions_per_step": 2,
    "controls_per_condition": 2,
    "rollouts_per_control": 3,
    "num_inference_steps": 2,
    "inner_steps": 2,
    "train_batch_size": 12,
    "learning_rate": 1e-3,
    "lr_warmup_steps": 2,
    "ema_decay": 0.5,
    "max_train_steps": 4,
    "checkpointing_steps": 2,
    "sample_steps": 0,
}


def with_random_weights(model: torch.nn.Module, spread: float) -> torch.nn.Module:
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=random))
    return model.eval()


def unet(condition_dim: int, dose_dim: int = 0) -> CellFluxUNet2DModel:
    """Narrow, and with so little to add to a control that what it generates can still be segmented."""
    narrow = {"model_channels": 4, "channel_mult": (1,), "norm_num_groups": 2, "attention_resolutions": (1,)}
    sizes = {"sample_size": IMAGE_SIZE, "condition_dim": condition_dim, "dose_dim": dose_dim}
    return with_random_weights(
        CellFluxUNet2DModel.from_preset("tiny", prediction_type="velocity", **sizes, **narrow), 0.05
    )


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in range(count)]


def run_command(*arguments: str | Path) -> None:
    subprocess.run([Path(sys.executable).parent / "cellfluxrl", *map(str, arguments)], check=True)


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    work = Path(tempfile.mkdtemp())
    expected: dict[str, np.ndarray] = {}

    # 1. A data set, and more cells of its kind, which the rewards are fitted on
    run_command(
        *("data", "build", "--source", "simulated", "--output_dir", folder / "dataset", "--num_proc", 1),
        *("--image_size", IMAGE_SIZE, "--cells_per_moa", 4, "--controls_per_plate", 24, "--num_plates", 2),
    )
    (folder / "dataset" / "contact_sheet.png").unlink()
    cells = datasets.load_dataset(str(folder / "dataset"), cache_dir=str(work / "cache"))
    rows = {name: split.remove_columns("image").to_list() for name, split in cells.items()}
    for name, split in cells.items():
        for row, image in zip(rows[name], np.asarray(open_images(split)[:]), strict=True):
            row["image_sha256"] = hashlib.sha256(image.tobytes()).hexdigest()
    lines = [json.dumps(row) for split in rows.values() for row in split]
    (folder / "dataset_rows.jsonl").write_text("\n".join(lines) + "\n")
    builder = SimulatedCells(
        cache_dir=str(work / "cells"), image_size=IMAGE_SIZE, cells_per_moa=16, controls_per_plate=12, num_plates=2
    )
    builder.download_and_prepare()
    real = builder.as_dataset()["train"]

    # 2. A classifier and two suites
    torch.manual_seed(0)
    classifier = with_random_weights(MoAClassifier(moas=[CONTROL, *MOAS], width=1), 0.5)
    classifier.temperature.fill_(1.5)
    classifier.save_pretrained(folder / "classifier")
    suite = RewardSuite.fit(real, classifier)
    few_rewards = RewardSuite.fit(
        real, classifier, segmenter="otsu", rewards=["containment", "nucleus_size"], pixel_size=0.5
    )
    few_rewards.save_pretrained(folder / "few_rewards")
    test = cells["test"]
    images, moas = images_to_tensor(open_images(test)[:]), list(test["moa"])
    with torch.no_grad():
        expected["classifier/logits"] = classifier(images).logits.numpy()
        expected["classifier/features"] = classifier(images).features.numpy()
    for name, one in (("suite", suite), ("few_rewards", few_rewards)):
        for form in ("deviation", "energy"):
            expected |= {f"{name}/{form}/{key}": value.numpy() for key, value in one(images, moas, form=form).items()}
        measured = one.measure(images, moas)
        expected[f"{name}/outside_real_range"] = one.outside_real_range(measured, moas).numpy()
        expected[f"{name}/appearance"] = one.appearance(measured, moas).numpy()

    # 3. A base without and a post-trained pipeline with doses and rewards
    base = CellFluxPipeline(
        unet(NUM_BITS),
        CellFluxFlowMatchScheduler(solver="midpoint", source_noise_scale=0.2),
        CompoundEncoder(num_bits=NUM_BITS),
        control_levels(ControlTreatedPairs(cells["train"])),
    )
    base.save_pretrained(folder / "base")
    encoder = CompoundEncoder(known_compounds().to_dict(orient="index") | ADDED, num_bits=NUM_BITS, log_dose=True)
    noise = {"source_noise": "band_limited", "source_noise_scale": 0.2, "source_noise_grid": 4}
    pipeline = CellFluxRLPipeline(unet(NUM_BITS + 1, 1), CellFluxFlowMatchScheduler(**noise), encoder, suite)
    pipeline.save_pretrained(folder / "pipeline")
    controls = images[torch.tensor(list(test["is_control"]))][:2]
    expected["controls"] = controls.numpy()
    expected["base/condition"] = base.encoder.encode(["taxol", CONTROL]).numpy()
    expected["pipeline/condition"] = encoder.encode(COMPOUNDS, concentrations=CONCENTRATIONS).numpy()
    settings = {"num_inference_steps": 3, "output_type": "pt", "guidance_scale": 1.5}
    expected["base/images"] = base(controls, "taxol", generator=generators(2), **settings).images.numpy()
    expected["base/reverse"] = base(controls, "taxol", direction="reverse", **settings).images.numpy()
    expected["base/calibrated"] = base.calibrate(images)[:2].numpy()
    out = pipeline(controls, COMPOUNDS, CONCENTRATIONS, best_of_n=3, generator=generators(6), **settings)
    expected |= {"pipeline/images": out.images.numpy(), "pipeline/selected": out.selected.numpy()}
    expected |= {f"pipeline/rewards/{name}": value.numpy() for name, value in out.rewards.items()}

    # 4. A post-training run, of which the first checkpoint and what it came to in the end are kept
    run = work / "run"
    options = [str(part) for name, value in RUN_OPTIONS.items() for part in (f"--{name}", value)]
    run_command(
        *("rl", "--cpu", "--dataset_name", folder / "dataset", "--output_dir", run, *options),
        *("--pretrained_model_name_or_path", folder / "base", "--rewards", folder / "pipeline" / "rewards"),
    )
    shutil.copytree(run / "checkpoint-2", folder / "run" / "checkpoint-2")
    lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
    (folder / "run" / "log.jsonl").write_text("".join(lines[:2]))
    expected["run/combined"] = np.array([json.loads(line)["reward/combined"] for line in lines])
    trained = CellFluxRLPipeline.from_pretrained(run)
    expected["run/images"] = trained(controls, "taxol", generator=generators(2), **settings).images.numpy()

    np.savez_compressed(folder / "expected.npz", **expected)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
