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

#include "coder.h"
#include "engine.h"
#include "sample.h"

namespace outlay {
namespace {

const Kernels* active = nullptr;
Kernels active_table;

// What random weights and inputs are made of.
class Random {
  public:
    uint64_t operator()() {
        state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
        return state_;
    }

  private:
    uint64_t state_ = 88172645463325252ull;
};

// A codebook with random entries.
struct TrialBook {
    std::vector<int8_t> entries, residual, planes, residual_planes;
    OutlayCodebook book;

    TrialBook(int32_t v, int32_t bits, int32_t residual_bits, Random& random) {
        fill(entries, planes, v, 1 << bits, 1 << bits, random);
        if (residual_bits) fill(residual, residual_planes, v, 1 << residual_bits, std::max(1 << residual_bits, 64), random);
        const uint16_t step = 0x2480;  // some half
        book = {entries.data(), residual.data(), planes.data(), residual_planes.data(), v, bits, residual_bits, step};
    }

  private:
    static void fill(std::vector<int8_t>& rows, std::vector<int8_t>& planes, int v, int n, int plane, Random& random) {
        rows.resize(n * v), planes.resize(plane * v);
        for (int i = 0; i < n * v; ++i) rows[i] = planes[i % v * plane + i / v] = int8_t(random() % 127) - 63;
    }
};

// A linear layer with random weights and inputs.
struct Trial {
    OutlayLinear layer;
    int64_t rows;
    std::vector<uint8_t> weights;
    std::vector<float> x;

    Trial(int32_t format, const TrialBook* codebook, int64_t n, Random& random) : rows(n) {
        layer = {nullptr, format, 90, format == kBf16 || format == kF32 ? 33 : 96, 256, codebook ? &codebook->book : nullptr};
        weights.resize(tile_bytes(layer) * tiles_of(layer) + 64);
        for (auto& byte : weights) byte = uint8_t(random());
        make_floats_finite();
        if (format >= kSparseQ8) keep_half(random);
        layer.weights = weights.data();
        x.resize(n * layer.k);
        for (auto& value : x) value = float(int64_t(random() % 20001) - 10000) * 1e-3f;
    }

    std::vector<float> run(const Kernels& kernels) const {
        std::vector<float> out(rows * layer.m);
        std::vector<QuantizedGroup> q(x.size() / kGroup + 1);
        if (is_quantized(layer)) kernels.quantize(x.data(), int(x.size()), q.data());
        run_tiles(kernels, layer, {x.data(), q.data()}, 0, rows, 0, tiles_of(layer), {out.data(), layer.m, nullptr, false});
        return out;
    }

  private:
    // Clears the top bit of the exponent of every half, bfloat16 or float. A group of inputs begins with its halves.
    void make_floats_finite() {
        if (layer.format == kCodebook) return;
        if (is_quantized(layer)) {
            const size_t block = tile_bytes(layer) / (layer.k / kGroup), halves = layer.format == kQ4 ? 64 : 32;
            for (size_t at = 0; at + block <= weights.size(); at += block)
                for (size_t i = 1; i < halves; i += 2) weights[at + i] &= 0xbf;
        } else {
            const size_t size = layer.format == kF32 ? 4 : 2;
            for (size_t at = size - 1; at < weights.size(); at += size) weights[at] &= 0xbf;
        }
    }

