"""What the app shows: results as HTML with pictures and plots in it, as tables, as sentences, and as files."""

from __future__ import annotations

import base64
import html
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image

from cellfluxrl.app.inputs import ControlChoices, check_smiles
from cellfluxrl.app.models import Models
from cellfluxrl.app.simulation import (
    PASTED_NAME,
    TIMES,
    Result,
    Row,
    Statistic,
    above_real,
    compare_rewards,
    compare_statistics,
)
from cellfluxrl.data.images import channel_colors, composite, from_rgb, from_unit, images_to_tensor, to_uint8
from cellfluxrl.figures import CELL_COLOR, COLORS, NUCLEUS_COLOR, TEXT_COLOR, outlined, styled
from cellfluxrl.pipelines.generation.files import write_image
from cellfluxrl.rewards.segmentation.protocol import Masks

ALL_CHANNELS = "all channels"
PICTURE_PIXELS = 192  # of the shorter side, at least; about the size on the page, so that outlines stay whole
ROW_COLORS = {"Base": COLORS[0], "After RL": COLORS[1], "Generated": COLORS[1], "Control": "#666666"}
ROW_MARKERS = {"Base": "s", "After RL": "o", "Generated": "o", "Control": "x"}
SIGNS = {"s": "■", "o": "●", "x": "✕"}
REAL_COLOR = "#9a9a9a"
UPLOADS = "a PNG in RGB (red is the last channel), or a TIFF, .npy or .npz with channels before height and width"


def alert(message: object, advice: str = "") -> str:
    """A box that says what is wrong, and what to do."""
    first, _, rest = str(message).partition("\n")
    excerpt = f"<pre>{html.escape(rest)}</pre>" if rest else ""
    advice = f"<p>{html.escape(advice)}</p>" if advice else ""
    return f'<div class="cf-alert" role="alert"><p>{html.escape(_sentence(first))}</p>{excerpt}{advice}</div>'


def _sentence(text: str) -> str:
    # Messages of the package begin in lower case; the name of a file, such as taxol.png, is left as it is.
    begins_with_file = "." in text.partition(":")[0].partition(" ")[0]
    return text if begins_with_file else text[:1].upper() + text[1:]


def empty_state() -> str:
    """What is shown before there are results."""
    return (
        '<div class="cf-empty"><div class="cf-arrow" aria-hidden="true">control <span>→</span> treated</div>'
        "<h2>No cells generated yet</h2>"
        "<p>Choose a control cell and a compound, then press <b>Generate</b>. You will see what the model makes of "
        "the cell, the outlines of nuclei and cells, how each picture compares with real treated cells, and the way "
        "from the control to the result.</p></div>"
    )


