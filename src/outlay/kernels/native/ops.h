// What surrounds the linear layers, written once over F8. Every function gives a row the same bits whatever else is
// computed with it: reductions have one fixed order, and nothing depends on how the work was cut.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels.h"

namespace {

// Relative error below 2e-7. 0 below -87.3 (where float32 would become subnormal).
inline F8 exp8(F8 x) {
    const F8 low = splat8(-87.3f);
    F8 clamped = min8(max8(x, low), splat8(88.3f));
    F8 n = round8(mul8(clamped, splat8(1.44269504f)));
    F8 r = fnma8(n, splat8(0.693359375f), clamped);
    r = fnma8(n, splat8(-2.12194440e-4f), r);
    F8 p = splat8(1.9875691500e-4f);
    p = fma8(p, r, splat8(1.3981999507e-3f));
    p = fma8(p, r, splat8(8.3334519073e-3f));
    p = fma8(p, r, splat8(4.1665795894e-2f));
    p = fma8(p, r, splat8(1.6666665459e-1f));
    p = fma8(p, r, splat8(5.0000001201e-1f));
    p = fma8(p, mul8(r, r), add8(r, splat8(1.0f)));
    return keep_from8(scale_exponent8(p, n), x, low);
}

// Applies `body(offset, load, store)` to n floats; the last, partial vector goes through a buffer.
template <class Body>
inline void each8(int n, float* out, Body body) {
    int i = 0;
    for (; i + 8 <= n; i += 8) store8(out + i, body([i](const float* p) { return load8(p + i); }));
    if (i < n) {
        float buffer[8];
        store8(buffer, body([i, n](const float* p) {
                   float part[8] = {};
                   for (int j = i; j < n; ++j) part[j - i] = p[j];
                   return load8(part);
               }));
        for (int j = i; j < n; ++j) out[j] = buffer[j - i];
    }
}

void exp_array(const float* x, int n, float* out) {
    each8(n, out, [=](auto get) { return exp8(get(x)); });
}

void add_array(const float* x, int n, float* out) {
    each8(n, out, [=](auto get) { return add8(get(out), get(x)); });
}

void silu_mul(const float* gate, const float* up, int n, float* out) {
    each8(n, out, [=](auto get) {
        F8 g = get(gate);
        F8 denominator = add8(splat8(1.0f), exp8(sub8(splat8(0.0f), g)));
        return mul8(div8(g, denominator), get(up));
    });
}

void rms_norm(const float* x, const float* weight, int n, float eps, float* out) {
    F8 squares = splat8(0.0f);
    int i = 0;
    for (; i + 8 <= n; i += 8) {
        F8 v = load8(x + i);
        squares = fma8(v, v, squares);
    }
    float total = sum8(squares);
    for (; i < n; ++i) total = std::fma(x[i], x[i], total);
    F8 factor = splat8(1.0f / std::sqrt(total / float(n) + eps));
    each8(n, out, [=](auto get) { return mul8(mul8(get(x), factor), get(weight)); });
}

// The rotate-half convention: x[i] and x[i + half] form a pair.
void rope(float* x, const float* cos, const float* sin, int half) {
    int i = 0;
    for (; i + 8 <= half; i += 8) {
        F8 a = load8(x + i), b = load8(x + half + i), c = load8(cos + i), s = load8(sin + i);
        store8(x + i, fnma8(b, s, mul8(a, c)));
        store8(x + half + i, fma8(a, s, mul8(b, c)));
    }
    for (; i < half; ++i) {
        float a = x[i], b = x[half + i];
        x[i] = std::fma(-b, sin[i], a * cos[i]);
        x[half + i] = std::fma(a, sin[i], b * cos[i]);
    }
}

void quantize(const float* x, int k, int8_t* q, float* scale, float* sum, int32_t* isum) {
    for (int g = 0; g < k / outlay::kGroup; ++g, x += 32, q += 32) {
        F8 a = load8(x), b = load8(x + 8), c = load8(x + 16), d = load8(x + 24);
        float most = most8(max8(max8(abs8(a), abs8(b)), max8(abs8(c), abs8(d))));
        // A group this small rounds to zero; its reciprocal would overflow.
        float step = most > 1e-30f ? most / 127.0f : 0.0f;
        F8 inverse = splat8(step > 0.0f ? 127.0f / most : 0.0f);
        int32_t total = store_int8(q, mul8(a, inverse)) + store_int8(q + 8, mul8(b, inverse)) +
                        store_int8(q + 16, mul8(c, inverse)) + store_int8(q + 24, mul8(d, inverse));
        scale[g] = step;
        isum[g] = total;
        sum[g] = step * float(total);
    }
}

// The lowest index of the largest value.
int64_t argmax(const float* x, int64_t n) {
    float best = x[0];
    int64_t i = 0;
    F8 most = splat8(-std::numeric_limits<float>::infinity());
    for (; i + 8 <= n; i += 8) most = max8(load8(x + i), most);
    best = most8(most);
    for (; i < n; ++i) best = x[i] > best ? x[i] : best;
    for (i = 0; i < n; ++i)
        if (x[i] == best) return i;
    return 0;
}

}  // namespace
