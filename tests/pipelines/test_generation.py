"""What a call of the pipeline can ask for: conditions, guidance, callbacks, trajectories, precision, exactness."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cellfluxrl import CellFluxFlowMatchScheduler, CellFluxPipeline, CellFluxUNet2DModel, CompoundEncoder
from cellfluxrl.pipelines.inputs import check_size
from cellfluxrl.training.demo import SHIPPED_BASE

COMPOUNDS = ["taxol", "DMSO", "nocodazole"]


@pytest.fixture(scope="module")
def pipe(pipeline):
    return around(pipeline)


def around(pipeline, unet=None, encoder=None, **settings) -> CellFluxPipeline:
    scheduler = CellFluxFlowMatchScheduler(**{"solver": "midpoint", **settings})
    pipe = CellFluxPipeline(unet or pipeline.unet, scheduler, encoder or pipeline.encoder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def copy_of(unet, **changes) -> CellFluxUNet2DModel:
    copy = CellFluxUNet2DModel(**{**unet.config, **changes}).eval()
    own = copy.state_dict()
    copy.load_state_dict({k: v for k, v in unet.state_dict().items() if k in own and v.shape == own[k].shape}, False)
    return copy


@pytest.fixture(scope="module")
def dosed(pipeline):
    unet = copy_of(pipeline.unet, condition_dim=1025, dose_dim=1)
    torch.manual_seed(0)
    torch.nn.init.normal_(unet.condition_embedding.weight, std=0.1)
    return around(pipeline, unet=unet, encoder=CompoundEncoder(log_dose=True))


# --- controls, compounds and concentrations ---


def test_one_control_is_shown_under_each_compound(generate, controls, generators):
    together = generate(controls[0], compound=COMPOUNDS, generator=generators(0, 0, 0)).images
    for i, name in enumerate(COMPOUNDS):
        alone = generate(controls[0], compound=name, generator=generators(0)).images
        torch.testing.assert_close(together[i : i + 1], alone, rtol=0, atol=1e-4)
    assert not torch.allclose(together[0], together[2], atol=1e-3)


def test_samples_of_a_compound_follow_each_other(generate, controls, generators):
    pairs = {"num_images_per_control": 2, "generator": generators(0, 1, 2, 3)}
    together = generate(controls[0], compound=COMPOUNDS[:2], **pairs).images
    second = generate(controls[0], compound="DMSO", num_images_per_control=2, generator=generators(2, 3)).images
    torch.testing.assert_close(together[2:], second, rtol=0, atol=1e-4)


def test_an_embedding_means_what_its_compound_means(generate, pipe, controls):
    embeds = pipe.encoder.encode(COMPOUNDS)
    expected = generate(compound=COMPOUNDS).images
    assert torch.equal(generate(compound=None, compound_embeds=embeds).images, expected)
    assert torch.equal(generate(compound=None, compound_embeds=embeds[0]).images, generate().images)
    one = generate(controls[:1], compound=None, compound_embeds=embeds)
    assert torch.equal(one.images, generate(controls[:1], compound=COMPOUNDS).images)


def test_concentrations_are_one_for_all_or_one_for_each(generate, dosed, controls, generators):
    def images(given, dose, **arguments):
        return generate(given, pipe=dosed, compound="taxol", concentration=dose, **arguments).images

    series = images(controls[0], [0.1, 1.0, 10.0], generator=generators(0, 0, 0))
    assert not torch.allclose(series[0], series[2], atol=1e-3)
    torch.testing.assert_close(series[1:2], images(controls[0], 1, generator=generators(0)), rtol=0, atol=1e-4)
    assert torch.equal(images(controls, 3.0), images(controls, [3.0] * 3))
    smiles = pipe_smiles(dosed, "taxol")
    by_smiles = generate(controls, pipe=dosed, smiles=smiles, concentration=3.0).images
    assert torch.equal(by_smiles, images(controls, 3.0))


def pipe_smiles(pipe, name):
    return pipe.encoder.config.compounds[name]["smiles"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"compound": ["taxol"] * 2, "concentration": 1.0},
            "compound must be one, or one for each of 3 controls; got 2",
        ),
        ({"concentration": [1.0, 2.0]}, "concentration must be one, or one for each of 3 controls; got 2"),
        ({}, "conditioned on the concentration: give concentration= in uM"),
        (
            {"concentration": 1.0, "compound": None},
            "either a compound name or a SMILES or compound_embeds; given: none",
        ),
    ],
)
def test_numbers_that_do_not_agree_are_refused(generate, dosed, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(pipe=dosed, **arguments)


def test_with_one_control_the_compounds_count(generate, dosed, controls):
    with pytest.raises(ValueError, match="concentration must be one, or one for each of 3 values of compound; got 2"):
        generate(controls[0], pipe=dosed, compound=COMPOUNDS, concentration=[1.0, 2.0])


@pytest.mark.parametrize(
    ("embeds", "message"),
    [
        (torch.zeros(3, 7), r"must be a tensor of shape \(N, 1024\) or \(1024,\), got \(3, 7\)"),
        (torch.zeros(2, 1024), "compound_embeds must be one, or one for each of 3 controls; got 2"),
        (torch.full((1024,), torch.nan), "compound_embeds hold values that are not finite"),
        ([0.0] * 1024, r"must be a tensor of shape \(N, 1024\) or \(1024,\), got list"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(generate, embeds, message):
    with pytest.raises(ValueError, match=message):
        generate(compound=None, compound_embeds=embeds)


def test_an_embedding_holds_its_concentration(generate, dosed):
    embeds = dosed.encode_condition(1, compound="taxol", concentration=[1.0])
    with pytest.raises(ValueError, match=r"concentration=2\.0 is part of compound_embeds"):
        generate(pipe=dosed, compound=None, compound_embeds=embeds[0], concentration=2.0)


def test_a_size_that_does_not_fit_is_told_the_nearest(generate):
    with pytest.raises(ValueError, match=r"got \(1, 19\); the nearest that fits is \(4, 20\)"):
        generate(torch.zeros(3, 3, 1, 19))


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from([1, 2, 8, 16]))
def test_the_size_that_is_proposed_fits_and_is_near(height, width, factor):
    try:
        check_size(torch.zeros(1, 1, height, width), factor)
    except ValueError as error:
        proposed = tuple(int(side) for side in re.findall(r"nearest that fits is \((\d+), (\d+)\)", str(error))[0])
        check_size(torch.zeros(1, 1, *proposed), factor)
        assert all(abs(a - b) <= max(factor / 2, factor - b) for a, b in zip(proposed, (height, width), strict=True))
    else:
        assert height % factor == width % factor == 0


def test_any_other_size_is_taken(generate):
    assert generate(torch.zeros(1, 3, 8, 20)).images.shape == (1, 3, 8, 20)


# --- guidance ---


def counted_rows(pipe, monkeypatch) -> list[int]:
    """How many images the network sees at each evaluation."""
    rows, forward = [], pipe.unet.forward
    monkeypatch.setattr(pipe.unet, "forward", lambda x, *a, **k: rows.append(len(x)) or forward(x, *a, **k))
    return rows


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"guidance_scale": 1.0}, [3, 3, 3, 3]),
        ({"guidance_scale": 2.0}, [6, 6, 6, 6]),
        ({"guidance_scale": 2.0, "guidance_interval": (0.25, 0.5)}, [3, 6, 6, 3]),
        ({"guidance_scale": 2.0, "guidance_interval": (0.8, 1.0)}, [3, 3, 3, 3]),
    ],
)
def test_guidance_costs_only_where_it_is_applied(generate, pipe, monkeypatch, arguments, expected):
    rows = counted_rows(pipe, monkeypatch)
    generate(**arguments)
    assert rows == expected


def test_an_interval_decides_which_steps_are_guided(generate, pipeline):
    euler = around(pipeline, solver="euler")

    def trajectory(**arguments):
        return generate(pipe=euler, return_trajectory=True, **arguments).trajectory

    late = trajectory(guidance_scale=2.0, guidance_interval=(0.4, 1.0))
    assert torch.equal(late[1], trajectory(guidance_scale=1.0)[1])
    assert not torch.allclose(late[2], trajectory(guidance_scale=1.0)[2], atol=1e-3)
    whole = trajectory(guidance_scale=2.0, guidance_interval=(0.0, 1.0))
    assert torch.equal(whole, trajectory(guidance_scale=2.0))


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.7, 0.2), (-0.1, 0.5), (0.0, 1.1), (math.nan, 1.0), (0.5,)])
def test_an_interval_that_is_none_is_refused(generate, interval):
    with pytest.raises(ValueError, match="guidance_interval must be two increasing times"):
        generate(guidance_interval=interval)


def test_guidance_needs_a_network_that_was_trained_without_compounds_too(generate, pipeline):
    unet = copy_of(pipeline.unet)
    unet.register_to_config(trained_unconditionally=False)
    pipe = around(pipeline, unet=unet)
    with pytest.raises(ValueError, match=r"guidance_scale=1.5 needs a network .*: pass guidance_scale=1"):
        generate(pipe=pipe, guidance_scale=1.5)
    assert torch.equal(generate(pipe=pipe, guidance_scale=1).images, generate(guidance_scale=1).images)


def test_an_unconditional_network_takes_no_compound(generate, pipeline):
    pipe = around(pipeline, unet=copy_of(pipeline.unet, condition_dim=None))
    with pytest.raises(ValueError, match=r"unconditional \(condition_dim is None\): leave compound None"):
        generate(pipe=pipe, guidance_scale=1)
    with pytest.raises(ValueError, match=r"guidance_scale=1\.2 needs a network"):
        generate(pipe=pipe, compound=None)
    images = generate(pipe=pipe, compound=None, guidance_scale=1, batch_size=2, batch_invariant=True).images
    torch.testing.assert_close(images, generate(guidance_scale=0).images, rtol=0, atol=1e-4)


# --- callbacks ---


def test_a_callback_sees_what_it_asks_for_and_may_change_the_condition(generate, pipe):
    seen = []

    def to_control(pipe, evaluation, t, tensors):
        seen.append(sorted(tensors))
        return {"condition": torch.zeros_like(tensors["condition"])}

    inputs = {"callback_on_step_end": to_control, "callback_on_step_end_tensor_inputs": ["sample", "condition"]}
    changed = generate(**inputs).images
    assert seen == [["condition", "sample"]] * 4
    assert not torch.allclose(changed, generate().images, atol=1e-3)


def test_an_unknown_callback_tensor_is_refused(generate):
    with pytest.raises(ValueError, match="unknown callback tensor 'sampl'; did you mean 'sample'"):
        generate(callback_on_step_end=print, callback_on_step_end_tensor_inputs=["sampl"])


def test_a_callback_can_end_the_sampling(generate):
    calls = []

    def stop(pipe, evaluation, t, tensors):
        calls.append(tensors["sample"])
        pipe._interrupt = evaluation == 1

    output = generate(callback_on_step_end=stop, num_inference_steps=5, return_trajectory=True, batch_size=2)
    assert len(calls) == 2
    assert torch.equal(output.images[:2], calls[-1].clamp(-1, 1))
    assert output.images.shape == (3, 3, 16, 16)
    assert output.trajectory is None
    assert generate(return_trajectory=True).trajectory is not None


def test_the_progress_bar_counts_every_evaluation_of_every_batch(pipe, generate, monkeypatch):
    bars, make = [], pipe.progress_bar
    monkeypatch.setattr(pipe, "progress_bar", lambda **k: bars.append(make(**k)) or bars[-1])
    ticks = []
    generate(batch_size=2, callback_on_step_end=lambda *a: ticks.append(1) and None)
    assert bars[0].total == len(ticks) == 2 * 4


# --- trajectories and the reverse direction ---


def test_chosen_times_of_the_trajectory_do_not_change_the_images(generate):
    plain = generate(return_trajectory=True)
    output = generate(trajectory_times=[0.0, 0.2, 0.5, 1.0], batch_size=2)
    torch.testing.assert_close(output.images, plain.images, rtol=0, atol=1e-4)
    assert output.trajectory.shape == (4, 3, 3, 16, 16)
    torch.testing.assert_close(output.trajectory[[0, 2, 3]], plain.trajectory, rtol=0, atol=1e-4)


def test_the_reverse_direction_leads_back(generate, pipeline, controls):
    unet = copy_of(pipeline.unet, prediction_type="velocity")
    for parameter in unet.conv_seams.parameters():
        parameter.data *= 0.02  # so that what comes out of [-0.5, 0.5] is in [-1, 1], as images are
    pipe = around(pipeline, unet=unet, solver="rk4", source_noise_scale=0.0)
    treated = generate(controls / 2, pipe=pipe, num_inference_steps=4).images
    assert not torch.allclose(treated, controls / 2, atol=0.01)
    back = generate(treated, pipe=pipe, num_inference_steps=4, direction="reverse", return_trajectory=True)
    assert torch.equal(back.trajectory[0], treated)
    torch.testing.assert_close(back.images, controls / 2, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"direction": "backward"}, "unknown direction 'backward'"),
        ({"direction": "reverse", "num_images_per_control": 2}, "num_images_per_control=2: the reverse direction has"),
        ({"trajectory_times": [1.5]}, "readout time 1.5 is outside the grid"),
        ({"num_inference_steps": -3}, r"num_inference_steps must be .*at least 1, got -3"),
    ],
)
def test_directions_and_times_that_are_none_are_refused(generate, arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(**arguments)


# --- exactness ---


def shipped_base() -> CellFluxPipeline:
    pipe = CellFluxPipeline.from_pretrained(str(SHIPPED_BASE))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    ("make", "size", "batch_size"),
    [(None, 16, 8), (None, 16, 64), (shipped_base, 48, 8)],
    ids=["tiny, 8", "tiny, 64", "shipped base, 8"],
)
def test_an_image_is_the_same_to_the_last_bit_alone_or_among_64(pipe, controls, generators, make, size, batch_size):
    pipe = make() if make else pipe
    images = torch.nn.functional.interpolate(controls, size)[torch.arange(64) % 3]
    compounds = [COMPOUNDS[i % 3] for i in range(64)]
    settings = {"num_inference_steps": 1, "output_type": "pt", "batch_size": batch_size, "batch_invariant": True}
    settings["guidance_scale"] = 1.0 if make else 1.2  # the shipped base takes its time
    together = pipe(images, compound=compounds, generator=generators(*range(64)), **settings).images
    for i in (5, 63):
        alone = pipe(images[i], compound=compounds[i], generator=generators(i), **settings).images
        assert torch.equal(alone[0], together[i])


def test_without_filling_up_an_image_differs_by_rounding_only(generators, controls):
    pipe = shipped_base()
    images = torch.nn.functional.interpolate(controls, 48)[torch.arange(16) % 3]
    settings = {"compound": "taxol", "num_inference_steps": 2, "output_type": "pt"}
    together = pipe(images, generator=generators(*range(16)), **settings).images
    alone = pipe(images[5], generator=generators(5), **settings).images
    torch.testing.assert_close(alone[0], together[5], rtol=0, atol=1e-4)


def test_filling_up_returns_only_what_was_asked_for(generate):
    filled = generate(batch_size=4, batch_invariant=True, return_trajectory=True, num_images_per_control=2)
    plain = generate(batch_size=4, return_trajectory=True, num_images_per_control=2)
    assert filled.images.shape == (6, 3, 16, 16)
    torch.testing.assert_close(filled.images, plain.images, rtol=0, atol=1e-4)
    torch.testing.assert_close(filled.trajectory, plain.trajectory, rtol=0, atol=1e-4)


# --- precision, devices, compilation ---


def test_bfloat16_weights_give_nearly_the_same_images(generate, pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    half = CellFluxPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    assert half.unet.dtype == torch.bfloat16
    images = generate(pipe=half).images
    assert images.dtype == torch.float32
    assert float((images - generate().images).abs().mean()) < 0.02


def test_rewards_can_stay_in_float32_beside_a_network_in_bfloat16(generate, pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    dtypes = {"unet": torch.bfloat16, "default": torch.float32}
    half = type(pipeline).from_pretrained(tmp_path, dtype=dtypes)
    half.set_progress_bar_config(disable=True)
    assert (half.unet.dtype, half.rewards.dtype) == (torch.bfloat16, torch.float32)
    assert generate(pipe=half, best_of_n=2).rewards["combined"].isfinite().all()


def test_float16_on_a_cpu_without_it_is_refused(generate, pipeline, monkeypatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
    pipe = around(pipeline, unet=copy_of(pipeline.unet).half())
    with pytest.raises(ValueError, match="this CPU does not compute in float16"):
        generate(pipe=pipe)


def test_channels_last_does_not_change_the_images(generate, pipeline):
    pipe = around(pipeline, unet=copy_of(pipeline.unet).to(memory_format=torch.channels_last))
    torch.testing.assert_close(generate(pipe=pipe).images, generate().images, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_compiled_network_does_not_change_the_images(generate, pipeline):
    pipe = around(pipeline)
    pipe.unet = torch.compile(copy_of(pipeline.unet), backend="eager")
    torch.testing.assert_close(generate(pipe=pipe).images, generate().images, rtol=0, atol=1e-4)


def test_models_are_offloaded_in_the_order_of_their_use(generate, pipeline):
    pipe = type(pipeline)(copy_of(pipeline.unet), pipeline.scheduler, CompoundEncoder(), pipeline.rewards)
    pipe.set_progress_bar_config(disable=True)
    try:
        pipe.enable_model_cpu_offload(device="cpu")  # its hooks, without an accelerator to move to
        hooked = [hook.model for hook in pipe._all_hooks]
        assert hooked == [pipe.unet, pipe.rewards]  # the encoder is a small table and stays on the device
        output = generate(pipe=pipe, best_of_n=2)
        assert torch.equal(output.images, generate(pipe=pipeline, best_of_n=2).images)
    finally:
        pipe.remove_all_hooks()


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is an accelerator")
def test_offloading_without_an_accelerator_is_refused(pipe):
    with pytest.raises(RuntimeError, match="requires accelerator"):
        pipe.enable_model_cpu_offload()


# --- interpolation ---


def test_an_interpolation_leads_from_one_compound_to_the_other(pipe, controls, generators):
    settings = {"num_inference_steps": 2, "output_type": "pt"}
    frames = pipe.interpolate(
        controls[0], ("taxol", "nocodazole"), num_frames=5, generator=torch.Generator().manual_seed(3), **settings
    ).images
    seed = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(3)))
    for frame, name in ((frames[:1], "taxol"), (frames[-1:], "nocodazole")):
        alone = pipe(controls[0], compound=name, generator=generators(seed), **settings).images
        torch.testing.assert_close(frame, alone, rtol=0, atol=1e-4)
    steps = (frames[1:] - frames[:-1]).flatten(1).norm(dim=1)
    assert steps.min() > 0
    assert steps.max() < (frames[-1] - frames[0]).norm()  # a way, not a scatter of other cells


def test_concentrations_are_interpolated_logarithmically(dosed, controls):
    settings = {"num_inference_steps": 1, "output_type": "pt", "compound": "taxol"}
    of = {name: torch.Generator().manual_seed(3) for name in ("frames", "series")}
    frames = dosed.interpolate(
        controls[0], concentration=(0.1, 10.0), num_frames=3, generator=of["frames"], **settings
    ).images
    seed = int(torch.randint(2**62, (), generator=of["series"]))
    same = [torch.Generator().manual_seed(seed) for _ in range(3)]
    series = dosed(controls[0], concentration=[0.1, 1.0, 10.0], generator=same, **settings).images
    torch.testing.assert_close(frames, series, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"compound": "taxol"}, "needs two compounds or two concentrations, got 1"),
        ({"compound": COMPOUNDS}, "needs two compounds or two concentrations, got 3"),
        ({"compound": ("taxol", "taxoll")}, r"unknown compound 'taxoll'; did you mean 'taxol'\?"),
        ({"compound": ("taxol", "DMSO"), "num_frames": 1}, "num_frames must be at least 2, got 1"),
    ],
)
def test_what_cannot_be_interpolated_is_refused(pipe, controls, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipe.interpolate(controls[0], **arguments)


def test_an_interpolation_takes_one_control(pipe, controls):
    with pytest.raises(ValueError, match="takes one control image, got 3"):
        pipe.interpolate(controls, ("taxol", "DMSO"))
