// Sixteen floats as two groups of eight, for instruction sets without wider registers.
#pragma once

namespace {

struct F16 {
    F8 low, high;
};

inline F16 load16(const float* p) { return {load8(p), load8(p + 8)}; }
inline F16 load16_low(const float* p) { return {load8(p), splat<F8>(0.0f)}; }  // eight floats, and eight zeros
inline void store16(float* p, F16 a) { store8(p, a.low), store8(p + 8, a.high); }
inline void store16_low(float* p, F16 a) { store8(p, a.low); }
template <>
inline F16 splat<F16>(float x) { return {splat<F8>(x), splat<F8>(x)}; }
inline F16 add(F16 a, F16 b) { return {add(a.low, b.low), add(a.high, b.high)}; }
inline F16 sub(F16 a, F16 b) { return {sub(a.low, b.low), sub(a.high, b.high)}; }
inline F16 mul(F16 a, F16 b) { return {mul(a.low, b.low), mul(a.high, b.high)}; }
inline F16 div(F16 a, F16 b) { return {div8(a.low, b.low), div8(a.high, b.high)}; }
inline F16 magnitude(F16 a) { return {abs8(a.low), abs8(a.high)}; }
inline F16 greater(F16 a, F16 b) { return {greater(a.low, b.low), greater(a.high, b.high)}; }
inline F16 lesser(F16 a, F16 b) { return {lesser(a.low, b.low), lesser(a.high, b.high)}; }
inline F16 mul_add(F16 a, F16 b, F16 c) { return {mul_add(a.low, b.low, c.low), mul_add(a.high, b.high, c.high)}; }
inline F16 sub_mul(F16 a, F16 b, F16 c) { return {sub_mul(a.low, b.low, c.low), sub_mul(a.high, b.high, c.high)}; }
inline F16 rounded(F16 a) { return {rounded(a.low), rounded(a.high)}; }
inline F16 keep_from(F16 a, F16 x, F16 limit) {
    return {keep_from(a.low, x.low, limit.low), keep_from(a.high, x.high, limit.high)};
}
inline F16 scale_exponent(F16 a, F16 n) { return {scale_exponent(a.low, n.low), scale_exponent(a.high, n.high)}; }
inline float sum(F16 a) { return sum8(add(a.low, a.high)); }
inline float largest(F16 a) { return largest(greater(a.low, a.high)); }
inline int32_t store_int8(int8_t* p, F16 a, F16 b) { return store_int8(p, a.low, a.high, b.low, b.high); }
inline Sums add_fixed(Sums total, F16 a) { return add_fixed(add_fixed(total, a.low), a.high); }

constexpr int kStrip = 1;       // vectors of a value that are summed together
constexpr int kKeysAtOnce = 2;  // keys that are scored together
constexpr int kKeysSummed = 8;  // keys whose scores are finished together

// Of a product, the sums of i and i + 8.
using Folded = F8;
inline Folded fold(F16 a) { return add(a.low, a.high); }

// scores[i][j + k] = scale times the sum of dot[i][k].
template <int Q>
inline void store_sums(const Folded (*dot)[kKeysSummed], float scale, float* const* scores, int j) {
    for (int i = 0; i < Q; ++i) store8(scores[i] + j, mul(sums8(dot[i]), splat<F8>(scale)));
}

}  // namespace