    // Sets half of the bits of each eight of the masks.
    void keep_half(Random& random) {
        const size_t block = tile_bytes(layer) / (layer.k / kGroup), mask = layer.format == kSparseBf16 ? 0 : 2 * kTile;
        for (size_t at = mask; at + block <= weights.size() + mask; at += block) {
            for (int i = 0; i < kMaskBytes; ++i) {
                uint8_t bits = 0;
                for (int left = 4; left > 0;) {
                    const uint8_t bit = uint8_t(1 << random() % 8);
                    left -= !(bits & bit), bits |= bit;
                }
                weights[at + i] = bits;
            }
        }
    }
};

// Compares the linear layers with the portable kernels: every format, at widths with full and partial blocks, and codebooks
// whose indices have whole bytes, nibbles and other numbers of bits.
bool agrees_with_scalar(const Kernels& kernels) {
    Random random;
    const auto agrees = [&](int32_t format, const TrialBook* codebook, int64_t rows) {
        const Trial trial(format, codebook, rows, random);
        const std::vector<float> expected = trial.run(kScalarKernels), result = trial.run(kernels);
        return std::memcmp(expected.data(), result.data(), expected.size() * sizeof(float)) == 0;
    };
    for (int64_t rows : {1, 5, 23})
        for (int32_t format : {kQ4, kQ8, kBf16, kF32, kSparseQ8, kSparseQ4, kSparseBf16})
            if (!agrees(format, nullptr, rows)) return false;
    for (int32_t v : {2, 4, 8, 16}) {
        for (const auto& [bits, residual_bits] : {std::pair(8, 0), std::pair(8, 4), std::pair(8, 8), std::pair(11, 3)}) {
            const TrialBook book(v, bits, residual_bits, random);
            if (!agrees(kCodebook, &book, 1)) return false;
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
    const bool avx512 = avx2 && __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
    Kernels best = kAvx512Kernels;
    if (__builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2")) best.unpack = kVbmiUnpack;
#if defined(OUTLAY_AMX)
    Kernels amx = best, emulated = kAvx512Kernels;
    amx.name = "amx", amx.linear = kAmxLinear;
    emulated.name = "amx-emulated", emulated.linear = kEmulatedAmxLinear, emulated.unpack = kEmulatedVbmiUnpack;
    found.push_back({amx, avx512 && has_amx(), false});
    found.push_back({emulated, avx512, true});
#endif
    found.push_back({best, avx512, false});
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

OUTLAY_API uint32_t outlay_abi() { return OUTLAY_ABI; }  // setup.py's checksum of abi.h

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

// out[n] = the nearest of points for each of vectors [n, v], as `Kernels::nearest` takes them.
OUTLAY_API int32_t outlay_nearest(const float* vectors, int64_t n, int32_t v, const float* planes, const float* halves,
                                  int32_t count, int64_t* out) {
    return guarded([&] {
        constexpr int64_t kChunk = 1024;
        Pool::get().run((n + kChunk - 1) / kChunk, [&](int64_t chunk) {
            const int64_t first = chunk * kChunk, here = std::min(kChunk, n - first);
            active_kernels()->nearest(vectors + first * v, here, v, planes, halves, count, out + first);
        });
    });
}

// weights[rows, size], of which the first `vocab` of each row are floor(exp(logit - max) * 2^23) and the others 0; with each
// row's sum of them, its largest logit, and its sum before rounding.
OUTLAY_API int32_t outlay_coder_weights(const float* logits, int64_t rows, int64_t vocab, int64_t size, int32_t* weights,
                                        int64_t* totals, float* maxima, double* exact) {
    return guarded([&] {
        for_each_row(rows, [&](int64_t row) {
            int32_t* of_row = weights + row * size;
            const LogitWeights found = weigh_logits(logits + row * vocab, vocab, of_row);
            std::fill(of_row + vocab, of_row + size, 0);
            totals[row] = found.total, maxima[row] = found.max, exact[row] = found.exact;
        });
    });
}

// The interval of a symbol of each row of weights [rows, size]; of width 0 where all of a row's weights are 0.
OUTLAY_API int32_t outlay_intervals(const int32_t* weights, int64_t rows, int64_t size, const int64_t* symbols,
                                    Interval* intervals) {
    return guarded([&] {
        for_each_row(rows, [&](int64_t row) { intervals[row] = interval_of(weights + row * size, size, symbols[row]); });
    });
}

// words = the symbols with these intervals [n], coded; returns how many words there are, at most n + 2.
OUTLAY_API int64_t outlay_ans_encode(const Interval* intervals, int64_t n, uint32_t* words) {
    return ans_encode(intervals, n, words);
}

// symbols[rows] = a symbol for each row of weights [rows, size], from the stream that `stream_of` [rows] names; -1 where all of
// a row's weights are 0.
OUTLAY_API int32_t outlay_ans_decode(OutlayAnsStream* streams, const int64_t* stream_of, const int32_t* weights, int64_t rows,
                                     int64_t size, int64_t* symbols) {
    return guarded([&] { ans_decode(streams, stream_of, weights, rows, size, symbols); });
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
// `weights` [n] (or null): for each row null, or [n_heads, weight_stride], as in a pass.
OUTLAY_API int32_t outlay_attend(const float* q, const OutlayKVCache* kv, int64_t n, int32_t n_heads, int32_t n_kv_heads,
                                 int32_t head_dim, float scale, float softcap, const OutlayAttentionPlan* plan, float* out,
                                 float* lse, float* const* weights, int64_t weight_stride) {
    return guarded([&] {
        static Scratch* scratch = new Scratch;
        RowSpans spans;
        spans.build(*plan, n);
        const int64_t stride = int64_t(n_heads) * head_dim;
        run_attention({q, stride, *kv, n_heads, n_kv_heads, head_dim, scale, softcap, out, stride, lse, weights, weight_stride},
                      *plan, spans, n, *scratch);
    });
}

OUTLAY_API int32_t outlay_pass(const OutlayModel* model, const OutlayPass* pass) {
    return guarded([&] { run_pass(*model, *pass); });
}