def pictures(
    images: torch.Tensor, channel_names: Sequence[str], channel: str = ALL_CHANNELS, masks: Masks | None = None
) -> np.ndarray:
    """Images, `(N, C, H, W)` in [-1, 1], in colour or one channel in grey, enlarged, with the outlines of masks.

    Returns:
        `(N, scale * H, scale * W, 3)`, uint8 RGB; actin is red, tubulin green, DNA blue.
    """
    if channel == ALL_CHANNELS:
        colors = channel_colors(len(channel_names))
        rgb = np.stack([composite(image, colors) for image in to_uint8(images)])
        shown = images_to_tensor(np.ascontiguousarray(from_rgb(rgb)))
    else:
        shown = images[:, [list(channel_names).index(channel)]]
    scale = max(1, -(-PICTURE_PIXELS // min(images.shape[2:])))
    return outlined(shown, *((None, None) if masks is None else (masks.nuclei, masks.cells)), scale=scale)


def gallery_pictures(choices: ControlChoices, channel_names: Sequence[str]) -> list[np.ndarray]:
    """Controls to choose from."""
    return list(pictures(from_unit(torch.from_numpy(choices.images)), channel_names))


def channels_html(image: np.ndarray, channel_names: Sequence[str], name: str) -> str:
    """One control: all of its channels together, and each."""
    image = from_unit(torch.from_numpy(image)[None])
    shown = [(channel, pictures(image, channel_names, channel)[0]) for channel in (ALL_CHANNELS, *channel_names)]
    figures = "".join(_figure(picture, _channel_caption(c, channel_names), f"{name}, {c}") for c, picture in shown)
    return f'<div class="cf-cells cf-small" style="--columns: {len(shown)}">{figures}</div>'


def _channel_caption(channel: str, channel_names: Sequence[str]) -> str:
    if channel == ALL_CHANNELS:
        return "all"
    color = channel_colors(len(channel_names))[list(channel_names).index(channel)]
    return f'<i class="cf-dot" style="background: rgb{color}"></i>{html.escape(channel)}'


def cells_html(result: Result, channel_names: Sequence[str], channel: str, *, with_outlines: bool, frame: int) -> str:
    """The control above the cells that each pipeline has generated of it, at one of `TIMES`.

    Only the control and the generated images, which are the last frame, have outlines and scores.
    """
    is_end = frame == len(TIMES) - 1
    note = result.treatment.label + ("" if is_end else f", on the way (t = {TIMES[frame]:.2f})")
    sections = []
    for title, row in result.every_row.items():
        shown = row if is_end or title == "Control" else Row(row.trajectory[frame])
        row_pictures = pictures(shown.images, channel_names, channel, shown.masks if with_outlines else None)
        label = result.control_name if title == "Control" else note
        sections.append(_row_html(title, shown, row_pictures, label, channel))
    legend = _legend(channel_names, channel, with_outlines=with_outlines, is_scored=result.moa is not None)
    return f'<div class="cf-rows"><div class="cf-first">{sections[0]}{legend}</div>{"".join(sections[1:])}</div>'


def _row_html(title: str, row: Row, row_pictures: np.ndarray, note: str, channel: str) -> str:
    figures = []
    for i, picture in enumerate(row_pictures):
        caption, description = "", f"{title}: {note}, {channel}"
        if title == "Control":
            caption = html.escape(note)
        elif row.rewards is not None:
            is_inside = bool(row.within_range[i])
            mark = '<b class="cf-in">✓</b> in range' if is_inside else '<b class="cf-out">✕</b> outside'
            caption = f"{row.rewards['combined'][i]:.2f} · {mark}"
            description += f", image {i + 1}, combined reward {row.rewards['combined'][i]:.2f}"
        figures.append(_figure(picture, caption, description))
    dot = f'<i class="cf-dot" style="background: {ROW_COLORS[title]}"></i>'
    subtitle = "" if title == "Control" else f" <small>{html.escape(note)}</small>"
    return f'<section><h3>{dot}{title}{subtitle}</h3><div class="cf-cells">{"".join(figures)}</div></section>'


def _figure(picture: np.ndarray, caption: str, description: str) -> str:
    caption = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure>{_image_html('png', _png(picture), description)}{caption}</figure>"


def _legend(channel_names: Sequence[str], channel: str, *, with_outlines: bool, is_scored: bool) -> str:
    shown = []
    if channel == ALL_CHANNELS:
        named = reversed(list(zip(channel_names, channel_colors(len(channel_names)), strict=True)))
        shown += [f'<span><i class="cf-dot" style="background: rgb{c}"></i>{html.escape(n)}</span>' for n, c in named]
    if with_outlines:
        outlines = (("nuclei", NUCLEUS_COLOR), ("cells", CELL_COLOR))
        shown += [f'<span><i class="cf-line" style="border-color: rgb{c}"></i>{n}</span>' for n, c in outlines]
    lines = [f'<p class="cf-keys">{"".join(shown)}</p>']
    if is_scored:
        lines.append(
            "<p>Below each picture: its combined reward, and whether everything that is measured in it lies where "
            '95 % of real cells do (<b class="cf-in">✓</b>) or not (<b class="cf-out">✕</b>).</p>'
        )
    if with_outlines:
        lines.append("<p>The outlines are what the rewards measure.</p>")
    return f'<div class="cf-legend">{"".join(lines)}</div>'


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def _image_html(kind: str, content: bytes, description: str) -> str:
    encoded = base64.b64encode(content).decode()
    return f'<img src="data:image/{kind};base64,{encoded}" alt="{html.escape(description)}">'


def compound_html(models: Models, compound: str | None, smiles: str | None) -> str:
    """The structure of a known compound or of a SMILES, with its name and mechanism, or what is wrong with it."""
    if compound is None:
        if not (smiles or "").strip():
            return '<p class="cf-note">The structure is drawn here once a SMILES is pasted.</p>'
        try:
            known = check_smiles(smiles, models)
        except ValueError as error:
            advice = "Correct the SMILES, or choose a known compound. Databases such as ChEMBL list SMILES."
            return alert(error, advice)
        name = f"This is <b>{html.escape(known)}</b>." if known else "A structure that the pipeline has no name for."
        return _molecule(smiles.strip(), name)
    entry = models.pipe.encoder.config.compounds[compound]
    moa = entry.get("moa") or "mechanism not known"
    return _molecule(entry["smiles"], f"<b>{html.escape(compound)}</b><br>{html.escape(moa)}")


def _molecule(smiles: str, caption: str) -> str:
    from rdkit import Chem
    from rdkit.Chem.Draw import rdMolDraw2D

    drawing = rdMolDraw2D.MolDraw2DSVG(320, 170)
    drawing.drawOptions().clearBackground = False
    rdMolDraw2D.PrepareAndDrawMolecule(drawing, Chem.MolFromSmiles(smiles))
    drawing.FinishDrawing()
    image = _image_html("svg+xml", drawing.GetDrawingText().encode(), "structure")
    return f'<figure class="cf-molecule">{image}<figcaption>{caption}</figcaption></figure>'


def summary_html(models: Models, result: Result) -> str:
    """What was generated, and in one glance how it compares with real cells."""
    sampling = result.sampling
    count = f"{sampling.num_images} image" + ("s" if sampling.num_images > 1 else "")
    chosen = f", each chosen among {sampling.best_of_n} candidates" if sampling.best_of_n > 1 else ""
    lines = [f"<h2>{html.escape(result.treatment.label)}</h2>"]
    lines.append(f"<p>{count} of {html.escape(result.control_name)}{chosen}.</p>")
    if result.moa is None:
        lines.append(f"<p>{_why_not_scored(models, result)}</p>")
    else:
        inside = [f"{title} {int(r.within_range.sum())} of {len(r.images)}" for title, r in result.rows.items()]
        lines.append(
            f"<p>Within the range of real cells of <b>{html.escape(result.moa)}</b> in everything that is measured: "
            f"<b>{', '.join(inside)}</b>.</p>"
        )
    if models.base is None:
        lines.append(
            '<p class="cf-note">There is no base to compare with: start the app with '
            "<code>--base FOLDER_OR_ID</code> to see the cells before post-training beside these.</p>"
        )
    return f'<div class="cf-summary" role="status">{"".join(lines)}</div>'


def _why_not_scored(models: Models, result: Result) -> str:
    if models.pipe.rewards is None:
        return "This pipeline has no rewards: its cells are shown, and not compared with real ones."
    if result.treatment.compound == PASTED_NAME:
        return "Not scored: no mechanism was chosen to compare the structure with."
    return "Not scored: the rewards know no real cells of this compound's mechanism."


def statistics_html(models: Models, result: Result) -> str:
    """A small plot for each statistic: the distribution in real cells, the generated cells, and a sentence."""
    if result.moa is None:
        return ""
    panels = []
    rewards = {reward.name: reward for reward in models.pipe.rewards.rewards}
    for statistic in compare_statistics(models, result):
        reward, words = rewards[statistic.name], _in_words(statistic)
        title = html.escape(reward.title)
        caption = f"<figcaption><b>{title}</b><small>{html.escape(reward.unit)}</small></figcaption>"
        plot = _image_html("svg+xml", _statistic_plot(statistic), f"{title}: {words}")
        panels.append(f"<figure>{caption}{plot}<p>{words}</p></figure>")
    keys = "".join(
        f'<span><b style="color: {ROW_COLORS[title]}">{SIGNS[ROW_MARKERS[title]]}</b> {title}</span>'
        for title in result.every_row
    )
    return (
        f'<h3>Against real cells <small>{html.escape(result.moa)}</small></h3><p class="cf-keys">{keys}'
        "<span>Grey: real cells; band: 95 % of them; line: their mean</span></p>"
        f'<div class="cf-panels">{"".join(panels)}</div>'
    )


def _in_words(statistic: Statistic) -> str:
    parts = []
    for title, values in statistic.values.items():
        known = values[np.isfinite(values)]
        above, below = int((known > statistic.high).sum()), int((known < statistic.low).sum())
        missing = len(values) - len(known)
        counts = {"above real cells": above, "below": below, "without anything to measure": missing}
        found = [f"{count} {where}" for where, count in counts.items() if count]
        if found and title != "Control":
            parts.append(f"{title}: {', '.join(found)}, of {len(values)}.")
    return " ".join(parts) or "All within the range of real cells."


def _statistic_plot(statistic: Statistic) -> bytes:
    """An SVG: the density of real cells, and a line of marks for each row."""
    count = len(statistic.values)
    figure = Figure(figsize=(3.4, 1.15 + 0.2 * count), layout="constrained")
    axes = styled(figure.add_subplot())
    finite = [values[np.isfinite(values)] for values in statistic.values.values()]
    low, high = np.quantile(statistic.real, [0.002, 0.998])
    ends = np.concatenate([[low, high], *finite])
    pad = 0.05 * (np.ptp(ends) or 1)
    at = np.linspace(ends.min() - pad, ends.max() + pad, 240)
    width = max(statistic.real.std() * 0.3, 1e-6)
    density = np.exp(-(((at[:, None] - statistic.real) / width) ** 2) / 2).mean(axis=1)
    axes.axvspan(statistic.low, statistic.high, color="#f0f0f0", linewidth=0)
    axes.fill_between(at, 0, density / density.max(), color=REAL_COLOR, alpha=0.55, linewidth=0)
    axes.axvline(statistic.real.mean(), color="#555555", linewidth=1)
    for k, (title, values) in enumerate(statistic.values.items()):
        filled = ROW_MARKERS[title] != "x"
        edge = {"markeredgecolor": "white", "markeredgewidth": 0.7} if filled else {"markeredgewidth": 1.6}
        heights = np.full(len(values), -0.28 - 0.34 * k)
        axes.plot(values, heights, ROW_MARKERS[title], color=ROW_COLORS[title], markersize=7, clip_on=False, **edge)
    axes.set_xlim(at[0], at[-1])
    axes.set_ylim(-0.28 - 0.34 * (count - 1) - 0.25, 1.05)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(labelsize=9, colors=TEXT_COLOR)
    axes.locator_params(axis="x", nbins=5)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True)
    return buffer.getvalue()


def rewards_html(models: Models, result: Result) -> str:
    """The mean of each reward beside that of real cells, and in words where it is above it."""
    if result.moa is None:
        return ""
    comparison = compare_rewards(models, result)
    names = {reward.name: reward.title for reward in models.pipe.rewards.rewards} | {"combined": "Combined"}
    titles = [*result.rows, "Real cells"]
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    body = []
    for name, means in comparison.items():
        cells = []
        for title in titles:
            is_above = title != "Real cells" and name in above_real(comparison, title)
            word = ' <span class="cf-above">above real</span>' if is_above else ""
            cells.append(f"<td>{means[title]:.2f}{word}</td>")
        body.append(f'<tr><th scope="row">{html.escape(names[name])}</th>{"".join(cells)}</tr>')
    counts = [f"{title}: {len(above_real(comparison, title))} of {len(comparison)}" for title in result.rows]
    return (
        "<h3>Rewards <small>means of the images; higher is better, up to real cells</small></h3>"
        f'<div class="cf-scroll"><table class="cf-table"><thead><tr><th scope="col">Reward</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
        f'<p class="cf-note">Above real cells: {"; ".join(counts)}. These rewards are largest for one average cell; '
        "real cells differ, and score lower. A value above theirs is not better biology: it is what choosing or "
        "training for the reward buys.</p>"
    )


def scores_table(models: Models, result: Result) -> pd.DataFrame:
    """One line for each image, the control and the means of real cells included.

    Columns: `source`, `image`, how it was made, and of scored images the rewards (`reward_NAME` and `combined`),
    statistics (`measured_NAME`) and `within_range`.
    """
    treatment, sampling = result.treatment, result.sampling
    shared = {
        "control": result.control_name,
        "compound": treatment.compound,
        "smiles": treatment.smiles,
        "concentration": treatment.concentration,
        "moa": result.moa or "",
        "seed": sampling.seed,
        "best_of_n": sampling.best_of_n,
        "selection": sampling.selection if sampling.best_of_n > 1 else "",
        "num_inference_steps": sampling.num_inference_steps,
        "guidance_scale": sampling.guidance_scale,
    }
    lines = []
    for source, row in result.every_row.items():
        for i in range(len(row.images)):
            line = {"source": source.lower(), "image": i + 1, **shared}
            if row.selected is not None:
                line["selected"] = int(row.selected[i])
            if row.rewards is not None:
                line |= {_reward_column(name): float(values[i]) for name, values in row.rewards.items()}
                line["within_range"] = bool(row.within_range[i])
            if row.measured is not None:
                names = models.pipe.rewards.statistic_names
                line |= {f"measured_{n}": float(row.measured.values[i, k]) for k, n in enumerate(names)}
            lines.append(line)
    if result.moa is not None:
        means = models.pipe.rewards.real_means([result.moa])
        lines.append({"source": "real cells (mean)", **{_reward_column(name): mean for name, mean in means.items()}})
    return pd.DataFrame(lines).astype({"image": "Int64"})


def _reward_column(name: str) -> str:
    return name if name == "combined" else f"reward_{name}"


def write_downloads(models: Models, result: Result, folder: Path) -> tuple[Path, Path, Path]:
    """Write what can be downloaded of a result.

    Returns:
        A ZIP of OME-TIFFs (the images, one plane a channel), a ZIP of PNGs (enlarged, with and without outlines), and
        a CSV file of [`scores_table`].
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = models.pipe.channel_names
    rows = {title.lower().replace(" ", "_"): row for title, row in result.every_row.items()}
    tiffs, pngs, scores = (folder / name for name in ("images_tiff.zip", "pictures_png.zip", "scores.csv"))
    with zipfile.ZipFile(tiffs, "w") as archive:
        for title, row in rows.items():
            for i, image in enumerate(to_uint8(row.images)):
                path = folder / f"{title}_{i + 1}.ome.tiff"
                write_image(path, image, names)
                archive.write(path, path.name)
                path.unlink()
    with zipfile.ZipFile(pngs, "w") as archive:
        for title, row in rows.items():
            drawn = {"": None} if row.masks is None else {"": None, "_outlines": row.masks}
            for ending, masks in drawn.items():
                for i, picture in enumerate(pictures(row.images, names, masks=masks)):
                    archive.writestr(f"{title}_{i + 1}{ending}.png", _png(picture))
    scores_table(models, result).to_csv(scores, index=False)
    return tiffs, pngs, scores
