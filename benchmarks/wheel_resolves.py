"""Whether `pip install` of the wheel, without extras, finds all dependencies on each supported Python.

    python benchmarks/wheel_resolves.py
    python benchmarks/wheel_resolves.py --python 3.10 3.13

Builds the wheel and lets uv (https://docs.astral.sh/uv) resolve it for each version on Linux, from wheels alone, with
the markers of that version; nothing is installed. Needs the package registry. A version that cannot be resolved ends
the script with status 1.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
SHOWN = ("torch", "diffusers", "datasets", "numpy", "pandas", "scipy", "rdkit")


def build_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(REPOSITORY)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def resolve(wheel: Path, python: str) -> dict[str, str]:
    """Package and version of all that an installation would bring."""
    options = ["--python-version", python, "--python-platform", "linux", "--only-binary", ":all:"]
    done = subprocess.run(
        [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", *options, "-"],
        input=f"cellfluxrl @ {wheel.as_uri()}",
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"Python {python}: {done.stderr.strip()}")
    return dict(re.findall(r"^([\w.-]+)==(\S+)", done.stdout, re.MULTILINE))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=VERSIONS, help="versions; default: all that are supported")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel = build_wheel(Path(folder))
        print(f"{wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB")
        for python in args.python:
            packages = resolve(wheel, python)
            print(f"Python {python}: {len(packages)} packages, " + ", ".join(f"{n} {packages[n]}" for n in SHOWN))


if __name__ == "__main__":
    main()
