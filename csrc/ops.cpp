#include "ops.h"

STABLE_TORCH_LIBRARY(pursamere, m) { pursamere::define_ops(m); }
