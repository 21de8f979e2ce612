"""Print the table, the differences and the times of a demo's results.json as Markdown.

python benchmarks/results_table.py runs/real/results.json
"""

import json
import sys
from pathlib import Path

from cellfluxrl.evaluation.comparison import COLUMNS
from cellfluxrl.evaluation.report.html import format_measurement


def markdown_table(rows: dict[str, dict[str, tuple[float, float]]], columns: tuple[str, ...]) -> str:
    """The rows of an evaluation table, each cell with its standard error."""
    lines = ["| | " + " | ".join(columns) + " |", "| --- |" + " --- |" * len(columns)]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(" ".join(format_measurement(*row[c])) for c in columns) + " |")
    return "\n".join(lines)


def main(path: str) -> None:
    results = json.loads(Path(path).read_text())
    print(markdown_table(results["rows"], COLUMNS[:8]), "\n")
    print(markdown_table(results["rows"], COLUMNS[8:]), "\n")
    for model, differences in results["differences_to_base"].items():
        print(f"{model} minus base, paired over controls and noise (mean, standard errors from zero):")
        for column, d in differences.items():
            print(f"- {column}: {d['mean']:+.4f}, {d['mean'] / (d['standard_error'] or 1):+.1f}")
        print()
    for name, metrics in results["classifiers"].items():
        print(f"{name}: {json.dumps({k: round(v, 4) for k, v in metrics.items() if isinstance(v, float)})}")
    print("seconds:", json.dumps(results["seconds"]))


if __name__ == "__main__":
    main(sys.argv[1])
