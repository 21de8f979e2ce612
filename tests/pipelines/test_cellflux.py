"""The pipeline with random weights: its inputs, its outputs and its arithmetic."""

import shutil
import subprocess
import sys

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from cellfluxrl import CellFluxFlowMatchScheduler, CellFluxPipeline
from cellfluxrl.data.compounds import known_compounds
from cellfluxrl.data.images import to_pil, to_uint8


@pytest.fixture(scope="module")
def pipe(pipeline):
    return with_scheduler(pipeline)


def with_scheduler(pipeline, **settings) -> CellFluxPipeline:
    pipe = CellFluxPipeline(
        pipeline.unet, CellFluxFlowMatchScheduler(**{"solver": "midpoint", **settings}), pipeline.encoder
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


# --- outputs ---


def test_every_output_type_holds_the_same_images(generate):
    tensor, array, pictures = (generate(output_type=kind).images for kind in ("pt", "np", "pil"))
    assert tensor.shape == (3, 3, 16, 16)
    assert tensor.dtype == torch.float32
    assert -1 <= float(tensor.min()) < float(tensor.max()) <= 1
    assert isinstance(array, np.ndarray)
    np.testing.assert_allclose(array, (tensor.numpy() + 1) / 2, atol=1e-6)
    assert all(isinstance(picture, Image.Image) for picture in pictures)
    for picture, image in zip(pictures, to_uint8(tensor), strict=True):
        np.testing.assert_array_equal(np.asarray(picture), image[::-1].transpose(1, 2, 0))


def test_the_default_output_is_pil(pipe, controls):
    assert isinstance(pipe(controls, compound="taxol", num_inference_steps=1).images[0], Image.Image)


def test_a_tuple_starts_with_the_images(generate):
    assert torch.equal(generate(return_dict=False)[0], generate().images)


@pytest.mark.parametrize("kind", [to_uint8, to_pil, lambda x: (x + 1) / 2, list], ids=["uint8", "PIL", "0-1", "list"])
def test_the_kind_of_the_controls_does_not_matter(generate, controls, kind):
    torch.testing.assert_close(generate(kind(controls)).images, generate().images, rtol=0, atol=1e-4)


def test_a_single_control_gives_a_single_image(generate, controls):
    assert generate(controls[0]).images.shape == (1, 3, 16, 16)


def test_images_of_a_control_follow_each_other(generate, controls, generators):
    together = generate(num_images_per_control=2, generator=generators(0, 1, 2, 3, 4, 5)).images
    for i in range(3):
        alone = generate(controls[i : i + 1], num_images_per_control=2, generator=generators(2 * i, 2 * i + 1)).images
        torch.testing.assert_close(together[2 * i : 2 * i + 2], alone, rtol=0, atol=1e-4)


def test_the_trajectory_leads_from_the_noisy_control_to_the_image(generate, pipe, controls):
    output = generate(return_trajectory=True, num_inference_steps=3)
    assert output.trajectory.shape == (4, 3, 3, 16, 16)
    noise = pipe.scheduler.sample_source_noise(tuple(controls.shape), torch.Generator().manual_seed(0))
    torch.testing.assert_close(output.trajectory[0], controls + noise)
    assert torch.equal(output.trajectory[-1].clamp(-1, 1), output.images)
    assert generate().trajectory is None


def test_the_callback_sees_every_evaluation_and_may_change_the_sample(generate):
    seen = []

    def callback(pipe, evaluation, t, tensors):
        seen.append((evaluation, round(float(t), 3), tuple(tensors["sample"].shape)))
        return {"sample": torch.zeros_like(tensors["sample"])} if evaluation == 3 else {}

    images = generate(callback_on_step_end=callback).images
    assert seen == [(i, t, (3, 3, 16, 16)) for i, t in enumerate([0.0, 0.25, 0.5, 0.75])]
    assert (images == 0).all()


# --- arithmetic ---


def test_the_generator_decides_the_images(generate):
    assert torch.equal(generate().images, generate().images)
    assert not torch.equal(generate().images, generate(generator=torch.Generator().manual_seed(1)).images)


def test_with_a_list_of_generators_an_image_does_not_depend_on_its_batch(generate, controls, generators):
    together = generate(generator=generators(4, 5, 6)).images
    alone = generate(controls[1:2], generator=generators(5)).images
    torch.testing.assert_close(together[1:2], alone, rtol=0, atol=1e-4)
    shuffled = generate(controls[[2, 0, 1]], generator=generators(6, 4, 5)).images
    torch.testing.assert_close(together[[2, 0, 1]], shuffled, rtol=0, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_the_batch_size_does_not_change_the_result(generate, batch_size):
    whole, parts = (generate(batch_size=size, return_trajectory=True) for size in (3, batch_size))
    torch.testing.assert_close(parts.images, whole.images, rtol=0, atol=1e-4)
    torch.testing.assert_close(parts.trajectory, whole.trajectory, rtol=0, atol=1e-4)


def test_the_compound_changes_the_images(generate):
    assert not torch.allclose(generate().images, generate(compound="DMSO").images, atol=1e-3)


def test_each_control_can_have_its_own_compound(generate, controls, generators):
    names = ["taxol", "DMSO", "nocodazole"]
    together = generate(compound=names, generator=generators(0, 1, 2)).images
    for i, name in enumerate(names):
        alone = generate(controls[i : i + 1], compound=name, generator=generators(i)).images
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-4)


def test_a_smiles_means_what_its_name_means(generate):
    assert torch.equal(generate(smiles=known_compounds().loc["taxol", "smiles"]).images, generate().images)


def euler_steps(pipeline, generate, guidance_scale, steps=1):
    pipe = with_scheduler(pipeline, solver="euler")
    output = generate(pipe=pipe, guidance_scale=guidance_scale, num_inference_steps=steps, return_trajectory=True)
    return output.trajectory


def test_without_guidance_one_step_follows_the_conditional_velocity(pipeline, generate):
    source, end = euler_steps(pipeline, generate, 1.0)
    condition = pipeline.encoder.encode(["taxol"]).expand(3, -1)
    with torch.no_grad():
        velocity = pipeline.unet(source, 0.0, condition, return_dict=False)[0]
    torch.testing.assert_close(end, source + velocity)


def test_a_guidance_of_zero_follows_the_unconditional_velocity(pipeline, generate):
    source, end = euler_steps(pipeline, generate, 0.0)
    with torch.no_grad():
        velocity = pipeline.unet(source, 0.0, None, return_dict=False)[0]
    torch.testing.assert_close(end, source + velocity, rtol=0, atol=1e-4)


def test_one_step_is_linear_in_the_guidance(pipeline, generate):
    unconditional, conditional, guided = (euler_steps(pipeline, generate, g)[-1] for g in (0.0, 1.0, 2.5))
    assert not torch.allclose(unconditional, conditional, atol=1e-3)
    torch.testing.assert_close(guided, unconditional + 2.5 * (conditional - unconditional), rtol=0, atol=1e-4)


def test_guidance_of_almost_one_is_almost_no_guidance(pipeline, generate):
    torch.testing.assert_close(
        euler_steps(pipeline, generate, 1.0, steps=3),
        euler_steps(pipeline, generate, 1 + 1e-6, steps=3),
        atol=1e-4,
        rtol=0,
    )


# --- saving and loading ---


LOAD_AND_GENERATE = """
import sys
import numpy as np
import torch
from cellfluxrl import CellFluxPipeline
torch.set_num_threads(1)
pipe = CellFluxPipeline.from_pretrained(sys.argv[1])
controls = np.load(sys.argv[2])
images = pipe(controls, compound="taxol", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images
np.save(sys.argv[3], np.stack([np.asarray(image) for image in images]))
"""


def test_a_saved_pipeline_gives_the_same_images_in_a_new_process(pipe, generate, controls, tmp_path):
    pipe.save_pretrained(tmp_path / "pipeline")
    np.save(tmp_path / "controls.npy", controls.numpy())
    paths = [str(tmp_path / name) for name in ("pipeline", "controls.npy", "images.npy")]
    subprocess.run([sys.executable, "-c", LOAD_AND_GENERATE, *paths], check=True, cwd=tmp_path, capture_output=True)
    expected = np.stack([np.asarray(image) for image in generate(output_type="pil").images])
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), expected)


