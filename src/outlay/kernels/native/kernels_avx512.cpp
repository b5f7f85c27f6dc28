// AVX-512 with VNNI, for the quantized layers: a dot product of four bytes in one instruction, sixteen channels at once.
// Everything around them is AVX2's. The integer sums are exact and the float steps are the same, so the bits are too.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")
#endif

#include "vec_avx2.h"

#include "attend.h"

namespace {

struct RowView;

template <int R>
void dot_q4(const uint8_t* tile, int groups, const RowView* rows, float (*acc)[outlay::kTile]);
template <int R>
void dot_q8(const uint8_t* tile, int groups, const RowView* rows, float (*acc)[outlay::kTile]);
template <int R>
void dot_bf16(const uint8_t* tile, int k, const RowView* rows, float (*acc)[outlay::kTile]);
template <int R>
void dot_f32(const uint8_t* tile, int k, const RowView* rows, float (*acc)[outlay::kTile]);

}  // namespace

#include "linear.h"

namespace {

inline __m512 load_halves(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
inline __m512i splat_quad(const int8_t* p) {
    int32_t bits;
    std::memcpy(&bits, p, 4);
    return _mm512_set1_epi32(bits);
}

template <int R>
void dot_q4(const uint8_t* tile, int groups, const RowView* rows, float (*acc)[outlay::kTile]) {
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512 total[R];
    for (int r = 0; r < R; ++r) total[r] = _mm512_setzero_ps();
    for (int g = 0; g < groups; ++g, tile += outlay::kQ4Block) {
        __m512i dot[R];
        for (int r = 0; r < R; ++r) dot[r] = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            const __m512i packed = _mm512_loadu_si512(tile + 64 + 64 * j);
            const __m512i low = _mm512_and_si512(packed, nibble);
            const __m512i high = _mm512_and_si512(_mm512_srli_epi16(packed, 4), nibble);
            for (int r = 0; r < R; ++r) {
                dot[r] = _mm512_dpbusd_epi32(dot[r], low, splat_quad(rows[r].q + g * 32 + 4 * j));
                dot[r] = _mm512_dpbusd_epi32(dot[r], high, splat_quad(rows[r].q + g * 32 + 16 + 4 * j));
            }
        }
        const __m512 scale = load_halves(tile), minimum = load_halves(tile + 32);
        for (int r = 0; r < R; ++r) {
            const __m512 step = _mm512_mul_ps(scale, _mm512_set1_ps(rows[r].scale[g]));
            total[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r]), step, total[r]);
            total[r] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(rows[r].sum[g]), total[r]);
        }
    }
    for (int r = 0; r < R; ++r) _mm512_storeu_ps(acc[r], total[r]);
}

template <int R>
void dot_q8(const uint8_t* tile, int groups, const RowView* rows, float (*acc)[outlay::kTile]) {
    const __m512i offset = _mm512_set1_epi8(-128);
    __m512 total[R];
    for (int r = 0; r < R; ++r) total[r] = _mm512_setzero_ps();
    for (int g = 0; g < groups; ++g, tile += outlay::kQ8Block) {
        // The instruction wants unsigned weights: w + 128, so 128 times the sum of the inputs is too much.
        __m512i dot[R];
        for (int r = 0; r < R; ++r) dot[r] = _mm512_set1_epi32(-128 * rows[r].isum[g]);
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) {
            const __m512i weight = _mm512_xor_si512(_mm512_loadu_si512(tile + 32 + 64 * j), offset);
            for (int r = 0; r < R; ++r) dot[r] = _mm512_dpbusd_epi32(dot[r], weight, splat_quad(rows[r].q + g * 32 + 4 * j));
        }
        const __m512 scale = load_halves(tile);
        for (int r = 0; r < R; ++r) {
            const __m512 step = _mm512_mul_ps(scale, _mm512_set1_ps(rows[r].scale[g]));
            total[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot[r]), step, total[r]);
        }
    }
    for (int r = 0; r < R; ++r) _mm512_storeu_ps(acc[r], total[r]);
}

template <int R>
void dot_bf16(const uint8_t* tile, int k, const RowView* rows, float (*acc)[outlay::kTile]) {
    __m512 total[R];
    for (int r = 0; r < R; ++r) total[r] = _mm512_setzero_ps();
    for (int i = 0; i < k; ++i, tile += 32) {
        const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile));
        const __m512 weight = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
        for (int r = 0; r < R; ++r) total[r] = _mm512_fmadd_ps(_mm512_set1_ps(rows[r].x[i]), weight, total[r]);
    }
    for (int r = 0; r < R; ++r) _mm512_storeu_ps(acc[r], total[r]);
}

template <int R>
void dot_f32(const uint8_t* tile, int k, const RowView* rows, float (*acc)[outlay::kTile]) {
    __m512 total[R];
    for (int r = 0; r < R; ++r) total[r] = _mm512_setzero_ps();
    for (int i = 0; i < k; ++i, tile += 64) {
        const __m512 weight = _mm512_loadu_ps(reinterpret_cast<const float*>(tile));
        for (int r = 0; r < R; ++r) total[r] = _mm512_fmadd_ps(_mm512_set1_ps(rows[r].x[i]), weight, total[r]);
    }
    for (int r = 0; r < R; ++r) _mm512_storeu_ps(acc[r], total[r]);
}

inline __m512 load_bf16(const uint8_t* p) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}

void dot_bf16_tiles(const uint8_t* const* tiles, int k, const float* x, float (*acc)[outlay::kTile]) {
    __m512 total[outlay::kMaxTiles];
    for (int t = 0; t < outlay::kMaxTiles; ++t) total[t] = _mm512_setzero_ps();
    for (int i = 0; i < k; ++i) {
        const __m512 value = _mm512_set1_ps(x[i]);
        for (int t = 0; t < outlay::kMaxTiles; ++t) total[t] = _mm512_fmadd_ps(value, load_bf16(tiles[t] + size_t(i) * 32), total[t]);
    }
    for (int t = 0; t < outlay::kMaxTiles; ++t) _mm512_storeu_ps(acc[t], total[t]);
}

void dot_f32_tiles(const uint8_t* const* tiles, int k, const float* x, float (*acc)[outlay::kTile]) {
    __m512 total[outlay::kMaxTiles];
    for (int t = 0; t < outlay::kMaxTiles; ++t) total[t] = _mm512_setzero_ps();
    for (int i = 0; i < k; ++i) {
        const __m512 value = _mm512_set1_ps(x[i]);
        for (int t = 0; t < outlay::kMaxTiles; ++t)
            total[t] = _mm512_fmadd_ps(value, _mm512_loadu_ps(tiles[t] + size_t(i) * 64), total[t]);
    }
    for (int t = 0; t < outlay::kMaxTiles; ++t) _mm512_storeu_ps(acc[t], total[t]);
}

}  // namespace

const outlay::Kernels outlay::kAvx512Kernels = {"avx512vnni", quantize,  linear,    rms_norm, rope,
                                                silu_mul,     add_array, exp_array, attend,   argmax};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
