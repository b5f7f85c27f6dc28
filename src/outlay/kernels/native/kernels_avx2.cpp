// AVX2, FMA and F16C. Only the pragma below lets the compiler use them, and only in this file's own functions: the
// standard headers come first, so that no shared inline function is compiled with instructions others may lack.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#include "vec_avx2.h"
#include "vec_pair.h"
#include "unpack_avx2.h"

#include "dot_float.h"

namespace {

using outlay::QuantizedGroup;

inline __m256i load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m256 load_halves(const void* p) { return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p))); }
inline __m256i splat_quad(const int8_t* p) {
    int32_t bits;
    std::memcpy(&bits, p, 4);
    return _mm256_set1_epi32(bits);
}
// Keeps the compiler from delaying sums until it runs out of registers: the value is in one here.
inline void keep_in_register(__m256i& value) { asm volatile("" : "+x"(value)); }

struct Avx2 : VectorDotFloat<Avx2> {
    // A tile is two registers of 8 channels. Both are served together, so that an input is loaded once for the two.
    static constexpr int kRows = 4;
    static constexpr int kFloatRows = 6, kFloatTiles = 1, kTilesOfOneRow = 4;

    static void halves_to_floats(const uint8_t* from, float* to) {
        for (int i = 0; i < outlay::kTile; i += 8) _mm256_storeu_ps(to + i, load_halves(from + 2 * i));
    }
    // Into the second level: the first has room for few lines on their way, and the loads themselves want it.
    static void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1); }

    struct Weights {
        __m256i low, high;  // four of each channel: of the inputs from 4 j on, and from 16 + 4 j on
    };
    // A group of a tile, in two halves of eight channels.
    struct Q4 {
        static constexpr int kBytes = outlay::kQ4Block;
        const uint8_t* block;
        Weights weights(int h, int j) const {
            const __m256i nibble = _mm256_set1_epi8(15), packed = load_bytes(block + 64 + 64 * j + 32 * h);
            return {_mm256_and_si256(packed, nibble), _mm256_and_si256(_mm256_srli_epi16(packed, 4), nibble)};
        }
        __m256 scale(int h) const { return load_halves(block + 16 * h); }
        __m256 minimum(int h) const { return load_halves(block + 32 + 16 * h); }
    };
    struct UnpackedQ4 {
        static constexpr int kBytes = 640;
        const uint8_t* block;
        Weights weights(int h, int j) const {
            return {load_bytes(block + 128 + 64 * j + 32 * h), load_bytes(block + 384 + 64 * j + 32 * h)};
        }
        __m256 scale(int h) const { return load8(reinterpret_cast<const float*>(block) + 8 * h); }
        __m256 minimum(int h) const { return load8(reinterpret_cast<const float*>(block) + 16 + 8 * h); }
    };

    template <class Format, int R>
    static void dot_q4(const uint8_t* tile, int groups, const QuantizedGroup* x, const uint8_t* next,
                       float (*acc)[outlay::kTile]) {
        const __m256i ones = _mm256_set1_epi16(1);
        __m256 total[R][2];
        for (int r = 0; r < R; ++r) total[r][0] = total[r][1] = _mm256_setzero_ps();
        for (int g = 0; g < groups; ++g, ++x, tile += Format::kBytes, next += outlay::kQ4Block) {
            for (int i = 0; i < outlay::kQ4Block; i += 64) prefetch(next + i);
            const Format group = {tile};
            // Sums of 16 products of at most 15 * 127 fit into 16 bits.
            __m256i dot[R][2];
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                const Weights weights[2] = {group.weights(0, j), group.weights(1, j)};
                for (int r = 0; r < R; ++r) {
                    const int8_t* q = x[r * groups].q + 4 * j;
                    const __m256i first = splat_quad(q), second = splat_quad(q + 16);
                    for (int h = 0; h < 2; ++h) {
                        const __m256i part = _mm256_maddubs_epi16(weights[h].low, first);
                        dot[r][h] = j ? _mm256_add_epi16(dot[r][h], part) : part;
                        dot[r][h] = _mm256_add_epi16(dot[r][h], _mm256_maddubs_epi16(weights[h].high, second));
                        keep_in_register(dot[r][h]);
                    }
                }
            }
            for (int h = 0; h < 2; ++h) {
                const __m256 scale = group.scale(h), minimum = group.minimum(h);
                for (int r = 0; r < R; ++r) {
                    const __m256 value = _mm256_cvtepi32_ps(_mm256_madd_epi16(dot[r][h], ones));
                    const __m256 step = _mm256_mul_ps(scale, _mm256_broadcast_ss(&x[r * groups].scale));
                    total[r][h] = _mm256_fmadd_ps(value, step, total[r][h]);
                    total[r][h] = _mm256_fmadd_ps(minimum, _mm256_broadcast_ss(&x[r * groups].sum), total[r][h]);
                }
            }
        }
        for (int r = 0; r < R; ++r)
            for (int h = 0; h < 2; ++h) _mm256_store_ps(acc[r] + 8 * h, total[r][h]);
    }

    struct Q8 {
        static constexpr int kBytes = outlay::kQ8Block;
    };
    using UnpackedQ8 = Q8;  // signed weights are what the instructions here want

    template <class, int R>
    static void dot_q8(const uint8_t* tile, int groups, const QuantizedGroup* x, const uint8_t* next,
                       float (*acc)[outlay::kTile]) {
        const __m256i ones = _mm256_set1_epi16(1);
        __m256 total[R][2];
        for (int r = 0; r < R; ++r) total[r][0] = total[r][1] = _mm256_setzero_ps();
        for (int g = 0; g < groups; ++g, ++x, tile += outlay::kQ8Block, next += outlay::kQ8Block) {
            for (int i = 0; i < outlay::kQ8Block; i += 64) prefetch(next + i);
            __m256i dot[R][2];
#pragma GCC unroll 8
            for (int j = 0; j < 8; ++j) {
                __m256i weight[2], size[2];
                for (int h = 0; h < 2; ++h) {
                    weight[h] = load_bytes(tile + 32 + j * 64 + h * 32);
                    size[h] = _mm256_abs_epi8(weight[h]);
                }
                for (int r = 0; r < R; ++r) {
                    const __m256i quad = splat_quad(x[r * groups].q + 4 * j);
                    for (int h = 0; h < 2; ++h) {
                        // The sign of the weight moves to the input, whose size is at most 127: 2*128*127 fits into 16 bits.
                        const __m256i pairs = _mm256_maddubs_epi16(size[h], _mm256_sign_epi8(quad, weight[h]));
                        const __m256i part = _mm256_madd_epi16(pairs, ones);
                        dot[r][h] = j ? _mm256_add_epi32(dot[r][h], part) : part;
                        keep_in_register(dot[r][h]);
                    }
                }
            }
            for (int h = 0; h < 2; ++h) {
                const __m256 scale = load_halves(tile + 16 * h);
                for (int r = 0; r < R; ++r) {
                    const __m256 step = _mm256_mul_ps(scale, _mm256_broadcast_ss(&x[r * groups].scale));
                    total[r][h] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot[r][h]), step, total[r][h]);
                }
            }
        }
        for (int r = 0; r < R; ++r)
            for (int h = 0; h < 2; ++h) _mm256_store_ps(acc[r] + 8 * h, total[r][h]);
    }
};

}  // namespace

#include "table.h"

const outlay::Kernels outlay::kAvx2Kernels = table_of<Avx2, Avx2Unpacker>("avx2");

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