@pytest.mark.parametrize("component", ["unet", "scheduler", "encoder"])
def test_a_missing_component_is_named(pipe, tmp_path, component):
    pipe.save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / component)
    with pytest.raises(
        FileNotFoundError, match=rf"lacks \['{component}'\] of its components \['encoder', 'scheduler'"
    ):
        CellFluxPipeline.from_pretrained(tmp_path)


def test_a_missing_component_can_be_given(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    shutil.rmtree(tmp_path / "scheduler")
    loaded = CellFluxPipeline.from_pretrained(tmp_path, scheduler=CellFluxFlowMatchScheduler(solver="heun"))
    assert loaded.scheduler.config.solver == "heun"


def test_a_folder_that_is_no_pipeline_says_what_it_holds(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a pipeline: it has no model_index.json; it holds: nothing"):
        CellFluxPipeline.from_pretrained(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"it holds: notes.txt"):
        CellFluxPipeline.from_pretrained(tmp_path)


def test_the_pipeline_of_a_saved_rl_pipeline_can_be_loaded_alone(pipeline, generate, tmp_path, caplog):
    pipeline.save_pretrained(tmp_path)
    diffusers.utils.logging.enable_propagation()
    loaded = CellFluxPipeline.from_pretrained(tmp_path)
    diffusers.utils.logging.disable_propagation()
    assert set(loaded.components) == {"unet", "scheduler", "encoder"}
    assert "ignored" not in caplog.text
    assert torch.equal(generate(pipe=loaded).images, generate().images)


# --- refusals ---


def refused(message, **arguments):
    return pytest.param(arguments, message, id=message[:40])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        refused(r"unknown compound 'taxoll'; did you mean 'taxol'\?", compound="taxoll"),
        refused("compound must be one, or one for each of 3 controls; got 2", compound=["taxol", "DMSO"]),
        refused("smiles must be one, or one for each of 3 controls; got 1", smiles=["CCO"]),
        refused("RDKit cannot read the SMILES 'C1CC'", smiles="C1CC"),
        refused("either a compound name or a SMILES", compound=None),
        refused("either a compound name or a SMILES", compound="taxol", smiles="CCO"),
        refused("concentration=3.0: this network is not conditioned", concentration=3.0),
        refused("num_images_per_control must be at least 1, got 0", num_images_per_control=0),
        refused("num_inference_steps must be at least 1, got 0", num_inference_steps=0),
        refused("batch_size must be at least 1, got 0", batch_size=0),
        refused("one for each of 3 images, got 1", generator=[torch.Generator()]),
        refused("unknown output_type 'pill'; did you mean 'pil'", output_type="pill"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(generate, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(**arguments)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 3, 15, 16), r"height and width must be multiples of 4, got \(15, 16\)"),
        (torch.zeros(16, 16), r"must have shape \(N, 3, H, W\)"),
        (torch.zeros(2, 2, 16, 16), r"\(N, 3, H, W\) for the channels \('dna', 'tubulin', 'actin'\), got \(2, 2,"),
        (torch.zeros(2, 16, 16, 3), "channels come before height and width"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.int64), "must be uint8 or floating point, got torch.int64"),
        (torch.zeros(0, 3, 16, 16), "the batch of images is empty"),
        ([], "the list of images is empty"),
        (torch.full((1, 3, 16, 16), torch.nan), "not finite"),
        (torch.full((1, 3, 16, 16), 200.0), r"must lie in \[0, 1\] or \[-1, 1\]"),
        (Image.new("L", (16, 16)), "PIL images must be RGB"),
    ],
)
def test_controls_that_cannot_be_used_are_refused(generate, images, message):
    with pytest.raises(ValueError, match=message):
        generate(images)
