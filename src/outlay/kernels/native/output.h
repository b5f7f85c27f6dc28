// The last step of a linear layer, over F16: bias, accumulation and the partial tile at the end.
#pragma once
#include <algorithm>

#include "kernels.h"

namespace {

// The last tile of a layer whose channels are no multiple of 16. Not inlined: a layer has one at most, and the callers are
// many.
OUTLAY_NOINLINE void write_partial_tile(const float* acc, float* out, int first, int width, const outlay::LinearOutput& to) {
    for (int c = 0; c < width; ++c) {
        const float value = to.bias ? acc[c] + to.bias[first + c] : acc[c];
        out[c] = to.accumulate ? out[c] + value : value;
    }
}

// Writes the sums of a tile to their channels of a row, which begins at `out`.
inline void write_tile(const float* acc, float* out, int tile, int m, const outlay::LinearOutput& to) {
    const int first = tile * outlay::kTile, width = std::min(outlay::kTile, m - first);
    out += first;
    if (width < outlay::kTile) return write_partial_tile(acc, out, first, width, to);
    F16 value = load16(acc);
    if (to.bias) value = add(value, load16(to.bias + first));
    if (to.accumulate) value = add(load16(out), value);
    store16(out, value);
}

}  // namespace
