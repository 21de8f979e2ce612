"""The page of the app in Gradio, which is an optional dependency: import this module only where it is installed."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr
from gradio_client.utils import is_http_url_like
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from cellfluxrl.app.guard import MAX_BODY, RequestGuard, allowed_hosts
from cellfluxrl.app.inputs import ControlChoices, compound_choices, example_controls, moa_of_smiles, read_controls
from cellfluxrl.app.models import Models
from cellfluxrl.app.simulation import (
    MAX_CANDIDATES,
    MAX_IMAGES,
    MAX_SECONDS,
    MAX_STEPS,
    PASTED_NAME,
    TIMES,
    Result,
    Sampling,
    generate,
)
from cellfluxrl.app.views import (
    ALL_CHANNELS,
    UPLOADS,
    alert,
    cells_html,
    channels_html,
    compound_html,
    empty_state,
    gallery_pictures,
    rewards_html,
    statistics_html,
    summary_html,
    write_downloads,
)
from cellfluxrl.pipelines.generation.treatments import Treatment

KNOWN, PASTED = "Known compound", "Paste a SMILES"
SELECTIONS = [
    ("Highest reward", "best"),
    ("Matches the real distribution", "match"),
    ("First within the range of real cells", "reject"),
]
NOT_COMPARED = "Do not compare"
MAX_UPLOAD = 20 * 2**20  # bytes
MAX_WAITING = 20  # requests, of all visitors together
MAX_SESSIONS = 200  # what is kept of them is in memory
KEEP_SECONDS = 6 * 3600  # uploads, and the results of a session
OUTPUTS = ("message", "result", "summary", "shown", "frame", "cells", "comparison", "tiff", "png", "scores", "folder")
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
# On a narrow screen, or with the page scrolled down, the results would appear out of sight.
SHOW_RESULTS = """() => {
  const results = document.getElementById("cf-results"), top = results.getBoundingClientRect().top;
  if (top < 0 || top > 0.25 * window.innerHeight) results.scrollIntoView({behavior: "smooth"});
}"""
LOGO = (
    '<svg viewBox="0 0 44 44" aria-hidden="true"><rect width="44" height="44" rx="9" fill="#141518"/>'
    '<ellipse cx="22" cy="22" rx="16" ry="13" fill="none" stroke="#ff3b2f" stroke-width="2.5"/>'
    '<ellipse cx="22" cy="22" rx="12" ry="9.5" fill="#0c5f28"/><circle cx="20" cy="21" r="6" fill="#2a6bff"/></svg>'
)


def build_app(models: Models, controls: str | None = None, max_seconds: float = MAX_SECONDS) -> gr.Blocks:
    """Build the page.

    Args:
        models: What generates.
        controls: Folder or data set of the controls to start with; by default simulated ones.
        max_seconds: A generation that takes longer ends without a result, so that others have their turn.

    Raises:
        ValueError: If none of `controls` can be used.

    Example:
        >>> app = build_app(load_models("runs/demo/pipeline"))      # doctest: +SKIP
        >>> launch(app)                                             # doctest: +SKIP
    """
    examples = example_controls(models, controls)
    downloads = TemporaryDirectory(prefix="cellfluxrl-app-")
    with gr.Blocks(title="CellFluxRL", analytics_enabled=False, delete_cache=(3600, KEEP_SECONDS)) as app:
        app.downloads = downloads  # lives as long as the page
        gr.HTML(
            f'<header class="cf-header">{LOGO}<div><h1>CellFluxRL</h1>'
            "<p>What would a drug do to this cell? A generative model of microscope images.</p></div></header>"
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=300):
                control = _control_panel(models, examples)
                compound = _compound_panel(models)
                sampling = _sampling_panel(models)
                button = gr.Button("Generate", variant="primary", size="lg", elem_id="cf-generate")
            with gr.Column(scale=8, min_width=300, elem_id="cf-results"):
                results = _results_panel(models)
        inputs = [*control, *compound, *sampling, results["channel"], results["outlines"], results["folder"]]
        outputs = [results[name] for name in OUTPUTS]

        # Gradio passes what is annotated so, and the values of the inputs after it.
        def run(progress: gr.Progress = gr.Progress(), *values: Any) -> list[Any]:  # noqa: B008
            progress(0, desc="Starting")
            *values, previous = values
            # Of the server's naming: nothing that a client sends, such as `session_hash`, is part of a path.
            folder = TemporaryDirectory(dir=downloads.name)
            try:
                shown = _generated(models, values, progress, Path(folder.name), max_seconds)
            except ValueError as error:
                folder.cleanup()
                return [alert(error), *[gr.skip()] * (len(outputs) - 1)]
            _remove(previous)
            return [*shown, folder]

        button.click(None, js=SHOW_RESULTS)
        button.click(
            run,
            inputs,
            outputs,
            show_progress_on=results["summary"],
            concurrency_limit=1,
            concurrency_id="pipeline",
            trigger_mode="once",
            api_visibility="private",
        )
    app.queue(max_size=MAX_WAITING, default_concurrency_limit=4)
    return app


def launch(
    app: gr.Blocks,
    host: str = "127.0.0.1",
    port: int | None = None,
    *,
    browser: bool = False,
    wait: bool = True,
    hosts: Sequence[str] = (),
) -> str:
    """Serve the page.

    Args:
        app: See [`build_app`].
        host: Address to listen on; `"0.0.0.0"` for all.
        port: By default the first free one from 7860.
        browser: Open the page in a browser.
        wait: Return only when the process is interrupted.
        hosts: Names that the page may be asked for by, besides those of [`allowed_hosts`].

    Returns:
        The address of the page.
    """
    theme = gr.themes.Default(
        primary_hue="blue", neutral_hue="gray", font=FONTS, font_mono=("ui-monospace", "monospace"), radius_size="md"
    ).set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        block_label_text_color="*neutral_700",
    )
    css = (files("cellfluxrl.app") / "app.css").read_text(encoding="utf-8")
    app.launch(
        server_name=host,
        server_port=port,
        theme=theme,
        head=f"<style>{css}</style>",  # unlike what is given as `css` it is left as it is
        footer_links=[],
        max_file_size=MAX_UPLOAD,
        state_session_capacity=MAX_SESSIONS,
        app_kwargs={
            "middleware": [
                Middleware(TrustedHostMiddleware, allowed_hosts=allowed_hosts(host, hosts), www_redirect=False),
                Middleware(RequestGuard, max_upload=MAX_UPLOAD + MAX_BODY, keep_seconds=KEEP_SECONDS),
            ]
        },
        inbrowser=browser,
        share=False,
        ssr_mode=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    print(f"the app is at {app.local_url} (Ctrl-C ends it)", flush=True)
    if wait:
        app.block_thread()
    return app.local_url


# Each panel builds its part of the page, wires what concerns itself, and returns what the others read.


def _step(number: int, title: str, text: str = "") -> None:
    gr.HTML(f'<div class="cf-step"><h2>{number}. {title}</h2><p>{text}</p></div>')


def _control_panel(models: Models, examples: ControlChoices | None) -> list[gr.State]:
    """Choices and the chosen one."""
    names = models.pipe.channel_names
    with gr.Group(elem_classes="cf-panel"):
        where = "Pick a cell, or upload your own." if examples else "Upload an image of untreated cells."
        with gr.Column(variant="compact"):
            _step(1, "Control cell", where)
            gallery = gr.Gallery(
                gallery_pictures(examples, names) if examples else None,
                label="Control cells to choose from",
                show_label=False,
                columns=4,
                object_fit="contain",
                format="png",
                allow_preview=False,
                selected_index=0 if examples else None,
                interactive=False,
                buttons=[],
                elem_id="cf-gallery",
            )
            message = gr.HTML(_preview(examples, 0 if examples else None, names), elem_id="cf-control")
            with gr.Accordion("Upload an image", open=examples is None, elem_id="cf-upload"):
                gr.HTML(f'<p class="cf-note">{UPLOADS[0].upper()}{UPLOADS[1:]}.</p>')
                file = gr.File(label="Image of control cells", height=130, elem_id="cf-file")
                file.async_move_resource_to_block_cache = _uploads_only(file)
                channels = gr.Textbox(
                    label="Channels of the file, in order",
                    placeholder=", ".join(names),
                    info="Only if they are others, or in another order, than " + ", ".join(names) + ".",
                    elem_id="cf-channels",
                )
    choices, chosen = gr.State(examples), gr.State(0 if examples else None)

    def load(path: str | None, file_channels: str) -> list[Any]:
        if path is None:
            loaded = examples
        else:
            try:
                loaded = read_controls(path, models, file_channels)
            except ValueError as error:
                advice = (
                    f"No control is chosen now: pick one of the cells above, or upload {UPLOADS}. For a file with "
                    "other channels, name them in the field below, and press Enter."
                )
                return [gr.skip(), None, gr.update(selected_index=-1), alert(error, advice)]
        first = 0 if loaded else None
        shown = gr.update(value=gallery_pictures(loaded, names) if loaded else None, selected_index=first)
        return [loaded, first, shown, _preview(loaded, first, names)]

    def pick(offered: ControlChoices, event: gr.SelectData) -> list[Any]:
        return [event.index, _preview(offered, event.index, names)]

    outputs = [choices, chosen, gallery, message]
    gr.on([file.upload, file.clear, channels.submit], load, [file, channels], outputs, **QUIET)
    gallery.select(pick, [choices], [chosen, message], **QUIET)
    return [choices, chosen]


def _uploads_only(file: gr.File) -> Callable[[str | Path | None], Awaitable[str | None]]:
    """What brings a file to the server: gradio would also download it from whatever address a client names."""
    move = file.async_move_resource_to_block_cache

    async def move_upload(path: str | Path | None) -> str | None:
        if is_http_url_like(str(path)):
            raise gr.Error("files are uploaded; this server downloads none")
        return await move(path)

    return move_upload


def _preview(choices: ControlChoices | None, chosen: int | None, names: tuple[str, ...]) -> str:
    if choices is None or chosen is None:
        return '<p class="cf-note">No control is chosen yet.</p>'
    return channels_html(choices.images[chosen], names, choices.names[chosen])


def _compound_panel(models: Models) -> list[gr.components.Component]:
    """How the compound is given, its name, its SMILES, what a SMILES is compared with, and the dose."""
    known = compound_choices(models)
    names = [name for _, name in known]
    first = "taxol" if "taxol" in names else names[0]
    has_dose = models.pipe.is_conditioned_on_dose
    with gr.Group(elem_classes="cf-panel"), gr.Column(variant="compact"):
        _step(2, "Compound")
        mode = gr.Radio([KNOWN, PASTED], value=KNOWN, show_label=False, label="Compound", elem_id="cf-mode")
        compound = gr.Dropdown(
            known, value=first, label="Compound", info="Type to search by name or mechanism.", elem_id="cf-compound"
        )
        smiles = gr.Textbox(
            label="SMILES", placeholder="CC(=O)Oc1ccccc1C(=O)O", visible=False, max_lines=3, elem_id="cf-smiles"
        )
        moa = gr.Dropdown(
            [NOT_COMPARED, *models.scored_moas],
            value=NOT_COMPARED,
            label="Compare with real cells of",
            info="The mechanism that you expect of the structure; choosing among candidates needs one.",
            visible=False,
            elem_id="cf-moa",
        )
        dose = gr.Number(
            None, label="Concentration in µM", info="0 is no compound.", minimum=0, visible=has_dose, elem_id="cf-dose"
        )
        if not has_dose:
            gr.HTML('<p class="cf-note">This pipeline was trained without doses: one effect a compound.</p>')
        structure = gr.HTML(compound_html(models, first, None), elem_id="cf-structure")

    def switch(kind: str, name: str, text: str) -> list[Any]:
        is_pasted = kind == PASTED
        return [
            gr.update(visible=not is_pasted),
            gr.update(visible=is_pasted),
            gr.update(visible=is_pasted and bool(models.scored_moas)),
            draw(kind, name, text),
        ]

    def draw(kind: str, name: str, text: str) -> str:
        return compound_html(models, None if kind == PASTED else name, text)

    def draw_pasted(text: str) -> list[Any]:
        known_moa = moa_of_smiles(text, models)
        return [compound_html(models, None, text), known_moa if known_moa in models.scored_moas else gr.skip()]

    mode.change(switch, [mode, compound, smiles], [compound, smiles, moa, structure], **QUIET)
    compound.change(draw, [mode, compound, smiles], structure, trigger_mode="always_last", **QUIET)
    smiles.change(draw_pasted, smiles, [structure, moa], trigger_mode="always_last", **QUIET)
    return [mode, compound, smiles, moa, dose]


def _sampling_panel(models: Models) -> list[gr.components.Component]:
    """Number of images, candidates, selection, steps, guidance and seed."""
    defaults = Sampling()
    can_choose = bool(models.scored_moas)
    guides = models.pipe.unet.config.trained_unconditionally
    with gr.Group(elem_classes="cf-panel"), gr.Column(variant="compact"):
        _step(3, "Images")
        images = gr.Slider(1, MAX_IMAGES, defaults.num_images, step=1, label="Images", elem_id="cf-images")
        candidates = gr.Slider(
            1,
            MAX_CANDIDATES,
            defaults.best_of_n if can_choose else 1,
            step=1,
            label="Candidates for each image",
            info="Several are generated, and one is kept; 1 takes what comes.",
            visible=can_choose,
            elem_id="cf-candidates",
        )
        selection = gr.Radio(
            SELECTIONS,
            value=defaults.selection,
            label="Which candidate is kept",
            visible=can_choose,
            elem_id="cf-select",
        )
        with gr.Accordion("More settings", open=False):
            steps = gr.Slider(1, MAX_STEPS, defaults.num_inference_steps, step=1, label="Steps of the solver")
            guidance = gr.Slider(
                1, 3, defaults.guidance_scale if guides else 1, step=0.1, label="Guidance (1: none)", visible=guides
            )
            seed = gr.Number(defaults.seed, label="Seed", info="The same seed gives the same images.", precision=0)
    return [images, candidates, selection, steps, guidance, seed]


def _results_panel(models: Models) -> dict[str, gr.components.Component]:
    """The components that show a result, by name."""
    names = models.pipe.channel_names
    last = len(TIMES) - 1
    result = gr.State(None, time_to_live=KEEP_SECONDS)
    # Kept by the server: gradio ends it some time after the page is closed, or drops it for newer sessions.
    folder = gr.State(None, time_to_live=KEEP_SECONDS, delete_callback=_remove)
    message = gr.HTML(elem_id="cf-message")
    summary = gr.HTML(empty_state(), elem_id="cf-summary", min_height=120)
    with gr.Column(visible=False, elem_classes="cf-results") as shown:
        with gr.Row(equal_height=True):
            with gr.Column(scale=7, min_width=300):
                channel = gr.Radio([ALL_CHANNELS, *names], value=ALL_CHANNELS, label="Show", elem_id="cf-channel")
            with gr.Column(scale=3, min_width=240):
                outlines = gr.Checkbox(value=True, label="Outlines of nuclei and cells", elem_id="cf-outlines")
        cells = gr.HTML(elem_id="cf-cells")
        frame = gr.Slider(
            0,
            1,
            1,
            step=TIMES[1],
            label="Time t on the way from the control (0) to the treated cell (1)",
            info="0 is the control with noise, which the model starts from. Outlines are drawn at 1.",
            elem_id="cf-time",
        )
        comparison = gr.HTML(elem_id="cf-comparison")
        with gr.Row():
            tiff = gr.DownloadButton("Images (TIFF)", size="md", min_width=150, elem_id="cf-tiff")
            png = gr.DownloadButton("Pictures (PNG)", size="md", min_width=150, elem_id="cf-png")
            scores = gr.DownloadButton("Scores (CSV)", size="md", min_width=150, elem_id="cf-scores")

    def draw(shown_result: Result | None, channel: str, with_outlines: bool, t: float) -> Any:  # noqa: FBT001, from gradio
        if shown_result is None:
            return gr.skip()
        return cells_html(shown_result, names, channel, with_outlines=with_outlines, frame=round(t * last))

    gr.on(
        [channel.change, outlines.change, frame.change],
        draw,
        [result, channel, outlines, frame],
        cells,
        trigger_mode="always_last",
        **QUIET,
    )
    return {
        "message": message,
        "result": result,
        "summary": summary,
        "shown": shown,
        "channel": channel,
        "outlines": outlines,
        "cells": cells,
        "frame": frame,
        "comparison": comparison,
        "tiff": tiff,
        "png": png,
        "scores": scores,
        "folder": folder,
    }


def _remove(folder: TemporaryDirectory | None) -> None:
    if folder is not None:
        folder.cleanup()


def _generated(models: Models, values: list, progress: gr.Progress, folder: Path, max_seconds: float) -> list[Any]:
    """From the values of all inputs to those of all outputs."""
    choices, chosen, mode, compound, smiles, moa, dose, images, candidates, selection, *rest = values
    steps, guidance, seed, channel, with_outlines = rest
    if choices is None or chosen is None:
        raise ValueError("no control is chosen: pick one of the cells, or upload an image")
    is_pasted = mode == PASTED
    treatment = Treatment(
        compound=PASTED_NAME if is_pasted else compound,
        smiles=smiles if is_pasted else None,
        concentration=dose if models.pipe.is_conditioned_on_dose else None,
        moa=moa if is_pasted and moa != NOT_COMPARED else None,
    )
    if seed is None:
        raise ValueError("the seed is missing: give a whole number, such as 0")
    sampling = Sampling(int(images), int(candidates), selection, int(steps), float(guidance), int(seed))
    result = generate(
        models,
        choices.images[chosen],
        choices.names[chosen],
        treatment,
        sampling,
        on_progress=lambda share: progress(share, desc="Generating cells"),
        max_seconds=max_seconds,
    )
    return [
        "",
        result,
        summary_html(models, result),
        gr.update(visible=True),
        gr.update(value=1),
        cells_html(result, models.pipe.channel_names, channel, with_outlines=with_outlines, frame=len(TIMES) - 1),
        statistics_html(models, result) + rewards_html(models, result),
        *map(str, write_downloads(models, result, folder)),
    ]
