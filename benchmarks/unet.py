"""The velocity network against a plain implementation: speed, share of the matrix-product rate, error and memory.

    OMP_NUM_THREADS=2 python benchmarks/unet.py                    # 56 M parameters, 16 images of 96 x 96: ~20 minutes
    OMP_NUM_THREADS=1 python benchmarks/unet.py --model_channels 32 --image_size 32 --batch_size 4 --repeats 1
    python benchmarks/unet.py --compile --batch_size 64             # on a GPU, which is used where there is one

All variants hold the same random weights (in the layers, too, that start at zero) and take turns within one process.
The rate is that of a large float32 matrix product in the same run, floating point operations are counted by
`torch.utils.flop_counter`. Errors are against the plain network in float32, relative to the range of its velocities.
Peak memory is what one evaluation adds, in a process of its own: resident memory (Linux), or on a GPU what torch
allocates there.
"""

from __future__ import annotations

import argparse
import copy
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from plain_unet import PlainUNet
from torch.utils.flop_counter import FlopCounterMode

from cellfluxrl.models.cellflux_checkpoint import original_names
from cellfluxrl.models.unet import CellFluxUNet2DModel

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Network = Callable[..., torch.Tensor]

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build(model_channels: int) -> tuple[PlainUNet, CellFluxUNet2DModel]:
    """The BBBC021 network twice, with the same random weights in every layer."""
    torch.manual_seed(0)
    unet = CellFluxUNet2DModel.from_preset("bbbc021", model_channels=model_channels).eval()
    for module in unet.modules():
        if isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d)):
            module.reset_parameters()
    own = unet.state_dict()
    plain = PlainUNet(model_channels=model_channels).eval()
    plain.load_state_dict({original: own[name] for original, name in original_names(unet).items()})
    return plain.to(DEVICE), unet.to(DEVICE)


def draw_inputs(batch_size: int, image_size: int) -> Inputs:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(batch_size, 3, image_size, image_size, generator=generator)
    condition = torch.randint(0, 4, (batch_size, 1024), generator=generator).float()
    return sample.to(DEVICE), torch.rand(batch_size, generator=generator).to(DEVICE), condition.to(DEVICE)


def build_variants(plain: PlainUNet, unet: CellFluxUNet2DModel, compiled: bool) -> dict[str, Network]:
    """What is compared, by name; the first is the baseline."""

    def velocity_of(model: torch.nn.Module, autocast: torch.dtype | None = None) -> Network:
        def evaluate(sample: torch.Tensor, t: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
            with torch.autocast(DEVICE.type, autocast, enabled=autocast is not None):
                return model(sample, t, condition, return_dict=False)[0]

        return evaluate

    last = copy.deepcopy(unet).to(memory_format=torch.channels_last)
    variants = {
        "plain float32": plain,
        "ours float32": velocity_of(unet),
        "ours float32 channels_last": velocity_of(last),
        "ours bfloat16 autocast": velocity_of(unet, torch.bfloat16),
        "ours bfloat16 autocast channels_last": velocity_of(last, torch.bfloat16),
        "ours bfloat16": velocity_of(copy.deepcopy(unet).to(torch.bfloat16)),
    }
    if DEVICE.type == "cuda":
        variants["ours float16 autocast channels_last"] = velocity_of(last, torch.float16)
    if compiled:
        variants["ours float32 compiled"] = velocity_of(torch.compile(unet, fullgraph=True))
        variants["ours bfloat16 autocast compiled"] = velocity_of(torch.compile(last, fullgraph=True), torch.bfloat16)
        if DEVICE.type == "cuda":
            graphs = torch.compile(last, fullgraph=True, mode="reduce-overhead")
            variants["ours bfloat16 autocast CUDA graphs"] = velocity_of(graphs, torch.bfloat16)
    return variants


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matrix_product_rate(size: int, repeats: int = 5) -> float:
    """Operations per second of a float32 matrix product, the best of `repeats`."""
    a, b = torch.randn(size, size, device=DEVICE), torch.randn(size, size, device=DEVICE)
    a @ b
    return 2 * size**3 / min(seconds(lambda: a @ b) for _ in range(repeats))


def count_operations(model_channels: int, image_size: int) -> int:
    """Floating point operations of the plain network for one image."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        plain = PlainUNet(model_channels=model_channels)
        plain(torch.empty(1, 3, image_size, image_size), torch.empty(1), torch.empty(1, 1024))
    return counter.get_total_flops()


def compare(variants: Mapping[str, Network], inputs: Inputs, repeats: int) -> tuple[dict, dict]:
    """Run the variants in turn; return the seconds of each evaluation, and the velocities of each variant."""
    velocities = {name: network(*inputs).float().clone() for name, network in variants.items()}  # warm-up, compilation
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, network in variants.items():
            times[name].append(seconds(lambda network=network: network(*inputs)))
    return times, velocities


def resident_megabytes(entry: str) -> float:
    return int(re.search(rf"{entry}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1000


def peak_megabytes(network: Network, inputs: Inputs) -> float:
    """What one evaluation adds to this process's memory at its peak, in MB (10^6 bytes)."""
    network(*(x[:1, ..., :32, :32] if x.ndim == 4 else x[:1] for x in inputs))  # libraries load, buffers are made
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        network(*inputs)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident_megabytes("VmRSS")
    network(*inputs)
    return resident_megabytes("VmHWM") - before


def peak_in_own_process(name: str) -> float:
    # Every block of memory that is freed goes back to the system, so that it is not taken for use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, *sys.argv, "--peak_memory_of", name]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return float(done.stdout)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=16, help="images an evaluation")
    parser.add_argument("--image_size", type=int, default=96, help="height and width in pixels")
    parser.add_argument("--model_channels", type=int, default=128, help="base width; 128 as published")
    parser.add_argument("--repeats", type=int, default=3, help="timed evaluations of each variant")
    parser.add_argument("--compile", action="store_true", help="torch.compile as well: minutes on a CPU")
    parser.add_argument("--peak_memory_of", help="print the peak memory of one variant, and nothing else")
    args = parser.parse_args()

    variants = build_variants(*build(args.model_channels), args.compile)
    inputs = draw_inputs(args.batch_size, args.image_size)
    if args.peak_memory_of:
        print(peak_megabytes(variants[args.peak_memory_of], inputs))
        return

    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else platform.processor() or platform.machine()
    print(f"$ python {' '.join(sys.argv)}")
    print(f"{device}, {torch.get_num_threads()} CPU threads, torch {torch.__version__}")
    operations = count_operations(args.model_channels, args.image_size) * args.batch_size
    rate = matrix_product_rate(8192 if DEVICE.type == "cuda" else 3072)
    print(f"matrix product: {rate / 1e9:.0f} GFLOP/s; one evaluation: {operations / 1e9:.0f} GFLOP")

    times, velocities = compare(variants, inputs, args.repeats)
    baseline = next(iter(variants))
    expected = velocities[baseline]
    value_range = expected.max() - expected.min()
    print(f"{'':38} images/s  speed-up  of the rate  rms error  max error  peak memory (MB)")
    for name in variants:
        speed = args.batch_size / statistics.median(times[name])
        ratio = statistics.median(b / t for b, t in zip(times[baseline], times[name], strict=True))
        share = operations / statistics.median(times[name]) / rate
        error = (velocities[name] - expected).abs() / value_range
        print(
            f"{name:38} {speed:8.3f} {ratio:8.2f}x {share:12.0%} {error.square().mean().sqrt():10.1e} "
            f"{error.max():10.1e} {peak_in_own_process(name):8.0f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
