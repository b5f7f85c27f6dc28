// Sixteen floats as two vectors of eight, for instruction sets without wider registers.
#pragma once

namespace {

struct F16 {
    F8 low, high;
};

inline F16 load16(const float* p) { return {load8(p), load8(p + 8)}; }
inline F16 load16_low(const float* p) { return {load8(p), splat<F8>(0.0f)}; }  // eight floats, and eight zeros
inline F16 load16_bf16(const uint16_t* p) { return {load_bf16(p), load_bf16(p + 8)}; }
inline void store16(float* p, F16 a) { store8(p, a.low), store8(p + 8, a.high); }
inline void store16_low(float* p, F16 a) { store8(p, a.low); }
template <>
inline F16 splat<F16>(float x) { return {splat<F8>(x), splat<F8>(x)}; }
inline F16 add(F16 a, F16 b) { return {add(a.low, b.low), add(a.high, b.high)}; }
inline F16 sub(F16 a, F16 b) { return {sub(a.low, b.low), sub(a.high, b.high)}; }
inline F16 mul(F16 a, F16 b) { return {mul(a.low, b.low), mul(a.high, b.high)}; }
inline F16 div(F16 a, F16 b) { return {div(a.low, b.low), div(a.high, b.high)}; }
inline F16 abs(F16 a) { return {abs(a.low), abs(a.high)}; }
inline F16 max(F16 a, F16 b) { return {max(a.low, b.low), max(a.high, b.high)}; }
inline F16 min(F16 a, F16 b) { return {min(a.low, b.low), min(a.high, b.high)}; }
inline F16 fmadd(F16 a, F16 b, F16 c) { return {fmadd(a.low, b.low, c.low), fmadd(a.high, b.high, c.high)}; }
inline F16 fnmadd(F16 a, F16 b, F16 c) { return {fnmadd(a.low, b.low, c.low), fnmadd(a.high, b.high, c.high)}; }
inline F16 round(F16 a) { return {round(a.low), round(a.high)}; }
inline F16 keep_where_ge(F16 a, F16 x, F16 limit) {
    return {keep_where_ge(a.low, x.low, limit.low), keep_where_ge(a.high, x.high, limit.high)};
}
inline F16 ldexp(F16 a, F16 n) { return {ldexp(a.low, n.low), ldexp(a.high, n.high)}; }
inline float reduce_add(F16 a) { return reduce_add(add(a.low, a.high)); }
inline float reduce_max(F16 a) { return reduce_max(max(a.low, a.high)); }
inline int32_t store_int8(int8_t* p, F16 a, F16 b) { return store_int8(p, a.low, a.high, b.low, b.high); }
inline FixedSum add_fixed(FixedSum total, F16 a) { return add_fixed(total, a.low, a.high); }
inline FixedSum add_fixed(FixedSum total, F16 a, F16 b) { return add_fixed(add_fixed(total, a), b); }

// A key in each lane.
using Lanes = F8;
constexpr int kQueriesOfColumns = 2;  // queries that pass over transposed keys together
constexpr int kLanes = 8;
inline Lanes load_lanes(const float* p) { return load8(p); }
inline void store_lanes(float* p, Lanes a) { store8(p, a); }
inline void keep_in_register(Lanes&) {}  // there are too few for it

constexpr int kValueStrip = 1;  // vectors of a value that are summed together
constexpr int kKeysAtOnce = 1;  // keys that are scored together: with two, the sums of four queries leave no register
constexpr int kKeysSummed = 8;  // keys whose scores are finished together

// Of a product, the sums of i and i + 8.
using Folded = F8;
inline Folded fold(F16 a) { return add(a.low, a.high); }

// scores[i][j + k] = scale times the sum of dot[i][k].
template <int Q>
inline void store_scores(const Folded (*dot)[kKeysSummed], float scale, float* const* scores, int j) {
    for (int i = 0; i < Q; ++i) store8(scores[i] + j, mul(reduce_add_each(dot[i]), splat<F8>(scale)));
}

}  // namespace
