"""Modules, functions and signatures stay short enough to be read; what is longer says why."""

import ast
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FOLDERS = ("src/cellfluxrl", "rewards", "pipelines", "training")
FILES = [path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py") if path.resolve() == path]
MODULE_LINES, FUNCTION_LINES, ARGUMENTS = 500, 60, 10
LONG = {
    "CellFluxPipeline.__call__": "the loop of a pipeline in one piece and all its settings, as in diffusers",
    "CellFluxRLPipeline.__call__": "the settings of CellFluxPipeline.__call__, and those of the choice",
    "CellFluxUNet2DModel.__init__": "the configuration of a network of diffusers is its signature",
}


def functions(tree: ast.AST, prefix: str = "") -> list[tuple[str, ast.FunctionDef]]:
    found = []
    for node in ast.iter_child_nodes(tree):
        name = prefix + getattr(node, "name", "")
        if isinstance(node, ast.FunctionDef):
            found.append((name, node))
        if isinstance(node, ast.ClassDef):
            found += functions(node, f"{name}.")
    return found


def code_lines(function: ast.FunctionDef) -> int:
    first = function.body[0]
    has_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = first.end_lineno - first.lineno + 1 if has_docstring else 0
    return function.end_lineno - function.lineno + 1 - docstring


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_what_is_read_in_one_go_is_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MODULE_LINES
    for name, function in functions(ast.parse(text)):
        if name not in LONG:
            assert code_lines(function) <= FUNCTION_LINES, name
            names = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
            assert len([n for n in names if n not in ("self", "cls")]) <= ARGUMENTS, name


def test_the_exceptions_are_needed() -> None:
    lengths = {n: code_lines(f) for path in FILES for n, f in functions(ast.parse(path.read_text(encoding="utf-8")))}
    assert set(LONG) <= set(lengths)
