// The C interface, and the choice of kernels.
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cstring>
#include <exception>
#include <mutex>
#include <vector>

#include "engine.h"
#include "sample.h"

namespace outlay {
namespace {

const Kernels* active = nullptr;
Kernels active_table;

// A linear layer with random weights and inputs.
struct Trial {
    OutlayLinear layer;
    int64_t rows;
    std::vector<uint8_t> weights;
    std::vector<float> x;

    template <class Random>
    Trial(int32_t format, int32_t m, int32_t k, int64_t n, const Random& random)
        : layer{nullptr, format, m, k}, rows(n), x(n * k) {
        weights.resize(tile_bytes(layer) * tiles_of(layer));
        for (auto& byte : weights) byte = uint8_t(random());
        make_scales_finite();
        layer.weights = weights.data();
        for (auto& value : x) value = float(int64_t(random() % 20001) - 10000) * 1e-3f;
    }

    std::vector<float> run(const Kernels& kernels) const {
        std::vector<float> out(rows * layer.m);
        std::vector<QuantizedGroup> q(x.size() / kGroup + 1);
        if (is_quantized(layer)) kernels.quantize(x.data(), int(x.size()), q.data());
        kernels.linear(layer, {x.data(), q.data()}, 0, rows, 0, tiles_of(layer), {out.data(), layer.m, nullptr, false});
        return out;
    }

  private:
    // Clears the top bit of the exponent of every half, bfloat16 or float.
    void make_scales_finite() {
        if (is_quantized(layer)) {
            const size_t block = layer.format == kQ4 ? kQ4Block : kQ8Block, halves = layer.format == kQ4 ? 64 : 32;
            for (size_t at = 0; at < weights.size(); at += block)
                for (size_t i = 1; i < halves; i += 2) weights[at + i] &= 0xbf;
        } else {
            const size_t size = layer.format == kBf16 ? 2 : 4;
            for (size_t at = size - 1; at < weights.size(); at += size) weights[at] &= 0xbf;
        }
    }
};

// Compares the linear layers with the portable kernels: every format, at widths with full and partial blocks.
bool agrees_with_scalar(const Kernels& kernels) {
    uint64_t state = 88172645463325252ull;
    const auto random = [&state] {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        return state;
    };
    for (int64_t rows : {1, 5, 23}) {
        for (int32_t format : {kQ4, kQ8, kBf16, kF32}) {
            const Trial trial(format, 90, format == kQ4 || format == kQ8 ? 96 : 33, rows, random);
            const std::vector<float> expected = trial.run(kScalarKernels), result = trial.run(kernels);
            if (std::memcmp(expected.data(), result.data(), expected.size() * sizeof(float)) != 0) return false;
        }
    }
    return true;
}

#if defined(OUTLAY_AMX)
// Whether the processor has AMX's int8 products and the system lets this process use the registers.
bool has_amx() {
    constexpr unsigned kTileState = 3u << 17, kTileData = 18, kRequestPermission = 0x1023;
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return false;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d >> 24 & 3) != 3) return false;
    unsigned low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & kTileState) == kTileState && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

#if defined(OUTLAY_NEON)
bool has_dot_products() {
#if defined(__linux__)
    return getauxval(AT_HWCAP) & HWCAP_ASIMDDP;
#else
    return true;  // all of Apple's have them
#endif
}
#endif

struct Candidate {
    Kernels kernels;
    bool runs;
    bool named_only;  // runs only where it is asked for by name
};

// The kernels of this build, the fastest first.
std::vector<Candidate> candidates() {
    std::vector<Candidate> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    unsigned a, b, c, d;
    const bool f16c = __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);  // not every compiler's built-in knows it
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && f16c;
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
#if defined(OUTLAY_AMX)
    const auto with_linear = [](const char* name, Linear linear) {
        Kernels kernels = kAvx512Kernels;
        kernels.name = name, kernels.linear = linear;
        return kernels;
    };
    found.push_back({with_linear("amx", kAmxLinear), avx512 && has_amx(), false});
    found.push_back({with_linear("amx-emulated", kEmulatedAmxLinear), avx512, true});
#endif
    found.push_back({kAvx512Kernels, avx512, false});
    found.push_back({kAvx2Kernels, avx2, false});
#elif defined(OUTLAY_NEON)
    found.push_back({kNeonKernels, has_dot_products(), false});
#endif
    // Slower than torch's, so they run only when asked for.
    found.push_back({kScalarKernels, true, true});
    return found;
}

}  // namespace

const Kernels* active_kernels() { return active; }

}  // namespace outlay

using namespace outlay;

// Chooses the best kernels that the processor has, up to `limit` (a name of `candidates`, or "none"; null or empty: no
// limit), and returns their name.
OUTLAY_API const char* outlay_choose(const char* limit) {
    std::lock_guard<std::mutex> lock(Pool::get().pass_mutex());
    active = nullptr;
    bool allowed = !limit || !*limit;
    for (const Candidate& candidate : candidates()) {
        const bool named = limit && !std::strcmp(limit, candidate.kernels.name);
        allowed = allowed || named;
        if (!allowed || (candidate.named_only && !named)) continue;
        if (candidate.runs && agrees_with_scalar(candidate.kernels)) {
            active_table = candidate.kernels;
            active = &active_table;
            return active->name;
        }
    }
    return "none";
}

