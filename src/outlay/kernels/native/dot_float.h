// The products of the bfloat16 and float32 formats, over F16: one multiplication and addition after the other, in order of k.
#pragma once
#include "kernels.h"

namespace {

// The weights of a tile's sixteen channels for one input.
inline F16 load_weights(outlay::Bf16, const uint8_t* p) { return load16_bf16(reinterpret_cast<const uint16_t*>(p)); }
inline F16 load_weights(outlay::F32, const uint8_t* p) { return load16(reinterpret_cast<const float*>(p)); }

// The `dot_float` of an instruction set with F16 and a `prefetch`. The loops are unrolled so that the sums stay in registers.
// The sums go on from those in `acc`, which are exact there: products of some inputs after the other are those of all.
template <class Isa>
struct VectorDotFloat {
    template <class Format, int T, int R>
    static void dot_float(const uint8_t* const* tiles, int k, const float* x, int64_t stride, size_t ahead,
                          float (*acc)[outlay::kTile]) {
        F16 total[R][T];
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int t = 0; t < T; ++t) total[r][t] = load16(acc[r * T + t]);
        for (int i = 0; i < k; ++i) {
            const size_t at = size_t(i) * Format::kBytes;
            F16 weight[T];
#pragma GCC unroll 4
            for (int t = 0; t < T; ++t) weight[t] = load_weights(Format(), tiles[t] + at);
            if (i % 2 == 0)
                for (int t = 0; t < T; ++t) Isa::prefetch(tiles[t] + at + ahead);
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) {
                const F16 value = splat<F16>(x[r * stride + i]);
#pragma GCC unroll 4
                for (int t = 0; t < T; ++t) total[r][t] = fmadd(value, weight[t], total[r][t]);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int t = 0; t < T; ++t) store16(acc[r * T + t], total[r][t]);
    }
};

}  // namespace
