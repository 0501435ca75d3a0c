"""Calls every op with every option on a device, for compute-sanitizer to watch.

python tests/gpu_check_ops.py [DEVICE]
"""

import os
import sys

import torch
from cases import DTYPE_PAIRS, OPS, op_calls

import pursamere  # noqa: F401  (registers the ops)

# A sample to one block and to several, with and without tails.
SHAPES = [(3, 5), (2, 3, 41, 37), (2, 2048), (2, 70_001)]


def call_all(calls, device, offset=0):
    """Call ops on tensors that begin ``offset`` values after an allocation; only the library's own kernels run."""
    for name, arguments in calls:
        moved = []
        for value in arguments:
            if isinstance(value, torch.Tensor):
                storage = torch.empty(value.numel() + offset, dtype=value.dtype, device=device)
                value = storage[offset:].view(value.shape).copy_(value)
            moved.append(value)
        getattr(OPS, name)(*moved)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # so that an error is this call's


def main(device):
    # Many blocks to a sample, chunk sums with launches of their own, and more samples than blocks (csrc/cuda/launch.h).
    blocks = 128 * (torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1)
    for shape in [(40, 12_289), (1, 1024 * 1024 + 7), (blocks + 3, 3)]:
        call_all(dict(op_calls(shape, torch.float32, torch.float32, draws=2)).items(), device)  # each op once
    for image, network in DTYPE_PAIRS:
        call_all(op_calls((2, 3, 8, 8), image, network), device, offset=1)
        for shape in SHAPES:
            call_all(op_calls(shape, image, network), device)


if __name__ == "__main__":
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # an allocation for every tensor, so that errors at its end show
    main(torch.device(*sys.argv[1:] or ["cuda"]))
