// What happens to the finished sums of a tile, over F8.
#pragma once
#include <algorithm>

#include "kernels.h"

namespace {

// `out` is the row's.
inline void write_tile(const float* acc, float* out, int tile, int m, const outlay::Output& to) {
    const int first = tile * outlay::kTile, width = std::min(outlay::kTile, m - first);
    out += first;
    if (width == outlay::kTile) {
        for (int c = 0; c < outlay::kTile; c += 8) {
            F8 value = load8(acc + c);
            if (to.bias) value = add(value, load8(to.bias + first + c));
            if (to.add) value = add(load8(out + c), value);
            store8(out + c, value);
        }
    } else {
        for (int c = 0; c < width; ++c) {
            const float value = to.bias ? acc[c] + to.bias[first + c] : acc[c];
            out[c] = to.add ? out[c] + value : value;
        }
    }
}

}  // namespace