OUTLAY_API int32_t outlay_abi() { return 9; }

OUTLAY_API void outlay_set_threads(int32_t n) { Pool::get().set_threads(n); }

OUTLAY_API int32_t outlay_threads() { return Pool::get().threads(); }

// The functions below return 0, or 1 where memory ran out.
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
OUTLAY_API int32_t outlay_linear(const OutlayStack* layer, const float* x, int64_t rows, int32_t accumulate, float* out) {
    return guarded([&] {
        static Scratch* memory = new Scratch;
        const Activations in = quantize_rows(*layer, x, rows, *memory);
        run_linear(*layer, in, rows, {out, layer->m, layer->bias, accumulate != 0});
    });
}

OUTLAY_API int32_t outlay_rms_norm(const float* x, const float* weight, int64_t rows, int32_t n, float eps, float* out) {
    return guarded([&] {
        for_each_row(rows, [&](int64_t row) { active_kernels()->rms_norm(x + row * n, weight, n, eps, out + row * n); });
    });
}

OUTLAY_API int32_t outlay_layer_norm(const float* x, const float* weight, const float* bias, int64_t rows, int32_t n, float eps,
                                     float* out) {
    return guarded([&] {
        for_each_row(rows, [&](int64_t row) {
            active_kernels()->layer_norm(x + row * n, weight, bias, n, eps, out + row * n);
        });
    });
}

// act(gate) * up; act(gate) where `up` is null.
OUTLAY_API int32_t outlay_activate(int32_t kind, const float* gate, const float* up, int32_t n, float* out) {
    return guarded([&] { active_kernels()->activate(kind, gate, up, n, out); });
}

OUTLAY_API int32_t outlay_exp(const float* x, int32_t n, float* out) {
    return guarded([&] { active_kernels()->exp(x, n, out); });
}

// The largest logit of each block of a row.
static std::vector<float> block_maxima(const float* logits, int64_t vocab) {
    std::vector<float> maxima;
    for (int64_t at = 0; at < vocab; at += kLogitBlock)
        maxima.push_back(active_kernels()->max(logits + at, std::min<int64_t>(vocab - at, kLogitBlock)));
    return maxima;
}

// tokens[n] = a token for each draw from the rows of logits [rows, vocab].
OUTLAY_API int32_t outlay_draw(const float* logits, int64_t vocab, const OutlayDraw* draws, int64_t n, int64_t* tokens) {
    return guarded([&] {
        Pool::get().run(n, [&](int64_t i) {
            const float* row = logits + draws[i].row * vocab;
            tokens[i] = draw_token({row, vocab, block_maxima(row, vocab).data()}, draws[i]);
        });
    });
}

// probs[rows, vocab] = the probabilities that temperature and truncation make of logits [rows, vocab].
OUTLAY_API int32_t outlay_probs(const float* logits, int64_t rows, int64_t vocab, const OutlaySampling* sampling,
                                float* probs) {
    return guarded([&] {
        Pool::get().run(rows, [&](int64_t i) {
            const float* row = logits + i * vocab;
            write_probs({row, vocab, block_maxima(row, vocab).data()}, *sampling, probs + i * vocab);
        });
    });
}

// out[n, k] = rows `index` [n] of a table, as floats.
OUTLAY_API void outlay_rows(const OutlayTable* table, const int64_t* index, int64_t n, float* out) {
    for (int64_t row = 0; row < n; ++row) dequantize_row(*table, index[row], out + row * table->k);
}

// Writes k and v [n, n_kv_heads, head_dim] to slots [n] of the KV cache.
OUTLAY_API int32_t outlay_store(const OutlayKVCache* kv, const float* k, const float* v, const int64_t* slots, int64_t n,
                                int32_t n_kv_heads, int32_t head_dim) {
    return guarded([&] {
        for (int64_t i = 0; i < n * n_kv_heads; ++i) {
            const int64_t at = i % n_kv_heads * kv->head_stride + slots[i / n_kv_heads] * kv->slot_stride;
            active_kernels()->store_kv(*kv, at, k + i * head_dim, v + i * head_dim, head_dim);
        }
    });
}

// Attention of q[n, n_heads, head_dim] over a KV cache, to out like q and lse[n, n_heads] (or null). `softcap` 0: none.
OUTLAY_API int32_t outlay_attend(const float* q, const OutlayKVCache* kv, int64_t n, int32_t n_heads, int32_t n_kv_heads,
                                 int32_t head_dim, float scale, float softcap, const OutlayAttentionPlan* plan, float* out,
                                 float* lse) {
    return guarded([&] {
        static Scratch* scratch = new Scratch;
        RowSpans spans;
        spans.build(*plan, n);
        const int64_t stride = int64_t(n_heads) * head_dim;
        run_attention({q, stride, *kv, n_heads, n_kv_heads, head_dim, scale, softcap, out, stride, lse}, *plan, spans, n,
                      *scratch);
    });
}

OUTLAY_API int32_t outlay_pass(const OutlayModel* model, const OutlayPass* pass) {
    return guarded([&] { run_pass(*model, *pass); });
}
