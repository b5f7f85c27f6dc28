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
#include <type_traits>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")
#endif

#include "vec_avx2.h"
#include "vec_avx512.h"

namespace {

using outlay::QuantizedGroup;

constexpr int kRows = 12;  // 12 sums and 12 dot products
// A dot product takes five cycles and two of them begin in each: fewer rows than ten need several at once for each row.
template <int R>
constexpr int kParts = R <= 2 ? 4 : R <= 8 ? 2 : 1;
constexpr int kFloatRows = 8, kFloatTiles = 2, kTilesOfOneRow = 4;

inline __m512 load_halves(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }
inline __m512i splat_quad(const int8_t* p) {
    int32_t bits;
    std::memcpy(&bits, p, 4);
    return _mm512_set1_epi32(bits);
}
inline void fetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

// The dot products of R rows with 16 channels, each in kParts<R> sums of integers.
template <int R>
struct Dots {
    __m512i part[R][kParts<R>];
    Dots() {
        for (int r = 0; r < R; ++r)
            for (int p = 0; p < kParts<R>; ++p) part[r][p] = _mm512_setzero_si512();
    }
    // Adds the products of four weights of each channel, the group's `index`-th, and four inputs.
    void add(int r, int index, __m512i weights, const int8_t* inputs) {
        __m512i& sum = part[r][index % kParts<R>];
        sum = _mm512_dpbusd_epi32(sum, weights, splat_quad(inputs));
    }
    __m512i sum(int r) const {
        __m512i total = part[r][0];
        for (int p = 1; p < kParts<R>; ++p) total = _mm512_add_epi32(total, part[r][p]);
        return total;
    }
};

template <int R>
void dot_q4(const uint8_t* tile, int groups, const QuantizedGroup* x, size_t ahead, float (*acc)[outlay::kTile]) {
    const __m512i nibble = _mm512_set1_epi8(15);
    __m512 total[R];
    for (int r = 0; r < R; ++r) total[r] = _mm512_setzero_ps();
    for (int g = 0; g < groups; ++g, ++x, tile += outlay::kQ4Block) {
        for (int i = 0; i < outlay::kQ4Block; i += 64) fetch(tile + ahead + i);
        Dots<R> dots;
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            const __m512i packed = _mm512_loadu_si512(tile + 64 + 64 * j);
            const __m512i low = _mm512_and_si512(packed, nibble);
            const __m512i high = _mm512_and_si512(_mm512_srli_epi16(packed, 4), nibble);
            for (int r = 0; r < R; ++r) dots.add(r, 2 * j, low, x[r * groups].q + 4 * j);
            for (int r = 0; r < R; ++r) dots.add(r, 2 * j + 1, high, x[r * groups].q + 16 + 4 * j);
        }
        const __m512 scale = load_halves(tile), minimum = load_halves(tile + 32);
        for (int r = 0; r < R; ++r) {
            const __m512 step = _mm512_mul_ps(scale, _mm512_set1_ps(x[r * groups].scale));
            total[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots.sum(r)), step, total[r]);
            total[r] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(x[r * groups].sum), total[r]);
        }
    }
    for (int r = 0; r < R; ++r) _mm512_store_ps(acc[r], total[r]);
}

template <int R>
void dot_q8(const uint8_t* tile, int groups, const QuantizedGroup* x, size_t ahead, float (*acc)[outlay::kTile]) {
    const __m512i offset = _mm512_set1_epi8(-128);
    __m512 total[R];
    for (int r = 0; r < R; ++r) total[r] = _mm512_setzero_ps();
    for (int g = 0; g < groups; ++g, ++x, tile += outlay::kQ8Block) {
        for (int i = 0; i < outlay::kQ8Block; i += 64) fetch(tile + ahead + i);
        // The instruction wants unsigned weights: w + 128, so 128 times the sum of the inputs is too much.
        Dots<R> dots;
        for (int r = 0; r < R; ++r) dots.part[r][0] = _mm512_set1_epi32(x[r * groups].excess);
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) {
            const __m512i weight = _mm512_xor_si512(_mm512_loadu_si512(tile + 32 + 64 * j), offset);
            for (int r = 0; r < R; ++r) dots.add(r, j, weight, x[r * groups].q + 4 * j);
        }
        const __m512 scale = load_halves(tile);
        for (int r = 0; r < R; ++r) {
            const __m512 step = _mm512_mul_ps(scale, _mm512_set1_ps(x[r * groups].scale));
            total[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots.sum(r)), step, total[r]);
        }
    }
    for (int r = 0; r < R; ++r) _mm512_store_ps(acc[r], total[r]);
}

struct Bf16Weights {
    static constexpr int kBytes = 32;
    static __m512 load(const uint8_t* p) {
        const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
    }
};
struct FloatWeights {
    static constexpr int kBytes = 64;
    static __m512 load(const uint8_t* p) { return _mm512_loadu_ps(reinterpret_cast<const float*>(p)); }
};

template <class Weights, int T, int R>
inline void dot_float(const uint8_t* const* tiles, int k, const float* x, size_t ahead, float (*acc)[outlay::kTile]) {
    __m512 total[R][T];
    for (int r = 0; r < R; ++r)
        for (int t = 0; t < T; ++t) total[r][t] = _mm512_setzero_ps();
    for (int i = 0; i < k; ++i) {
        __m512 weight[T];
        for (int t = 0; t < T; ++t) weight[t] = Weights::load(tiles[t] + size_t(i) * Weights::kBytes);
        if (i % 2 == 0)
            for (int t = 0; t < T; ++t) fetch(tiles[t] + size_t(i) * Weights::kBytes + ahead);
        for (int r = 0; r < R; ++r) {
            const __m512 value = _mm512_set1_ps(x[size_t(r) * k + i]);
            for (int t = 0; t < T; ++t) total[r][t] = _mm512_fmadd_ps(value, weight[t], total[r][t]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int t = 0; t < T; ++t) _mm512_store_ps(acc[r * T + t], total[r][t]);
}

template <int T, int R>
void dot_bf16(const uint8_t* const* tiles, int k, const float* x, size_t ahead, float (*acc)[outlay::kTile]) {
    dot_float<Bf16Weights, T, R>(tiles, k, x, ahead, acc);
}
template <int T, int R>
void dot_f32(const uint8_t* const* tiles, int k, const float* x, size_t ahead, float (*acc)[outlay::kTile]) {
    dot_float<FloatWeights, T, R>(tiles, k, x, ahead, acc);
}

}  // namespace

#include "table.h"

const outlay::Kernels outlay::kAvx512Kernels = table_of("avx512vnni");

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
