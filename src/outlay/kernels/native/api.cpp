// The C interface, and the choice of kernels.
#include <cstring>
#include <exception>
#include <mutex>
#include <vector>

#include "engine.h"

namespace outlay {
namespace {

const Kernels* chosen = nullptr;

struct Shape {
    int32_t format, m, k;
    int64_t rows;
};

// Every format at widths with full and partial blocks, compared with the portable kernels.
bool agrees_with_scalar(const Kernels& kernels) {
    uint64_t state = 88172645463325252ull;
    const auto next = [&state] {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        return state;
    };
    constexpr Shape kShapes[] = {{kQ4, 40, 96, 7}, {kQ8, 40, 96, 7}, {kBf16, 40, 33, 7}, {kF32, 40, 33, 7}, {kBf16, 90, 33, 1},
                                 {kF32, 90, 33, 1}};
    for (const Shape& shape : kShapes) {
        OutlayLinear layer = {nullptr, shape.format, shape.m, shape.k, 0};
        std::vector<uint8_t> data(tile_bytes(layer) * tiles_of(layer));
        for (auto& byte : data) byte = uint8_t(next());
        // Scales must be finite: the top bit of every half's, bfloat16's or float's exponent is cleared.
        if (shape.format == kQ4 || shape.format == kQ8) {
            const size_t block = shape.format == kQ4 ? kQ4Block : kQ8Block, halves = shape.format == kQ4 ? 64 : 32;
            for (size_t at = 0; at < data.size(); at += block)
                for (size_t i = 1; i < halves; i += 2) data[at + i] &= 0xbf;
        } else {
            for (size_t at = shape.format == kBf16 ? 1 : 3; at < data.size(); at += shape.format == kBf16 ? 2 : 4) data[at] &= 0xbf;
        }
        layer.data = data.data();
        std::vector<float> x(shape.rows * shape.k), expected(shape.rows * shape.m), result(expected.size());
        for (auto& value : x) value = float(int64_t(next() % 20001) - 10000) * 1e-3f;
        const int64_t groups = shape.rows * (shape.k / kGroup);
        for (const Kernels* each : {&kScalarKernels, &kernels}) {
            std::vector<int8_t> q(x.size());
            std::vector<float> scale(groups + 1), sum(groups + 1);
            std::vector<int32_t> isum(groups + 1);
            if (is_quantized(layer)) each->quantize(x.data(), int(x.size()), q.data(), scale.data(), sum.data(), isum.data());
            const Activations in = {x.data(), q.data(), scale.data(), sum.data(), isum.data()};
            float* out = each == &kScalarKernels ? expected.data() : result.data();
            each->linear(layer, in, 0, shape.rows, 0, tiles_of(layer), {out, nullptr, false});
        }
        if (std::memcmp(expected.data(), result.data(), expected.size() * sizeof(float)) != 0) return false;
    }
    return true;
}

bool processor_has(const char* name) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (!std::strcmp(name, "avx2")) return avx2;
    if (!std::strcmp(name, "avx512vnni"))
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#endif
    return !std::strcmp(name, "scalar");
}

}  // namespace

const Kernels* active_kernels() { return chosen; }

}  // namespace outlay

using namespace outlay;

// Chooses the best kernels that the processor has, up to `limit` ("avx512vnni", "avx2", "scalar", "none"; null: no limit),
// and returns their name. Portable kernels are slower than other libraries', so they run only when asked for.
OUTLAY_API const char* outlay_choose(const char* limit) {
    std::lock_guard<std::mutex> lock(Pool::get().pass_mutex());
    chosen = nullptr;
    bool allowed = !limit || !*limit;
#if defined(__x86_64__)
    for (const Kernels* kernels : {&kAvx512Kernels, &kAvx2Kernels}) {
        allowed = allowed || !std::strcmp(limit, kernels->name);
        if (allowed && processor_has(kernels->name) && agrees_with_scalar(*kernels)) {
            chosen = kernels;
            return chosen->name;
        }
    }
#endif
    if (limit && !std::strcmp(limit, "scalar")) {
        chosen = &kScalarKernels;
        return chosen->name;
    }
    return "none";
}

OUTLAY_API int32_t outlay_abi() { return 1; }

OUTLAY_API void outlay_set_threads(int32_t n) { Pool::get().set_threads(n); }

OUTLAY_API int32_t outlay_threads() { return Pool::get().threads(); }

// The functions below return 0, or 1 if memory could not be had.
template <class Body>
static int32_t guarded(const Body& body) {
    std::lock_guard<std::mutex> lock(Pool::get().pass_mutex());
    try {
        body();
        return 0;
    } catch (const std::exception&) {
        return 1;
    }
}

// out[rows, m] = x[rows, k] times the layer (+ bias), or added to out.
OUTLAY_API int32_t outlay_linear(const OutlayLinear* layer, const float* x, int64_t rows, const float* bias, int32_t add,
                                 float* out) {
    return guarded([&] {
        static QuantizedRows* memory = new QuantizedRows;
        Activations in = {x, nullptr, nullptr, nullptr, nullptr};
        if (is_quantized(*layer)) {
            in = memory->make(rows, layer->k);
            quantize_rows(x, rows, layer->k, in);
        }
        run_linear(*layer, in, rows, {out, bias, add != 0});
    });
}

OUTLAY_API int32_t outlay_rms_norm(const float* x, const float* weight, int64_t rows, int32_t n, float eps, float* out) {
    return guarded([&] {
        each_row(rows, [&](int64_t row) { active_kernels()->rms_norm(x + row * n, weight, n, eps, out + row * n); });
    });
}

OUTLAY_API int32_t outlay_silu_mul(const float* gate, const float* up, int32_t n, float* out) {
    return guarded([&] { active_kernels()->silu_mul(gate, up, n, out); });
}

OUTLAY_API int32_t outlay_exp(const float* x, int32_t n, float* out) {
    return guarded([&] { active_kernels()->exp(x, n, out); });
}

// q[n, n_heads, head_dim] over a cache [n_kv_heads, capacity, head_dim] with the given strides, to out like q and
// lse[n, n_heads] (or null).
OUTLAY_API int32_t outlay_attend(const float* q, const float* k, const float* v, int64_t head_stride, int64_t slot_stride,
                                 int64_t n, int32_t n_heads, int32_t n_kv_heads, int32_t head_dim, float scale,
                                 const OutlayPlan* plan, float* out, float* lse) {
    return guarded([&] {
        static Scratch* scratch = new Scratch;
        RowSpans spans;
        spans.build(*plan, n);
        const int64_t stride = int64_t(n_heads) * head_dim;
        run_attend({q, stride, k, v, head_stride, slot_stride, n_heads, n_kv_heads, head_dim, scale, out, stride, lse}, *plan,
                   spans, n, *scratch);
    });
}

OUTLAY_API int32_t outlay_pass(const OutlayModel* model, const OutlayPass* pass) {
    return guarded([&] { run_pass(*model, *pass); });
}
