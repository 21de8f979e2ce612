"""How long the package and the command line take to start, each in a process of its own.

    python benchmarks/import_time.py

Best and median of several runs, in seconds beside those of an interpreter that does nothing, and what heavy packages
have been loaded.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

HEAVY = ("torch", "diffusers", "datasets", "pandas", "numpy")
LINE = "import sys; sys.argv[1:] = {!r}.split(); from cellfluxrl.commands import cli; cli.main()"
CODE = {
    "python": "pass",
    "import cellfluxrl": "import cellfluxrl",
    **{f"cellfluxrl {line}": LINE.format(line) for line in ("--help", "rl --help", "data info", "completion bash")},
    "from cellfluxrl import CellFluxRLPipeline": "from cellfluxrl import CellFluxRLPipeline",
}


def seconds(code: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], capture_output=True)
    return time.perf_counter() - started


def loaded(code: str) -> str:
    code = f"import atexit, sys\natexit.register(lambda: print([m for m in {HEAVY} if m in sys.modules]))\n{code}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stdout.splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    for name, code in CODE.items():
        times = [seconds(code) for _ in range(args.runs)]
        print(f"{name:45}{min(times):6.2f}{statistics.median(times):6.2f}  {loaded(code)}")


if __name__ == "__main__":
    main()
