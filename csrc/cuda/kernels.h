// The CUDA kernels, one file for each op. Free of torch: compiled by nvcc, or for a host without a GPU by g++ (see
// tests/cuda_on_cpu/). Nothing here waits for the device or allocates.
#pragma once

#include "cuda/device.h"
#include "problems.h"

namespace pursamere::cuda {

template <class Stored>
void run(const Noise<Stored>& problem, const Device& device);
template <class Image, class Network>
void run(const Perturb<Image, Network>& problem, const Device& device);
template <class Image, class Network>
void run(const Residual<Image, Network>& problem, const Device& device);
template <class Image, class Network>
void run(const AccumulateAscend<Image, Network>& problem, const Device& device);
template <class Image, class Network>
void run(const AccumulateDescend<Image, Network>& problem, const Device& device);

}  // namespace pursamere::cuda
