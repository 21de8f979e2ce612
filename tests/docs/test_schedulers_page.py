"""The Python blocks of docs/schedulers.md run, one after the other as a reader would paste them."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "schedulers.md"


def test_the_examples_run(capsys: pytest.CaptureFixture[str]) -> None:
    text = PAGE.read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks
    names: dict[str, object] = {"__name__": "documentation"}
    for block in blocks:
        line = text[: text.index(block)].count("\n")
        exec(compile("\n" * line + block, str(PAGE), "exec"), names)
        # What a block prints stands in the comments behind its print calls.
        printed = capsys.readouterr().out.splitlines()
        assert printed == re.findall(r"^print\(.*?\)  # (.*)$", block, re.MULTILINE)


def test_paths_that_the_page_links_to_exist() -> None:
    for path in re.findall(r"\]\(([^)#:]+)\)", PAGE.read_text()):
        assert (PAGE.parent / path).exists(), path
