# Rejects compiler flags that change floating-point results: they must have the same bits on every machine (D4), and NaN
# must propagate. This includes linker flags: for some of these, GCC links start-up code that switches the whole process
# to flush-to-zero. csrc/compiler_flags.h repeats the check for flags that define macros.

set(refused_flags
  # GCC and clang
  "-Ofast"
  "-ffast-math"
  "-funsafe-math-optimizations"
  "-fassociative-math"
  "-freciprocal-math"
  "-ffinite-math-only"
  "-fno-honor-(nans|infinities)"
  "-fno-signed-zeros"
  "-fapprox-func"
  "-fsingle-precision-constant"
  "-ff?p-model[= ](fast|aggressive)(=[12])?"
  "-ffp-contract=(on|fast|fast-honor-pragmas)"
  "-fdenormal-fp-math(-f32)?=[a-z,-]*(sign|zero|dynamic)"
  "-mrecip(=[a-mo-z!][a-z!-]*)?"
  "-mlow-precision-(div|sqrt|recip-sqrt)"
  "-mdaz-ftz"
  "-mfpmath=(387|both|sse[,+]387)"
  "-mpc(32|64)"
  # nvcc, and clang for CUDA
  "--?use_fast_math"
  "--?ftz[= ](true|1)"
  "--?prec-(div|sqrt)[= ](false|0)"
  "--?fmad[= ](true|1)"
  "-ffp-eval-method=(extended|double)"
  "-(menable|enable)-unsafe-fp-math"
  # files with more flags, which are not visible here
  "@[^ \t\n,;>\"']+"
  "--options-file"
  "-optf"
  "-f(cuda|gpu)-(flush-denormals-to-zero|approx-transcendentals)")

function(refuse_fast_math where flags)
  foreach(refused IN LISTS refused_flags)
    if(" ${flags} " MATCHES "[ \t\n,;:=\"'](${refused})[ \t\n,;>\"']")
      message(FATAL_ERROR
        "${CMAKE_MATCH_1}, in ${where}, changes floating-point results, but pursamere's must have the same bits on "
        "every machine: build without it. Flags come from CXX, CXXFLAGS, CUDAFLAGS, LDFLAGS, "
        "NVCC_PREPEND_FLAGS and NVCC_APPEND_FLAGS in the environment, from CMAKE_ARGS, and from toolchain files.")
    endif()
  endforeach()
endfunction()

set(variables CMAKE_CXX_COMPILER_ARG1 CMAKE_CUDA_COMPILER_ARG1)
foreach(variable CMAKE_CXX_FLAGS CMAKE_CUDA_FLAGS CMAKE_MODULE_LINKER_FLAGS)
  list(APPEND variables ${variable})
  foreach(configuration ${CMAKE_BUILD_TYPE} ${CMAKE_CONFIGURATION_TYPES})
    string(TOUPPER ${configuration} configuration)
    list(APPEND variables ${variable}_${configuration})
  endforeach()
endforeach()
foreach(variable IN LISTS variables)
  refuse_fast_math(${variable} "${${variable}}")
endforeach()
if(CMAKE_CUDA_COMPILER)
  foreach(variable NVCC_PREPEND_FLAGS NVCC_APPEND_FLAGS)  # nvcc itself reads these
    refuse_fast_math(${variable} "$ENV{${variable}}")
  endforeach()
endif()
foreach(property COMPILE_OPTIONS LINK_OPTIONS)
  get_directory_property(options ${property})
  refuse_fast_math("the directory's ${property}" "${options}")
endforeach()
