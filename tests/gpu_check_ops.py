"""Every op with every option on small tensors: what compute-sanitizer watches.

    python tests/gpu_check_ops.py [--device cpu]

Inputs are made on the CPU and copied, so that no kernels but the library's are run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from typing import Any

import torch
from cases import DTYPE_PAIRS, OPS, op_calls

import pursamere  # noqa: F401  (registers the ops)
from pursamere_ext import build_info

SMALL = [(3, 5), (2, 3, 41, 37), (2, 2048), (2, 70_001)]  # one block or several to a sample, with and without tails
# Many of a block's and many blocks to a sample, and chunk sums that take launches of their own: once for each op.
LARGE = [(40, 12_289), (1, 1024 * 1024 + 7)]


def moved(value: Any, device: torch.device, offset: int) -> Any:
    """A tensor on the device, its storage beginning ``offset`` values earlier; others as they are."""
    if not isinstance(value, torch.Tensor):
        return value
    storage = torch.empty(value.numel() + offset, dtype=value.dtype, device=device)
    return storage[offset:].view(value.shape).copy_(value)


def call_all(calls: Iterable[tuple[str, tuple[Any, ...]]], device: torch.device, offset: int = 0) -> int:
    count = 0
    for name, arguments in calls:
        getattr(OPS, name)(*(moved(value, device, offset) for value in arguments))
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # so that an error is this call's
        count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"), help="default: cuda")
    device = parser.parse_args().device
    print(f"extension: {build_info()}", flush=True)
    started = time.monotonic()

    def report(what: object, count: int) -> None:
        print(f"{time.monotonic() - started:6.1f} s  {what}: {count} calls", flush=True)

    for shape in SMALL:
        for image, network in DTYPE_PAIRS:
            report((shape, image, network), call_all(op_calls(shape, image, network), device))
    for image, network in DTYPE_PAIRS:
        report(("not aligned", image, network), call_all(op_calls((2, 3, 8, 8), image, network), device, offset=1))
    # More samples than blocks: those of csrc/cuda/launch.h.
    blocks = 128 * (torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1)
    for shape in [*LARGE, (blocks + 3, 3)]:
        last_of_each = dict(op_calls(shape, torch.float32, torch.float32, draws=2)).items()
        report(shape, call_all(last_of_each, device))
    print("done")


if __name__ == "__main__":
    main()
