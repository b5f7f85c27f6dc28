// How keys and values are stored in the KV cache and read from it, over F8.
#pragma once
#include <algorithm>

#include "kernels.h"

namespace {

// Rounds a head's floats to int8, with a scale for each group of dimensions.
inline void store_groups(const float* x, int head_dim, int group, int8_t* q, float* scales) {
    for (int d = 0; d < head_dim; d += group) {
        F8 sizes = splat<F8>(0.0f);
        for (int i = d; i < d + group; i += 8) sizes = max(abs(load8(x + i)), sizes);
        const float size = reduce_max(sizes);
        scales[d / group] = size / 127.0f;
        // A group this small becomes zero; its reciprocal would overflow.
        const F8 inverse = splat<F8>(size > 1e-30f ? 127.0f / size : 0.0f);
        for (int i = d; i < d + group; i += 8) store_int8(q + i, mul(load8(x + i), inverse));
    }
}

// Writes a head's keys and values to element `at` of the cache, in its format.
void store_kv(const OutlayKVCache& kv, int64_t at, const float* k, const float* v, int head_dim) {
    const auto store = [&](void* to, float* scales, const float* x) {
        if (kv.format == kKVF32) {
            std::copy(x, x + head_dim, static_cast<float*>(to) + at);
        } else if (kv.format == kKVBf16) {
            for (int d = 0; d < head_dim; d += 8) store_bf16(static_cast<uint16_t*>(to) + at + d, load8(x + d));
        } else {
            store_groups(x, head_dim, kv.group, static_cast<int8_t*>(to) + at, scales + at / kv.group);
        }
    };
    store(kv.k, kv.k_scales, k);
    store(kv.v, kv.v_scales, v);
}

// The keys or the values of a KV cache, read as floats.
struct KVReader {
    const void* data;
    const float* scales;
    const OutlayKVCache* kv;
    int head_dim;

    // Returns the floats of a slot: in the cache itself, or converted into `buffer`.
    const float* read(int64_t slot, float* buffer) const {
        const int64_t at = slot * kv->slot_stride;
        if (kv->format == kKVF32) return static_cast<const float*>(data) + at;
        if (kv->format == kKVBf16) {
            for (int d = 0; d < head_dim; d += 8) store8(buffer + d, load_bf16(static_cast<const uint16_t*>(data) + at + d));
            return buffer;
        }
        const int8_t* q = static_cast<const int8_t*>(data) + at;
        for (int d = 0; d < head_dim; d += kv->group) {
            const F8 scale = splat<F8>(scales[(at + d) / kv->group]);
            for (int i = d; i < d + kv->group; i += 8) store8(buffer + i, mul(load_int8(q + i), scale));
        }
        return buffer;
    }
};

}  // namespace
