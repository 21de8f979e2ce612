"""What the documentation's site is built from besides the pages of this folder; `mkdocs.yml` names this file."""

from __future__ import annotations

import os
import re
from pathlib import Path

import griffe
import latex2mathml.converter
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

from cellfluxrl.commands import registry

REPOSITORY = Path(__file__).parents[1]
HELP = "<!-- help of every command -->"


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Make pages of the README, the changelog and the notebook."""
    for source, target in (("README.md", "index.md"), ("CHANGELOG.md", "changelog.md")):
        text = (REPOSITORY / source).read_text(encoding="utf-8").replace("](docs/", "](").replace("[docs/", "[")
        files.append(File.generated(config, target, content=re.sub(r"\[([^]]+)\]\((?:[A-Z]+\.md)\)", r"\1", text)))
    body, resources = MarkdownExporter().from_filename(str(REPOSITORY / "docs/quickstart.ipynb"))
    for name, picture in resources["outputs"].items():
        body = body.replace(name, f"quickstart_{name}")
        files.append(File.generated(config, f"quickstart_{name}", content=picture))
    body += "\n\nThis page is [a notebook](quickstart.ipynb) that a test runs.\n"
    files.append(File.generated(config, "quickstart.md", content=body))


def on_page_markdown(markdown: str, page: Page, **_) -> str:
    """Name files of the repository that are no pages, instead of linking to them; fill the command line in."""
    if "/" not in page.file.src_uri:  # above this folder lies the repository
        markdown = re.sub(r"\[([^]]+)\]\(\.\./([\w./]+)\)", r"\1 (`\2`)", markdown)
    return markdown.replace(HELP, help_of_every_command()) if HELP in markdown else markdown


def on_page_content(html: str, **_) -> str:
    """Turn formulas into MathML, which browsers draw themselves; keep a value and its error on one line."""
    html = re.sub(r"(?<=\d) ± (?=\d)", "&nbsp;±&nbsp;", html)
    html = re.sub(r'<span class="arithmatex">\\\((.*?)\\\)</span>', lambda m: mathml(m[1], "inline"), html, flags=re.S)
    return re.sub(
        r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', lambda m: mathml(m[1], "block"), html, flags=re.S
    )


def mathml(formula: str, display: str) -> str:
    for entity, character in (("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        formula = formula.replace(entity, character)
    return latex2mathml.converter.convert(formula.strip(), display=display)


def help_of_every_command() -> str:
    os.environ["COLUMNS"] = "100"
    helps = {command: make().format_help().rstrip() for command, make in registry.parsers().items()}
    return "\n\n".join(f"## cellfluxrl {command}\n\n```text\n{text}\n```" for command, text in helps.items())


class Docstrings(griffe.Extension):
    """Docstrings in which `Example:` holds code, and [`Name`] is the name of an object."""

    def on_instance(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring:
            text = re.sub(r"^(\s*)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = re.sub(r"\[(`[^`\]]+`)\](?![\[(])", r"\1", text)
