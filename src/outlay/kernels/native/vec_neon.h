// Eight floats in two NEON registers. Included after the target pragma of the file that uses it.
#pragma once
#include <arm_neon.h>

#include <cstdint>

namespace {

struct F8 {
    float32x4_t low, high;
};

inline F8 load8(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
inline void store8(float* p, F8 a) { vst1q_f32(p, a.low), vst1q_f32(p + 4, a.high); }
template <class V>
V splat(float x);
template <>
inline F8 splat<F8>(float x) { return {vdupq_n_f32(x), vdupq_n_f32(x)}; }
inline F8 add(F8 a, F8 b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
inline F8 sub(F8 a, F8 b) { return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }
inline F8 mul(F8 a, F8 b) { return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
inline F8 div(F8 a, F8 b) { return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)}; }
// The second operand where neither is larger, as on x86.
inline float32x4_t max4(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline float32x4_t min4(float32x4_t a, float32x4_t b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
inline F8 max(F8 a, F8 b) { return {max4(a.low, b.low), max4(a.high, b.high)}; }
inline F8 min(F8 a, F8 b) { return {min4(a.low, b.low), min4(a.high, b.high)}; }
inline F8 abs(F8 a) { return {vabsq_f32(a.low), vabsq_f32(a.high)}; }
inline F8 fmadd(F8 a, F8 b, F8 c) { return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)}; }
inline F8 fnmadd(F8 a, F8 b, F8 c) { return {vfmsq_f32(c.low, a.low, b.low), vfmsq_f32(c.high, a.high, b.high)}; }
inline F8 round(F8 a) { return {vrndnq_f32(a.low), vrndnq_f32(a.high)}; }
inline float32x4_t mask4(float32x4_t a, uint32x4_t mask) {
    return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a), mask));
}
// a where x >= limit, else 0
inline F8 keep_where_ge(F8 a, F8 x, F8 limit) {
    return {mask4(a.low, vcgeq_f32(x.low, limit.low)), mask4(a.high, vcgeq_f32(x.high, limit.high))};
}
inline float32x4_t ldexp4(float32x4_t a, float32x4_t n) {
    return vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(a), vshlq_n_s32(vcvtnq_s32_f32(n), 23)));
}
// a * 2^n for integral n, with a and the result in the normal range
inline F8 ldexp(F8 a, F8 n) { return {ldexp4(a.low, n.low), ldexp4(a.high, n.high)}; }
// The sums of eight registers; each is ((0+1)+(2+3)) + ((4+5)+(6+7)).
inline float32x4_t reduce_add_each4(const F8* a) {
    const float32x4_t first = vpaddq_f32(vpaddq_f32(a[0].low, a[0].high), vpaddq_f32(a[1].low, a[1].high));
    const float32x4_t second = vpaddq_f32(vpaddq_f32(a[2].low, a[2].high), vpaddq_f32(a[3].low, a[3].high));
    return vpaddq_f32(first, second);
}
// Makes rows of the columns of eight registers.
inline void transpose8(F8* a) {
    float rows[8][8], columns[8];
    for (int i = 0; i < 8; ++i) store8(rows[i], a[i]);
    for (int i = 0; i < 8; ++i) {
        for (int j = 0; j < 8; ++j) columns[j] = rows[j][i];
        a[i] = load8(columns);
    }
}
inline F8 reduce_add_each(const F8* a) { return {reduce_add_each4(a), reduce_add_each4(a + 4)}; }
inline float reduce_add(F8 a) {
    const float32x4_t pairs = vpaddq_f32(a.low, a.high);
    return vpadds_f32(vget_low_f32(vpaddq_f32(pairs, pairs)));
}
inline float reduce_max(F8 a) { return vmaxvq_f32(max4(a.low, a.high)); }
// Adds the eight values times 2^30, rounded to integers, to the two sums of `total`.
using FixedSum = int64x2_t;
inline FixedSum zero_fixed_sum() { return vdupq_n_s64(0); }
inline FixedSum add_fixed(FixedSum total, F8 a) {
    total = vpadalq_s32(total, vcvtnq_s32_f32(vmulq_n_f32(a.low, 0x1p30f)));
    return vpadalq_s32(total, vcvtnq_s32_f32(vmulq_n_f32(a.high, 0x1p30f)));
}
inline FixedSum add_fixed(FixedSum total, F8 a, F8 b) { return add_fixed(add_fixed(total, a), b); }
inline int64_t reduce_fixed_sum(FixedSum total) { return vaddvq_s64(total); }
// Eight bfloat16, widened; eight floats, rounded to the nearest bfloat16 (ties to even).
inline F8 load_bf16(const uint16_t* p) {
    const uint16x8_t raw = vld1q_u16(p);
    return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(raw), 16)),
            vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(raw), 16))};
}
inline uint16x4_t to_bf16(float32x4_t a) {
    const uint32x4_t bits = vreinterpretq_u32_f32(a);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    return vshrn_n_u32(vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
}
inline void store_bf16(uint16_t* p, F8 a) { vst1q_u16(p, vcombine_u16(to_bf16(a.low), to_bf16(a.high))); }
inline F8 load_int8(const int8_t* p) {
    const int16x8_t wide = vmovl_s8(vld1_s8(p));
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide)))};
}
inline int8x8_t to_int8(F8 a) {
    return vqmovn_s16(vcombine_s16(vqmovn_s32(vcvtnq_s32_f32(a.low)), vqmovn_s32(vcvtnq_s32_f32(a.high))));
}
// Rounds eight values of size at most 127 to int8, stores them and returns their sum.
inline int32_t store_int8(int8_t* p, F8 a) {
    const int8x8_t bytes = to_int8(a);
    vst1_s8(p, bytes);
    return vaddlv_s8(bytes);
}
// Rounds 32 values of size at most 127 to int8, stores them and returns their sum.
inline int32_t store_int8(int8_t* p, F8 a, F8 b, F8 c, F8 d) {
    const int8x16_t first = vcombine_s8(to_int8(a), to_int8(b)), second = vcombine_s8(to_int8(c), to_int8(d));
    vst1q_s8(p, first);
    vst1q_s8(p + 16, second);
    return vaddlvq_s8(first) + vaddlvq_s8(second);
}

}  // namespace
