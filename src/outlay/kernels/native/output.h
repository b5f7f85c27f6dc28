// What happens to the finished sums of a tile, over F16.
#pragma once
#include <algorithm>

#include "kernels.h"

namespace {

// `out` is the row's.
inline void write_tile(const float* acc, float* out, int tile, int m, const outlay::Output& to) {
    const int first = tile * outlay::kTile, width = std::min(outlay::kTile, m - first);
    out += first;
    if (width == outlay::kTile) {
        F16 value = load16(acc);
        if (to.bias) value = add(value, load16(to.bias + first));
        if (to.add) value = add(load16(out), value);
        store16(out, value);
    } else {
        for (int c = 0; c < width; ++c) {
            const float value = to.bias ? acc[c] + to.bias[first + c] : acc[c];
            out[c] = to.add ? out[c] + value : value;
        }
    }
}

}  // namespace
