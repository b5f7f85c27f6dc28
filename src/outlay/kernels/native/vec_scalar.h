// Eight floats in portable C++: the reference for vec_avx2.h, operation by operation (so the bits agree).
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

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
inline F8 splat8(float x) { OUTLAY_EACH(x); }
inline F8 add8(F8 a, F8 b) { OUTLAY_EACH(a.v[i] + b.v[i]); }
inline F8 sub8(F8 a, F8 b) { OUTLAY_EACH(a.v[i] - b.v[i]); }
inline F8 mul8(F8 a, F8 b) { OUTLAY_EACH(a.v[i] * b.v[i]); }
inline F8 div8(F8 a, F8 b) { OUTLAY_EACH(a.v[i] / b.v[i]); }
inline F8 max8(F8 a, F8 b) { OUTLAY_EACH(a.v[i] > b.v[i] ? a.v[i] : b.v[i]); }
inline F8 min8(F8 a, F8 b) { OUTLAY_EACH(a.v[i] < b.v[i] ? a.v[i] : b.v[i]); }
inline F8 abs8(F8 a) { OUTLAY_EACH(std::fabs(a.v[i])); }
inline F8 fma8(F8 a, F8 b, F8 c) { OUTLAY_EACH(std::fma(a.v[i], b.v[i], c.v[i])); }
inline F8 fnma8(F8 a, F8 b, F8 c) { OUTLAY_EACH(std::fma(-a.v[i], b.v[i], c.v[i])); }
inline F8 round8(F8 a) { OUTLAY_EACH(std::nearbyint(a.v[i])); }
// a where x >= limit, else 0
inline F8 keep_from8(F8 a, F8 x, F8 limit) { OUTLAY_EACH(x.v[i] >= limit.v[i] ? a.v[i] : 0.0f); }
// a * 2^n for integral n, with a and the result in the normal range
inline F8 scale_exponent8(F8 a, F8 n) {
    F8 r;
    for (int i = 0; i < 8; ++i) {
        int32_t bits;
        std::memcpy(&bits, &a.v[i], 4);
        bits += int32_t(n.v[i]) * (1 << 23);
        std::memcpy(&r.v[i], &bits, 4);
    }
    return r;
}
inline float sum8(F8 a) {
    float low = (a.v[0] + a.v[1]) + (a.v[2] + a.v[3]);
    float high = (a.v[4] + a.v[5]) + (a.v[6] + a.v[7]);
    return low + high;
}
inline F8 sums8(const F8* a) { OUTLAY_EACH(sum8(a[i])); }
inline float most8(F8 a) {
    float best = a.v[0];
    for (int i = 1; i < 8; ++i) best = a.v[i] > best ? a.v[i] : best;
    return best;
}
// Rounds eight values to int8, stores them and returns their sum.
inline int32_t store_int8(int8_t* p, F8 a) {
    int32_t sum = 0;
    for (int i = 0; i < 8; ++i) {
        p[i] = int8_t(std::nearbyint(a.v[i]));
        sum += p[i];
    }
    return sum;
}
#undef OUTLAY_EACH

}  // namespace
