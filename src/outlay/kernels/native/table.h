// The table of a set of kernels, from the classes that describe its instruction set and unpack formats, and the vectors of the
// including file.
#pragma once
#include "attend.h"
#include "linear.h"
#include "unpack.h"

namespace {

template <class Isa, class Unpacker = PortableUnpacker>
constexpr outlay::Kernels table_of(const char* name) {
    return {name,     quantize, linear<Isa>, linear_of_unpacked<Isa>, unpack_tile<Unpacker>, rms_norm, rope,
            layer_norm, activate, softcap,   add_array,               exp_array,             attend,   store_kv,
            max_array,  sum_exp,  sum_from,  weigh,                   nearest};
}

}  // namespace
