"""D4's groundwork: the shared arithmetic gives the same bits however it is compiled."""

import platform
import shutil
import subprocess

import pytest
import torch

import pursamere as ps

PROGRAM = r"""
#include <cstdio>
#include "gaussian.h"
#include "reduction.h"
#include "residual.h"
#include "sam_step.h"
#include "storage.h"
using namespace pursamere;

int main() {
  float z[4096], out[4096];
  for (int i = 0; i < 1024; ++i) gaussian4(noise_key(12345), 3, i, z[4 * i], z[4 * i + 1], z[4 * i + 2], z[4 * i + 3]);
  const float norm = square_root(sum_chunk(z) * sum_chunk(z + 1024) + 1.0f);
  const auto map = residual_map<float>(Prediction::score, 0.3, 1.1, 0.9, 0.2);
  for (int i = 0; i < 4096; ++i) {
    const float r = map.residual<true>(map.image(z[i]), z[i], z[4095 - i]);
    const float moved = descend(Step::unit, ascend(r, z[i], unit_scale(0.1f, norm)), z[4095 - i], 0.2f);
    out[i] = project_l2(project_linf(moved, z[i], 0.5f), r, l2_shrink(norm, 0.7f));
    out[i] += to_compute(from_compute<Half>(r)) + to_compute(from_compute<BFloat16>(r));
  }
  for (int i = 0; i < 4096; ++i) std::printf("%a %a\n", z[i], out[i]);
}
"""
FLAGS = [["-O0"], ["-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math"]]
if platform.machine() == "x86_64":
    FLAGS += [["-O2", "-mno-fma"], ["-O3", "-mavx2", "-mfma"]]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_every_optimization_level_gives_the_bits_of_the_installed_library(tmp_path, request):
    source = tmp_path / "bits.cpp"
    source.write_text(PROGRAM)
    outputs = []
    for i, flags in enumerate(FLAGS):
        program = tmp_path / f"bits{i}"
        headers = request.path.parent.parent / "csrc"
        command = ["g++", "-std=c++17", "-ffp-contract=off", *flags, "-I", headers, source, "-o", program]
        subprocess.run(command, check=True)
        outputs.append(subprocess.run([program], capture_output=True, text=True, check=True).stdout)
    assert all(output == outputs[0] for output in outputs)
    compiled = [float.fromhex(line.split()[0]) for line in outputs[0].splitlines()]
    bank = ps.GaussianNoise(seed=12345, draws=4, antithetic=False).sample((4096,))
    assert torch.equal(torch.tensor(compiled), bank[3])
