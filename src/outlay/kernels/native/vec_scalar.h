// Eight floats in portable C++: the reference for vec_avx2.h, operation by operation (so the bits agree).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <utility>

namespace {

struct F8 {
    float v[8];
};
#define OUTLAY_EACH(expr)                       \
    F8 r;                                       \
    for (int i = 0; i < 8; ++i) r.v[i] = expr;  \
    return r

inline F8 load8(const float* p) { OUTLAY_EACH(p[i]); }
inline void store8(float* p, F8 a) { std::memcpy(p, a.v, sizeof a.v); }
template <class V>
V splat(float x);
template <>
inline F8 splat<F8>(float x) { OUTLAY_EACH(x); }
inline F8 add(F8 a, F8 b) { OUTLAY_EACH(a.v[i] + b.v[i]); }
inline F8 sub(F8 a, F8 b) { OUTLAY_EACH(a.v[i] - b.v[i]); }
inline F8 mul(F8 a, F8 b) { OUTLAY_EACH(a.v[i] * b.v[i]); }
inline F8 div(F8 a, F8 b) { OUTLAY_EACH(a.v[i] / b.v[i]); }
inline F8 max(F8 a, F8 b) { OUTLAY_EACH(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
inline F8 min(F8 a, F8 b) { OUTLAY_EACH(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
inline F8 abs(F8 a) { OUTLAY_EACH(std::fabs(a.v[i])); }
inline F8 fmadd(F8 a, F8 b, F8 c) { OUTLAY_EACH(std::fma(a.v[i], b.v[i], c.v[i])); }
inline F8 fnmadd(F8 a, F8 b, F8 c) { OUTLAY_EACH(std::fma(-a.v[i], b.v[i], c.v[i])); }
inline F8 round(F8 a) { OUTLAY_EACH(std::nearbyint(a.v[i])); }
// a where x >= limit, else 0
inline F8 keep_where_ge(F8 a, F8 x, F8 limit) { OUTLAY_EACH(x.v[i] >= limit.v[i] ? a.v[i] : 0.0f); }
// a * 2^n for integral n, with a and the result in the normal range
inline F8 ldexp(F8 a, F8 n) {
    F8 r;
    for (int i = 0; i < 8; ++i) {
        int32_t bits;
        std::memcpy(&bits, &a.v[i], 4);
        bits += int32_t(n.v[i]) * (1 << 23);
        std::memcpy(&r.v[i], &bits, 4);
    }
    return r;
}
inline float reduce_add(F8 a) {
    float low = (a.v[0] + a.v[1]) + (a.v[2] + a.v[3]);
    float high = (a.v[4] + a.v[5]) + (a.v[6] + a.v[7]);
    return low + high;
}
inline F8 reduce_add_each(const F8* a) { OUTLAY_EACH(reduce_add(a[i])); }
// Makes rows of the columns of eight registers.
inline void transpose8(F8* a) {
    for (int i = 0; i < 8; ++i)
        for (int j = 0; j < i; ++j) std::swap(a[i].v[j], a[j].v[i]);
}
inline float reduce_max(F8 a) {
    float best = a.v[0];
    for (int i = 1; i < 8; ++i) best = a.v[i] > best ? a.v[i] : best;
    return best;
}
// Adds the eight values times 2^30, rounded to integers, to `total`.
using FixedSum = int64_t;
inline FixedSum zero_fixed_sum() { return 0; }
inline FixedSum add_fixed(FixedSum total, F8 a) {
    for (int i = 0; i < 8; ++i) total += int64_t(std::nearbyint(a.v[i] * 0x1p30f));
    return total;
}
inline FixedSum add_fixed(FixedSum total, F8 a, F8 b) { return add_fixed(add_fixed(total, a), b); }
inline int64_t reduce_fixed_sum(FixedSum total) { return total; }
// Eight bfloat16, widened; eight floats, rounded to the nearest bfloat16 (ties to even).
inline F8 load_bf16(const uint16_t* p) {
    F8 r;
    for (int i = 0; i < 8; ++i) {
        const uint32_t bits = uint32_t(p[i]) << 16;
        std::memcpy(&r.v[i], &bits, 4);
    }
    return r;
}
inline void store_bf16(uint16_t* p, F8 a) {
    for (int i = 0; i < 8; ++i) {
        uint32_t bits;
        std::memcpy(&bits, &a.v[i], 4);
        p[i] = uint16_t((bits + ((bits >> 16) & 1) + 0x7fff) >> 16);
    }
}
inline F8 load_int8(const int8_t* p) { OUTLAY_EACH(float(p[i])); }
// Rounds eight values to int8, stores them and returns their sum.
inline int32_t store_int8(int8_t* p, F8 a) {
    int32_t sum = 0;
    for (int i = 0; i < 8; ++i) {
        p[i] = int8_t(std::nearbyint(a.v[i]));
        sum += p[i];
    }
    return sum;
}
// Rounds 32 values of size at most 127 to int8, stores them and returns their sum.
inline int32_t store_int8(int8_t* p, F8 a, F8 b, F8 c, F8 d) {
    int32_t sum = 0;
    for (const F8& part : {a, b, c, d}) {
        for (float value : part.v) {
            *p = int8_t(std::nearbyint(value));
            sum += *p++;
        }
    }
    return sum;
}
#undef OUTLAY_EACH

}  // namespace
