// The table of a set of kernels, from the class that describes its instruction set and the vectors of the including file.
#pragma once
#include "attend.h"
#include "linear.h"

namespace {

template <class Isa>
constexpr outlay::Kernels table_of(const char* name) {
    return {name,    quantize,  linear<Isa>, rms_norm, rope,     layer_norm, activate,
            softcap, add_array, exp_array,   attend,   store_kv, max_array,  sum_exp,
            sum_from, weigh};
}

}  // namespace
