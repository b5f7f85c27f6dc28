// Sixteen floats in an AVX-512 register: the same steps as vec_pair.h.
#pragma once
#include <immintrin.h>

namespace {

using F16 = __m512;

inline F16 load16(const float* p) { return _mm512_loadu_ps(p); }
inline F16 load16_low(const float* p) { return _mm512_maskz_loadu_ps(0xff, p); }  // eight floats, and eight zeros
inline F16 load16_bf16(const uint16_t* p) {
    const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
}
inline void store16(float* p, F16 a) { _mm512_storeu_ps(p, a); }
inline void store16_low(float* p, F16 a) { _mm512_mask_storeu_ps(p, 0xff, a); }
template <>
inline F16 splat<F16>(float x) { return _mm512_set1_ps(x); }
inline F16 add(F16 a, F16 b) { return _mm512_add_ps(a, b); }
inline F16 sub(F16 a, F16 b) { return _mm512_sub_ps(a, b); }
inline F16 mul(F16 a, F16 b) { return _mm512_mul_ps(a, b); }
inline F16 div(F16 a, F16 b) { return _mm512_div_ps(a, b); }
inline F16 abs(F16 a) { return _mm512_abs_ps(a); }
inline F16 max(F16 a, F16 b) { return _mm512_max_ps(a, b); }
inline F16 min(F16 a, F16 b) { return _mm512_min_ps(a, b); }
inline F16 fmadd(F16 a, F16 b, F16 c) { return _mm512_fmadd_ps(a, b, c); }
inline F16 fnmadd(F16 a, F16 b, F16 c) { return _mm512_fnmadd_ps(a, b, c); }
inline F16 round(F16 a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F16 keep_where_ge(F16 a, F16 x, F16 limit) {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_GE_OQ), a);
}
inline F16 ldexp(F16 a, F16 n) {
    const __m512i shift = _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23);
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), shift));
}
inline F8 low_half(F16 a) { return _mm512_castps512_ps256(a); }
inline F8 high_half(F16 a) { return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1)); }
inline float reduce_add(F16 a) { return reduce_add(add(low_half(a), high_half(a))); }
inline float reduce_max(F16 a) { return reduce_max(max(low_half(a), high_half(a))); }
// Rounds 32 values of size at most 127 to int8, stores them and returns their sum.
inline int32_t store_int8(int8_t* p, F16 a, F16 b) {
    const __m512i first = _mm512_cvtps_epi32(a), second = _mm512_cvtps_epi32(b);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(first));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 16), _mm512_cvtepi32_epi8(second));
    return _mm512_reduce_add_epi32(_mm512_add_epi32(first, second));
}
inline __m512i fixed(F16 a) { return _mm512_cvtps_epi32(_mm512_mul_ps(a, _mm512_set1_ps(0x1p30f))); }
inline FixedSum add_unsigned(FixedSum total, __m512i fixed) {
    const __m512i wide = _mm512_add_epi64(_mm512_cvtepu32_epi64(_mm512_castsi512_si256(fixed)),
                                          _mm512_cvtepu32_epi64(_mm512_extracti64x4_epi64(fixed, 1)));
    return _mm256_add_epi64(total, _mm256_add_epi64(_mm512_castsi512_si256(wide), _mm512_extracti64x4_epi64(wide, 1)));
}
inline FixedSum add_fixed(FixedSum total, F16 a) { return add_unsigned(total, fixed(a)); }
inline FixedSum add_fixed(FixedSum total, F16 a, F16 b) { return add_unsigned(total, _mm512_add_epi32(fixed(a), fixed(b))); }

// A key in each lane.
using Lanes = F16;
constexpr int kQueriesOfColumns = 4;  // queries that pass over transposed keys together
constexpr int kLanes = 16;
inline Lanes load_lanes(const float* p) { return load16(p); }
inline void store_lanes(float* p, Lanes a) { store16(p, a); }
// Has the compiler load a value once, where it would load it again for each of its uses.
inline void keep_in_register(Lanes& a) { asm("" : "+v"(a)); }

constexpr int kValueStrip = 4;  // vectors of a value that are summed together
constexpr int kKeysAtOnce = 4;  // keys that are scored together
constexpr int kKeysSummed = 4;  // keys whose scores are finished together

using Folded = F16;
inline Folded fold(F16 a) { return a; }

// Of two products, the sums of i and i + 8, the first one's in the low half.
inline F16 fold_two(F16 a, F16 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
}
inline F16 add_neighbours(F16 a, F16 b) {
    return _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x88), _mm512_shuffle_ps(a, b, 0xdd));
}
// The products of two queries with four keys.
inline F16 fold_eight(const F16* a, const F16* b) {
    return add_neighbours(add_neighbours(fold_two(a[0], b[0]), fold_two(a[1], b[1])),
                          add_neighbours(fold_two(a[2], b[2]), fold_two(a[3], b[3])));
}

// scores[i][j + k] = scale times the sum of dot[i][k], in the order of vec_pair.h. All sixteen products are folded into
// one register, a query in each quarter.
template <int Q>
inline void store_scores(const Folded (*dot)[kKeysSummed], float scale, float* const* scores, int j) {
    const F16 first = fold_eight(dot[0], dot[Q > 1 ? 1 : 0]);
    const F16 second = Q > 2 ? fold_eight(dot[Q > 2 ? 2 : 0], dot[Q > 3 ? 3 : 0]) : first;
    const F16 sums = _mm512_add_ps(_mm512_shuffle_f32x4(first, second, 0x88), _mm512_shuffle_f32x4(first, second, 0xdd));
    const F16 scaled = _mm512_mul_ps(sums, _mm512_set1_ps(scale));
    _mm_storeu_ps(scores[0] + j, _mm512_castps512_ps128(scaled));
    if (Q > 1) _mm_storeu_ps(scores[Q > 1 ? 1 : 0] + j, _mm512_extractf32x4_ps(scaled, 1));
    if (Q > 2) _mm_storeu_ps(scores[Q > 2 ? 2 : 0] + j, _mm512_extractf32x4_ps(scaled, 2));
    if (Q > 3) _mm_storeu_ps(scores[Q > 3 ? 3 : 0] + j, _mm512_extractf32x4_ps(scaled, 3));
}

}  // namespace
