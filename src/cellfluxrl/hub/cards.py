"""Cards of repositories: filled in from templates, and checked before they are published."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, ModelCard, RepoCard
from jinja2 import Environment, PackageLoader, StrictUndefined

CARD_NAME = "README.md"
CARDS: dict[str, type[RepoCard]] = {"dataset": DatasetCard, "model": ModelCard}
# What is left where a card's template was not filled in.
PLACEHOLDER = re.compile(
    r"\[More Information Needed\]|\{\{.*?\}\}|\{%.*?%\}|\b(TODO|TBD|FIXME)\b|\[your [^\]]*\]", re.I
)
TEMPLATES = Environment(
    loader=PackageLoader("cellfluxrl.model_cards", "."),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render_card(template: str, **facts: Any) -> str:
    """Fill in a template of `model_cards/` with everything that it names, as Markdown with a YAML header."""
    return TEMPLATES.get_template(template).render(facts)


def load_card(path: Path, repo_type: str) -> RepoCard:
    """Read the card of a `"model"` or `"dataset"`; a `ValueError` if it is missing, or as [`parse_card`] says."""
    if not path.is_file():
        raise ValueError(f"{path} is missing: a repository needs a card")
    return parse_card(path.read_text(encoding="utf-8"), str(path), repo_type)


def parse_card(content: str, where: str, repo_type: str) -> RepoCard:
    """Read a card from text; a `ValueError` that names `where` it is if it cannot be read or has placeholders."""
    try:
        card = CARDS[repo_type](content)
    except Exception as error:  # of yaml, or whatever its header makes huggingface_hub do
        raise ValueError(f"{where} cannot be read as a card: {error}") from error
    if placeholder := PLACEHOLDER.search(card.content):
        raise ValueError(f"{where} still has the placeholder {placeholder[0]!r}: fill it in")
    return card
