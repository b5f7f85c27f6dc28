// Whole operations over rows, on the pool's threads: the parts of the C interface.
#pragma once
#include <vector>

#include "kernels.h"
#include "pool.h"

namespace outlay {

// The kernels in use; null where the extension has none for this processor.
const Kernels* active_kernels();

inline bool is_quantized(const OutlayLinear& part) {
    const int32_t plain = plain_format(part.format);
    return plain == kQ4 || plain == kQ8;
}

// Whether any part reads quantized inputs.
inline bool is_quantized(const OutlayStack& layer) {
    for (int i = 0; i < layer.n_parts; ++i)
        if (is_quantized(layer.parts[i])) return true;
    return false;
}

// Memory that grows and is never freed before the end, aligned for the widest vectors.
class Scratch {
  public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch();
    template <class T>
    T* get(int64_t count) {
        return static_cast<T*>(reserve(size_t(count) * sizeof(T)));
    }

  private:
    void* reserve(size_t bytes);
    void* data_ = nullptr;
    size_t size_ = 0;
};

// The spans that each row of a pass attends to, in the plan's order.
struct RowSpans {
    std::vector<int64_t> row_start;               // [n+1] into the two below
    std::vector<int32_t> span_of, place_in_span;  // the span, and the row's place among the span's rows
    std::vector<int64_t> max_keys;                // [n] an upper bound of the keys that each row sees
    void build(const OutlayAttentionPlan& plan, int64_t n);
};

struct AttentionCall {
    const float* q;
    int64_t q_stride;
    OutlayKVCache kv;
    int n_heads, n_kv_heads, head_dim;
    float scale, softcap;
    float* out;
    int64_t out_stride;
    float* lse;                        // [n, n_heads] or null
    float* const* weights = nullptr;   // [n] or null: for each row what receives its weights, or null
    int64_t weight_stride = 0;         // floats from head to head, a multiple of 16
    int64_t weight_offset = 0;         // floats before those of the first head
};

// The products of some tiles of a part with some rows. Packed tiles are unpacked once for many rows.
void run_tiles(const Kernels& kernels, const OutlayLinear& part, const Activations& in, int64_t row_begin, int64_t row_end,
               int tile_begin, int tile_end, const LinearOutput& to);

// The caller holds the pool's pass mutex for all of these.
void run_linear(const OutlayStack& layer, const Activations& in, int64_t rows, const LinearOutput& to);
// One row of a table, as floats [k].
void dequantize_row(const OutlayTable& table, int64_t row, float* out);
// The rows in the forms that the layer's parts read; `memory` holds them.
Activations quantize_rows(const OutlayStack& layer, const float* x, int64_t rows, Scratch& memory);
void run_attention(const AttentionCall& call, const OutlayAttentionPlan& plan, const RowSpans& spans, int64_t n,
                   Scratch& scratch);
void run_pass(const OutlayModel& model, const OutlayPass& pass);

// The part of a KV cache that belongs to one KV head.
inline OutlayKVCache kv_of_head(OutlayKVCache kv, int head) {
    const int64_t at = head * kv.head_stride;
    const int64_t size = kv.format == kKVF32 ? 4 : kv.format == kKVBf16 ? 2 : 1;
    kv.k = static_cast<char*>(kv.k) + at * size;
    kv.v = static_cast<char*>(kv.v) + at * size;
    if (kv.format == kKVQ8) {
        kv.k_scales += at / kv.group;
        kv.v_scales += at / kv.group;
    }
    return kv;
}

// Calls body(row) for all rows: on the pool if there are enough of them to be worth it.
template <class Body>
void for_each_row(int64_t rows, const Body& body) {
    constexpr int64_t kChunk = 4;
    if (rows <= kChunk) {
        for (int64_t row = 0; row < rows; ++row) body(row);
        return;
    }
    Pool::get().run((rows + kChunk - 1) / kChunk, [&](int64_t chunk) {
        for (int64_t row = chunk * kChunk; row < rows && row < (chunk + 1) * kChunk; ++row) body(row);
    });
}

}  // namespace outlay
