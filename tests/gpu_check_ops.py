"""Calls every op with every option on a device, for compute-sanitizer to watch.

    python tests/gpu_check_ops.py [--device DEVICE] [--part I N]

With --part, only every N-th call from call I on (counted from 0), so that processes can divide them.
"""

import argparse
import os
from itertools import islice

import torch
from cases import DTYPE_PAIRS, OPS, op_calls

import pursamere  # noqa: F401  (registers the ops)

# A sample to one block and to several, with and without tails.
SHAPES = [(3, 5), (2, 3, 41, 37), (2, 2048), (2, 70_001)]


def every_call(device):
    """Yield the name of an op, its arguments, and how many values after an allocation its tensors begin."""
    # Many blocks to a sample, chunk sums with launches of their own, and more samples than blocks (csrc/cuda/launch.h).
    blocks = 128 * (torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1)
    for shape in [(40, 12_289), (1, 1024 * 1024 + 7), (blocks + 3, 3)]:
        each_once = dict(op_calls(shape, torch.float32, torch.float32, draws=2))
        yield from ((*call, 0) for call in each_once.items())
    for image, network in DTYPE_PAIRS:
        yield from ((*call, 1) for call in op_calls((2, 3, 8, 8), image, network))
        for shape in SHAPES:
            yield from ((*call, 0) for call in op_calls(shape, image, network))


def main(device, part=0, parts=1):
    """Call them; only the library's own kernels run."""
    for name, arguments, offset in islice(every_call(device), part, None, parts):
        moved = []
        for value in arguments:
            if isinstance(value, torch.Tensor):
                storage = torch.empty(value.numel() + offset, dtype=value.dtype, device=device)
                value = storage[offset:].view(value.shape).copy_(value)
            moved.append(value)
        getattr(OPS, name)(*moved)
        if device.type == "cuda":
            torch.cuda.synchronize(device)  # so that an error is this call's


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="default: %(default)s")
    parser.add_argument("--part", type=int, nargs=2, default=(0, 1), metavar=("I", "N"))
    arguments = parser.parse_args()
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # an allocation for every tensor, so that errors at its end show
    main(torch.device(arguments.device), *arguments.part)
