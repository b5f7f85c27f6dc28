// The operations between the linear layers, written once over F8 and F16. Every function gives a row the same bits whatever
// else is computed with it: reductions have one fixed order, and nothing depends on how the work was cut.
#pragma once
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels.h"

namespace {

// Relative error below 2e-7. 0 below -87.3 (where float32 would become subnormal).
template <class V>
inline V exp(V x) {
    const V low = splat<V>(-87.3f);
    V clamped = min(max(x, low), splat<V>(88.3f));
    V n = round(mul(clamped, splat<V>(1.44269504f)));
    V r = fnmadd(n, splat<V>(0.693359375f), clamped);
    r = fnmadd(n, splat<V>(-2.12194440e-4f), r);
    V p = splat<V>(1.9875691500e-4f);
    p = fmadd(p, r, splat<V>(1.3981999507e-3f));
    p = fmadd(p, r, splat<V>(8.3334519073e-3f));
    p = fmadd(p, r, splat<V>(4.1665795894e-2f));
    p = fmadd(p, r, splat<V>(1.6666665459e-1f));
    p = fmadd(p, r, splat<V>(5.0000001201e-1f));
    p = fmadd(p, mul(r, r), add(r, splat<V>(1.0f)));
    return keep_where_ge(ldexp(p, n), x, low);
}

// out[i] = body(get) for n floats, sixteen at a time; `get(p)` loads p[i]. The last few go through a buffer.
template <class Body>
inline void map_array(int n, float* out, Body body) {
    int i = 0;
    for (; i + 16 <= n; i += 16) store16(out + i, body([i](const float* p) { return load16(p + i); }));
    if (i < n) {
        float buffer[16];
        store16(buffer, body([i, n](const float* p) {
                    float part[16] = {};
                    for (int j = i; j < n; ++j) part[j - i] = p[j];
                    return load16(part);
                }));
        for (int j = i; j < n; ++j) out[j] = buffer[j - i];
    }
}

void exp_array(const float* x, int n, float* out) {
    map_array(n, out, [=](auto get) { return exp(get(x)); });
}

void add_array(const float* x, int n, float* out) {
    map_array(n, out, [=](auto get) { return add(get(out), get(x)); });
}

inline F16 one() { return splat<F16>(1.0f); }
inline F16 negative(F16 x) { return sub(splat<F16>(0.0f), x); }

inline F16 sigmoid(F16 x) { return div(one(), add(one(), exp(negative(x)))); }

// x / 2 * (1 + erf(x / sqrt 2)), with the error function of Abramowitz and Stegun, 7.1.26: within 2e-7.
inline F16 gelu(F16 x) {
    F16 size = mul(abs(x), splat<F16>(0.70710678f));
    F16 t = div(one(), fmadd(splat<F16>(0.3275911f), size, one()));
    F16 p = splat<F16>(1.061405429f);
    p = fmadd(p, t, splat<F16>(-1.453152027f));
    p = fmadd(p, t, splat<F16>(1.421413741f));
    p = fmadd(p, t, splat<F16>(-0.284496736f));
    p = fmadd(p, t, splat<F16>(0.254829592f));
    F16 erf = fnmadd(mul(p, t), exp(mul(size, negative(size))), one());
    return mul(splat<F16>(0.5f), fmadd(abs(x), erf, x));
}

// x / 2 * (1 + tanh(u)) = x * sigmoid(2 u) with u = sqrt(2 / pi) * (x + 0.044715 x^3)
inline F16 gelu_tanh(F16 x) {
    F16 twice = mul(mul(splat<F16>(1.59576912f), x), fmadd(mul(x, x), splat<F16>(0.044715f), one()));
    return mul(x, sigmoid(twice));
}

inline F16 silu(F16 x) { return div(x, add(one(), exp(negative(x)))); }

// x * sigmoid(1.702 x), CLIP's approximation of gelu
inline F16 quick_gelu(F16 x) { return mul(x, sigmoid(mul(splat<F16>(1.702f), x))); }

inline F16 relu(F16 x) { return max(x, splat<F16>(0.0f)); }

// act(gate) * up, or act(gate) where there is no up.
template <F16 (*act)(F16)>
inline void activate_by(const float* gate, const float* up, int n, float* out) {
    if (up) {
        map_array(n, out, [=](auto get) { return mul(act(get(gate)), get(up)); });
    } else {
        map_array(n, out, [=](auto get) { return act(get(gate)); });
    }
}

void activate(int32_t kind, const float* gate, const float* up, int n, float* out) {
    switch (kind) {
        case kSilu: activate_by<silu>(gate, up, n, out); break;
        case kGelu: activate_by<gelu>(gate, up, n, out); break;
        case kGeluTanh: activate_by<gelu_tanh>(gate, up, n, out); break;
        case kQuickGelu: activate_by<quick_gelu>(gate, up, n, out); break;
        default: activate_by<relu>(gate, up, n, out); break;
    }
}

// cap * tanh(x / cap), in place.
void softcap(float cap, int n, float* x) {
    F16 twice = splat<F16>(2.0f / cap);
    map_array(n, x, [=](auto get) {
        F16 e = exp(mul(get(x), twice));
        return mul(splat<F16>(cap), sub(one(), div(splat<F16>(2.0f), add(e, one()))));
    });
}

void rms_norm(const float* x, const float* weight, int n, float eps, float* out) {
    F8 squares = splat<F8>(0.0f);
    int i = 0;
    for (; i + 8 <= n; i += 8) {
        F8 v = load8(x + i);
        squares = fmadd(v, v, squares);
    }
    float total = reduce_add(squares);
    for (; i < n; ++i) total = std::fma(x[i], x[i], total);
    F16 factor = splat<F16>(1.0f / std::sqrt(total / float(n) + eps));
    map_array(n, out, [=](auto get) { return mul(mul(get(x), factor), get(weight)); });
}

// The rotate-half convention: x[i] and x[i + half] form a pair.
void rope(float* x, const float* cos, const float* sin, int half) {
    int i = 0;
    for (; i + 8 <= half; i += 8) {
        F8 a = load8(x + i), b = load8(x + half + i), c = load8(cos + i), s = load8(sin + i);
        store8(x + i, fnmadd(b, s, mul(a, c)));
        store8(x + half + i, fmadd(a, s, mul(b, c)));
    }
    for (; i < half; ++i) {
        float a = x[i], b = x[half + i];
        x[i] = std::fma(-b, sin[i], a * cos[i]);
        x[half + i] = std::fma(a, sin[i], b * cos[i]);
    }
}

void quantize(const float* x, int k, outlay::QuantizedGroup* out) {
    for (const float* end = x + k; x < end; x += outlay::kGroup, ++out) {
        F16 a = load16(x), b = load16(x + 16);
        float size = reduce_max(max(abs(a), abs(b)));
        // A group this small rounds to zero; its reciprocal would overflow.
        float step = size > 1e-30f ? size / 127.0f : 0.0f;
        F16 inverse = splat<F16>(step > 0.0f ? 127.0f / size : 0.0f);
        int32_t total = store_int8(out->q, mul(a, inverse), mul(b, inverse));
        out->scale = step;
        out->sum = step * float(total);
        out->excess = -128 * total;
    }
}

void layer_norm(const float* x, const float* weight, const float* bias, int n, float eps, float* out) {
    F8 part = splat<F8>(0.0f);
    int i = 0;
    for (; i + 8 <= n; i += 8) part = add(part, load8(x + i));
    float total = reduce_add(part);
    for (; i < n; ++i) total += x[i];
    const float mean = total / float(n);
    part = splat<F8>(0.0f);
    for (i = 0; i + 8 <= n; i += 8) {
        F8 v = sub(load8(x + i), splat<F8>(mean));
        part = fmadd(v, v, part);
    }
    total = reduce_add(part);
    for (; i < n; ++i) total = std::fma(x[i] - mean, x[i] - mean, total);
    F16 factor = splat<F16>(1.0f / std::sqrt(total / float(n) + eps));
    map_array(n, out, [=](auto get) { return fmadd(mul(sub(get(x), splat<F16>(mean)), factor), get(weight), get(bias)); });
}

float max_array(const float* x, int64_t n) {
    int64_t i = 0;
    F16 part = splat<F16>(-std::numeric_limits<float>::infinity());
    for (; i + 16 <= n; i += 16) part = max(load16(x + i), part);
    float largest = reduce_max(part);
    for (; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
    return largest;
}

// The sum of exp(x - max).
float sum_exp(const float* x, int64_t n, float max) {
    int64_t i = 0;
    F16 part = splat<F16>(0.0f);
    for (; i + 16 <= n; i += 16) part = add(part, exp(sub(load16(x + i), splat<F16>(max))));
    float total = reduce_add(part);
    for (; i < n; ++i) {
        float last[16];
        store16(last, exp(splat<F16>(x[i] - max)));
        total += last[0];
    }
    return total;
}

// The sum of what is at least `least`.
float sum_from(const float* x, int64_t n, float least) {
    const F16 limit = splat<F16>(least);
    F16 part = splat<F16>(0.0f);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) part = add(part, keep_where_ge(load16(x + i), load16(x + i), limit));
    float total = reduce_add(part);
    for (; i < n; ++i) total += x[i] >= least ? x[i] : 0.0f;
    return total;
}

// out[i] = exp((x[i] - max) / temperature); returns the sum of them. `out` may be `x`.
double weigh(const float* x, int n, float max, float temperature, float* out) {
    const F16 top = splat<F16>(max), divisor = splat<F16>(temperature);
    map_array(n, out, [=](auto get) { return exp(div(sub(get(x), top), divisor)); });
    double parts[8] = {};
    int i = 0;
    for (; i + 8 <= n; i += 8)
        for (int lane = 0; lane < 8; ++lane) parts[lane] += double(out[i + lane]);
    for (; i < n; ++i) parts[i % 8] += double(out[i]);
    return ((parts[0] + parts[1]) + (parts[2] + parts[3])) + ((parts[4] + parts[5]) + (parts[6] + parts[7]));
}

// The nearest of some points for each of n vectors, by half a point's square less its product with the vector; the first of
// equals. `planes` [v][count] are the points' coordinates, `halves` [count] half their squares; count is a multiple of 16.
void nearest(const float* vectors, int64_t n, int v, const float* planes, const float* halves, int count, int64_t* out) {
    constexpr int kLanes = 16;
    float lanes[kLanes], best[kLanes], place[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = float(lane);
    for (int64_t i = 0; i < n; ++i, vectors += v) {
        // Of each lane; places are whole numbers, which floats hold exactly.
        F16 least = splat<F16>(std::numeric_limits<float>::infinity()), at = splat<F16>(0.0f), here = load16(lanes);
        for (int first = 0; first < count; first += kLanes, here = add(here, splat<F16>(float(kLanes)))) {
            F16 distance = load16(halves + first);
            for (int c = 0; c < v; ++c)
                distance = fnmadd(splat<F16>(vectors[c]), load16(planes + int64_t(c) * count + first), distance);
            at = add(keep_where_ge(at, distance, least), sub(here, keep_where_ge(here, distance, least)));
            least = min(distance, least);
        }
        store16(best, least), store16(place, at);
        int found = 0;
        for (int lane = 1; lane < kLanes; ++lane)
            if (best[lane] < best[found] || (best[lane] == best[found] && place[lane] < place[found])) found = lane;
        out[i] = int64_t(place[found]);
    }
}

}  // namespace
