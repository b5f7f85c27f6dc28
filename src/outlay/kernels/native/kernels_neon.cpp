// Arm's NEON with dot products. The integer sums are exact and the float steps those of the other kernels.
#include "kernels.h"

#if defined(OUTLAY_NEON)
#include <arm_neon.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

#include "vec_neon.h"
#include "vec_pair.h"

#include "dot_float.h"

namespace {

using outlay::QuantizedGroup;

constexpr int kQuads = outlay::kTile / 4;

inline float32x4_t load_halves(const uint8_t* p) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const uint16_t*>(p))));
}

// Adds the products of 16 inputs with the weights of four channels, [4][4 channels][4].
inline int32x4_t add_dot(int32x4_t sum, const int8x16_t* weight, int8x16_t x) {
    sum = vdotq_laneq_s32(sum, weight[0], x, 0);
    sum = vdotq_laneq_s32(sum, weight[1], x, 1);
    sum = vdotq_laneq_s32(sum, weight[2], x, 2);
    return vdotq_laneq_s32(sum, weight[3], x, 3);
}

struct Neon : VectorDotFloat<Neon> {
    static constexpr int kRows = 4;  // a tile is four registers of 4 channels: 16 sums and 4 dot products
    static constexpr int kFloatRows = 6, kFloatTiles = 1, kTilesOfOneRow = 4;

    static void prefetch(const uint8_t*) {}  // left to the processor
    static void halves_to_floats(const uint8_t* from, float* to) {
        for (int i = 0; i < outlay::kTile; i += 4) vst1q_f32(to + i, load_halves(from + 2 * i));
    }

    struct Weights {
        int8x16_t low, high;  // four of each channel: of the inputs from 4 j on, and from 16 + 4 j on
    };
    // A group of a tile, in quarters of four channels.
    struct Q4 {
        static constexpr int kBytes = outlay::kQ4Block;
        const uint8_t* block;
        Weights weights(int c, int j) const {
            const uint8x16_t packed = vld1q_u8(block + 64 + 64 * j + 16 * c);
            return {vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(15))), vreinterpretq_s8_u8(vshrq_n_u8(packed, 4))};
        }
        float32x4_t scale(int c) const { return load_halves(block + 8 * c); }
        float32x4_t minimum(int c) const { return load_halves(block + 32 + 8 * c); }
    };
    struct UnpackedQ4 {
        static constexpr int kBytes = 640;
        const uint8_t* block;
        Weights weights(int c, int j) const {
            const uint8_t* low = block + 128 + 64 * j + 16 * c;
            return {vreinterpretq_s8_u8(vld1q_u8(low)), vreinterpretq_s8_u8(vld1q_u8(low + 256))};
        }
        float32x4_t scale(int c) const { return vld1q_f32(reinterpret_cast<const float*>(block) + 4 * c); }
        float32x4_t minimum(int c) const { return vld1q_f32(reinterpret_cast<const float*>(block) + 16 + 4 * c); }
    };

    template <class Format, int R>
    static void dot_q4(const uint8_t* tile, int groups, const QuantizedGroup* x, const uint8_t*, float (*acc)[outlay::kTile]) {
        float32x4_t total[R][kQuads];
        for (int r = 0; r < R; ++r)
            for (int c = 0; c < kQuads; ++c) total[r][c] = vdupq_n_f32(0.0f);
        for (int g = 0; g < groups; ++g, ++x, tile += Format::kBytes) {
            const Format block = {tile};
#pragma GCC unroll 4
            for (int c = 0; c < kQuads; ++c) {
                int8x16_t low[4], high[4];
                for (int j = 0; j < 4; ++j) {
                    const Weights weights = block.weights(c, j);
                    low[j] = weights.low, high[j] = weights.high;
                }
                const float32x4_t scale = block.scale(c), minimum = block.minimum(c);
                for (int r = 0; r < R; ++r) {
                    const QuantizedGroup& group = x[r * groups];
                    const int32x4_t half = add_dot(vdupq_n_s32(0), low, vld1q_s8(group.q));
                    const int32x4_t dot = add_dot(half, high, vld1q_s8(group.q + 16));
                    total[r][c] = vfmaq_f32(total[r][c], vcvtq_f32_s32(dot), vmulq_n_f32(scale, group.scale));
                    total[r][c] = vfmaq_n_f32(total[r][c], minimum, group.sum);
                }
            }
        }
        for (int r = 0; r < R; ++r)
            for (int c = 0; c < kQuads; ++c) vst1q_f32(acc[r] + 4 * c, total[r][c]);
    }

    struct Q8 {
        static constexpr int kBytes = outlay::kQ8Block;
    };
    using UnpackedQ8 = Q8;  // signed weights are what the instructions here want

    template <class, int R>
    static void dot_q8(const uint8_t* tile, int groups, const QuantizedGroup* x, const uint8_t*, float (*acc)[outlay::kTile]) {
        float32x4_t total[R][kQuads];
        for (int r = 0; r < R; ++r)
            for (int c = 0; c < kQuads; ++c) total[r][c] = vdupq_n_f32(0.0f);
        for (int g = 0; g < groups; ++g, ++x, tile += outlay::kQ8Block) {
#pragma GCC unroll 4
            for (int c = 0; c < kQuads; ++c) {
                int8x16_t weight[8];
                for (int j = 0; j < 8; ++j) weight[j] = vld1q_s8(reinterpret_cast<const int8_t*>(tile) + 32 + 64 * j + 16 * c);
                const float32x4_t scale = load_halves(tile + 8 * c);
                for (int r = 0; r < R; ++r) {
                    const QuantizedGroup& group = x[r * groups];
                    const int32x4_t half = add_dot(vdupq_n_s32(0), weight, vld1q_s8(group.q));
                    const int32x4_t dot = add_dot(half, weight + 4, vld1q_s8(group.q + 16));
                    total[r][c] = vfmaq_f32(total[r][c], vcvtq_f32_s32(dot), vmulq_n_f32(scale, group.scale));
                }
            }
        }
        for (int r = 0; r < R; ++r)
            for (int c = 0; c < kQuads; ++c) vst1q_f32(acc[r] + 4 * c, total[r][c]);
    }
};

}  // namespace

#include "table.h"

const outlay::Kernels outlay::kNeonKernels = table_of<Neon>("neon");

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
