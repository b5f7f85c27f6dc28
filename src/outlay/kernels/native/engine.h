// Whole operations over rows, on the pool's threads: what the C interface is made of.
#pragma once
#include <vector>

#include "kernels.h"
#include "pool.h"

namespace outlay {

// The kernels in use; null where the extension has none for this processor.
const Kernels* active_kernels();

inline bool is_quantized(const OutlayLinear& layer) { return layer.format == kQ4 || layer.format == kQ8; }

// Memory that grows and is never given back, aligned for the widest vectors.
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

// Which pieces each row reads, in order.
struct RowSpans {
    std::vector<int64_t> start;
    std::vector<int32_t> piece, index;
    std::vector<int64_t> keys;  // an upper bound of what each row sees
    void build(const OutlayPlan& plan, int64_t n);
};

struct AttendCall {
    const float* q;
    int64_t q_stride;
    OutlayCache cache;
    int n_heads, n_kv_heads, head_dim;
    float scale, softcap;
    float* out;
    int64_t out_stride;
    float* lse;  // [n, n_heads] or null
};

// The caller holds the pool's pass mutex for all of these.
void run_linear(const OutlayLinear& layer, const Activations& in, int64_t rows, const Output& out);
// A row of a table, to out [k].
void widen_row(const OutlayTable& table, int64_t row, float* out);
// The rows in the form that the layer reads; `memory` holds it.
Activations quantize_rows(const OutlayLinear& layer, const float* x, int64_t rows, Scratch& memory);
void run_attend(const AttendCall& call, const OutlayPlan& plan, const RowSpans& spans, int64_t n, Scratch& scratch);
void run_pass(const OutlayModel& model, const OutlayPass& pass);

// Where a cache begins for one of its heads.
inline OutlayCache of_head(OutlayCache cache, int head) {
    const int64_t at = head * cache.head_stride;
    const int64_t size = cache.format == kCacheF32 ? 4 : cache.format == kCacheBf16 ? 2 : 1;
    cache.k = static_cast<char*>(cache.k) + at * size;
    cache.v = static_cast<char*>(cache.v) + at * size;
    if (cache.format == kCacheQ8) {
        cache.k_scale += at / cache.group;
        cache.v_scale += at / cache.group;
    }
    return cache;
}

// Calls body(row) for all rows: on the pool if there are enough of them to be worth it.
template <class Body>
void each_row(int64_t rows, const Body& body) {
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
