// The Python module pursamere_ext._C. Importing it registers the operations torch.ops.pursamere.*; what is bound here
// passes no torch types.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <map>
#include <string>

#include "gaussian.h"

namespace {

std::map<std::string, std::string> build_info() {
    constexpr std::uint64_t abi = TORCH_TARGET_VERSION;
    return {
        {"build_type", BUILD_TYPE},
        {"compiler", BUILD_COMPILER},
        {"cuda", BUILD_CUDA},
#ifdef PURSAMERE_TARGET_CLONES
        {"target_clones", "on"},
#else
        {"target_clones", "off"},
#endif
        {"torch", BUILD_TORCH},
        {"torch_abi", std::to_string(abi >> 56) + "." + std::to_string(abi >> 48 & 0xff)},
    };
}

std::array<std::uint32_t, 4> philox4x32_10(std::array<std::uint32_t, 4> counter, std::array<std::uint32_t, 2> key) {
    const pursamere::PhiloxWords words = pursamere::philox4x32_10(
        pursamere::PhiloxWords{{counter[0], counter[1], counter[2], counter[3]}}, key[0], key[1]);
    return {words.word[0], words.word[1], words.word[2], words.word[3]};
}

float log_unit(float u) { return pursamere::log_unit(u); }
float sine(float t) { return pursamere::sincos_eighth_turn(t).sine; }
float cosine(float t) { return pursamere::sincos_eighth_turn(t).cosine; }

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "Compiled part of Pursamere.";
    module.def("build_info", &build_info, "How this module was built, as a dict of strings.");
    // The generator and its polynomials one by one, so that their known answers and errors can be checked.
    module.def("philox4x32_10", &philox4x32_10, "Four words from a counter of four and a key of two.");
    module.def("log_unit", pybind11::vectorize(log_unit), "Natural logarithm on [2^-32, 1], float32.");
    module.def("sine_of_turns", pybind11::vectorize(sine), "sin(2 pi t) on [-1/8, 1/8], float32.");
    module.def("cosine_of_turns", pybind11::vectorize(cosine), "cos(2 pi t) on [-1/8, 1/8], float32.");
}
