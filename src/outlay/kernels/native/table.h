// The table of a set of kernels, from what the including file has compiled for its instruction set.
#pragma once
#include "attend.h"
#include "linear.h"

namespace {

constexpr outlay::Kernels table_of(const char* name) {
    return {name,       quantize,  linear,    rms_norm, rope,       layer_norm, activate,
            cap_scores, add_array, exp_array, attend,   store_head, most_of,    sum_exp};
}

}  // namespace
