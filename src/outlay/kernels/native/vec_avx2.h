// Eight floats in an AVX2 register. Included after the target pragma of the file that uses it.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace {

using F8 = __m256;

inline F8 load8(const float* p) { return _mm256_loadu_ps(p); }
inline void store8(float* p, F8 a) { _mm256_storeu_ps(p, a); }
template <class V>
V splat(float x);
template <>
inline F8 splat<F8>(float x) { return _mm256_set1_ps(x); }
inline F8 add(F8 a, F8 b) { return _mm256_add_ps(a, b); }
inline F8 sub(F8 a, F8 b) { return _mm256_sub_ps(a, b); }
inline F8 mul(F8 a, F8 b) { return _mm256_mul_ps(a, b); }
inline F8 div(F8 a, F8 b) { return _mm256_div_ps(a, b); }
inline F8 max(F8 a, F8 b) { return _mm256_max_ps(a, b); }
inline F8 min(F8 a, F8 b) { return _mm256_min_ps(a, b); }
inline F8 abs(F8 a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline F8 fmadd(F8 a, F8 b, F8 c) { return _mm256_fmadd_ps(a, b, c); }
inline F8 fnmadd(F8 a, F8 b, F8 c) { return _mm256_fnmadd_ps(a, b, c); }
inline F8 round(F8 a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// a where x >= limit, else 0
inline F8 keep_where_ge(F8 a, F8 x, F8 limit) { return _mm256_and_ps(a, _mm256_cmp_ps(x, limit, _CMP_GE_OQ)); }
// a * 2^n for integral n, with a and the result in the normal range
inline F8 ldexp(F8 a, F8 n) {
    __m256i shift = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), shift));
}
// The sums of eight registers; each is ((0+1)+(2+3)) + ((4+5)+(6+7)).
inline F8 reduce_add_each(const F8* a) {
    F8 first = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
    F8 second = _mm256_hadd_ps(_mm256_hadd_ps(a[4], a[5]), _mm256_hadd_ps(a[6], a[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(first, second, 0x20), _mm256_permute2f128_ps(first, second, 0x31));
}
// Makes rows of the columns of eight registers.
OUTLAY_INLINE void transpose8(F8* a) {
    F8 pairs[8], fours[8];
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        fours[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
        fours[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xee);
        fours[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
        fours[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        a[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
        a[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
    }
}
inline float reduce_add(F8 a) {
    F8 pairs = _mm256_hadd_ps(a, a);
    F8 halves = _mm256_hadd_ps(pairs, pairs);
    return _mm_cvtss_f32(_mm_add_ss(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1)));
}
inline float reduce_max(F8 a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps(x, x, 1)));
}
// Adds values from 0 to 1 times 2^30, rounded to integers, to the four sums of `total`: two of them fit into 32 bits.
using FixedSum = __m256i;
inline FixedSum zero_fixed_sum() { return _mm256_setzero_si256(); }
inline __m256i fixed(F8 a) { return _mm256_cvtps_epi32(_mm256_mul_ps(a, _mm256_set1_ps(0x1p30f))); }
inline FixedSum add_unsigned(FixedSum total, __m256i fixed) {
    total = _mm256_add_epi64(total, _mm256_cvtepu32_epi64(_mm256_castsi256_si128(fixed)));
    return _mm256_add_epi64(total, _mm256_cvtepu32_epi64(_mm256_extracti128_si256(fixed, 1)));
}
inline FixedSum add_fixed(FixedSum total, F8 a) { return add_unsigned(total, fixed(a)); }
inline FixedSum add_fixed(FixedSum total, F8 a, F8 b) { return add_unsigned(total, _mm256_add_epi32(fixed(a), fixed(b))); }
inline int64_t reduce_fixed_sum(FixedSum total) {
    alignas(32) int64_t parts[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(parts), total);
    return parts[0] + parts[1] + parts[2] + parts[3];
}
// Eight bfloat16, widened; eight floats, rounded to the nearest bfloat16 (ties to even).
inline F8 load_bf16(const uint16_t* p) {
    const __m128i raw = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
}
inline void store_bf16(uint16_t* p, F8 a) {
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i high = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                     _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1)));
}
inline F8 load_int8(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
// Rounds eight values to int8, stores them and returns their sum.
inline int32_t store_int8(int8_t* p, F8 a) {
    __m256i wide = _mm256_cvtps_epi32(a);
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
    __m128i bytes = _mm_packs_epi16(words, words);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), bytes);
    __m128i pairs = _mm_madd_epi16(words, _mm_set1_epi16(1));
    pairs = _mm_add_epi32(pairs, _mm_shuffle_epi32(pairs, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(pairs, _mm_shuffle_epi32(pairs, 0xb1)));
}
// Rounds 32 values of size at most 127 to int8, stores them and returns their sum.
inline int32_t store_int8(int8_t* p, F8 a, F8 b, F8 c, F8 d) {
    const __m256i first = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
    const __m256i second = _mm256_packs_epi32(_mm256_cvtps_epi32(c), _mm256_cvtps_epi32(d));
    const __m256i mixed = _mm256_packs_epi16(first, second);  // packing works on each half of a register
    const __m256i bytes = _mm256_permutevar8x32_epi32(mixed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bytes);
    const __m256i sums = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes), _mm256_set1_epi16(1));
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1)));
}

}  // namespace
