// The last step of a linear layer, over F16: bias, accumulation and the partial tile at the end.
#pragma once
#include <algorithm>

#include "kernels.h"

namespace {

// Writes the sums of a tile to their channels of a row, which begins at `out`.
inline void write_tile(const float* acc, float* out, int tile, int m, const outlay::LinearOutput& to) {
    const int first = tile * outlay::kTile, width = std::min(outlay::kTile, m - first);
    out += first;
    if (width == outlay::kTile) {
        F16 value = load16(acc);
        if (to.bias) value = add(value, load16(to.bias + first));
        if (to.accumulate) value = add(load16(out), value);
        store16(out, value);
    } else {
        for (int c = 0; c < width; ++c) {
            const float value = to.bias ? acc[c] + to.bias[first + c] : acc[c];
            out[c] = to.accumulate ? out[c] + value : value;
        }
    }
}

}  // namespace
