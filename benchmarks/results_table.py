"""Print the tables and the paired differences of an evaluation's results.json as Markdown.

python benchmarks/results_table.py runs/demo/results.json
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from study_figures import Row, read_results


def markdown_table(rows: Mapping[str, Row], columns: Sequence[str]) -> str:
    """Rows of (value, standard error) by column; the error's first digit decides how many are shown."""
    lines = ["| | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    lines += [f"| {name} | " + " | ".join(_cell(row.get(c)) for c in columns) + " |" for name, row in rows.items()]
    return "\n".join(lines)


def _cell(estimate: tuple[float, float] | None) -> str:
    if estimate is None:
        return "–"
    value, error = estimate
    if not error or math.isnan(error):
        return f"{value:.3g}"
    decimals = min(max(0, -math.floor(math.log10(error)) + (f"{error:e}"[0] == "1")), 4)
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def main(path: str) -> None:
    results, rows = json.loads(Path(path).read_text()), read_results([Path(path)])
    for optimised in (True, False):
        print(
            markdown_table(rows, [c for c, own in results["columns"].items() if own["optimised"] == optimised]), "\n"
        )
    for pair in results["paired"]:
        if pair["theirs"] in results["models"]:
            print(f"{pair['ours']} minus {pair['theirs']}, and p after Holm's correction:")
            for column, test in pair["tests"].items():
                found = (test["difference"]["value"], test["difference"]["error"])
                if found[0] is not None:
                    print(f"- {column}: {_cell(found)}, p = {test['adjusted']:.2g}")
            print()
    for name, metrics in results.get("classifiers", {}).items():
        print(f"{name}: {json.dumps({k: round(v, 4) for k, v in metrics.items() if isinstance(v, float)})}")
    print("seconds:", json.dumps(results.get("seconds", {})))


if __name__ == "__main__":
    main(sys.argv[1])
