// A decoder, all layers in one call.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine.h"

namespace outlay {
namespace {

constexpr int kHeadBlock = 256;  // logits that are computed and looked through together
// From so many rows on, logits that nobody wants all of are not kept: the few blocks that hold the largest are computed
// again.
constexpr int64_t kRowsToForget = 32, kTopToForget = 2;

// Memory of a pass, kept from one to the next. Guarded by the pool's pass mutex.
struct PassMemory {
    Scratch hidden, pairs, fused, normed, qkv, attended, gate_up, change, scores, logits, most, sums, quantized;
    std::vector<RowSpans> spans;
};

PassMemory& pass_memory() {
    static PassMemory* memory = new PassMemory;
    return *memory;
}

// What fills an input of a linear layer: `make(row, target)` writes the row's floats. Quantized formats keep only their
// own form of it, made while the row is in the first-level cache.
template <class Make>
Activations prepare(const OutlayLinear& layer, int64_t rows, PassMemory& memory, const Make& make) {
    const Kernels& kernels = *active_kernels();
    const int k = layer.k;
    float* x = memory.normed.get<float>(rows * k);
    if (!is_quantized(layer)) {
        each_row(rows, [&](int64_t row) { make(row, x + row * k); });
        return {x, nullptr};
    }
    const int64_t groups = k / kGroup;
    QuantizedGroup* q = memory.quantized.get<QuantizedGroup>(rows * groups);
    each_row(rows, [&](int64_t row) {
        make(row, x + row * k);
        kernels.quantize(x + row * k, k, q + row * groups);
    });
    return {x, q};
}

// What the first layer reads [n, hidden], of tokens and vectors.
float* make_inputs(const OutlayModel& model, const OutlayPass& pass, PassMemory& memory) {
    const int64_t hidden = model.hidden;
    float* inputs = memory.hidden.get<float>(pass.n * hidden);
    const auto look_up = [&](int64_t row, float* out) {
        widen_row(model.embed, pass.tokens[row], out);
        if (model.embed_scale != 1.0f)
            for (int64_t i = 0; i < hidden; ++i) out[i] *= model.embed_scale;
    };
    const bool fuses = model.fuse.linear.data != nullptr;
    float* pairs = fuses ? memory.pairs.get<float>(pass.n * 2 * hidden) : nullptr;
    int64_t read = 0;
    for (int64_t row = 0; row < pass.n; ++row) {
        const float* vector = pass.vectors ? pass.vectors[row] : nullptr;
        if (fuses && pass.tokens[row] >= 0) {
            float* pair = pairs + read++ * 2 * hidden;
            if (vector) std::copy(vector, vector + hidden, pair);
            else std::fill(pair, pair + hidden, 0.0f);
            look_up(row, pair + hidden);
        } else if (vector) {
            std::copy(vector, vector + hidden, inputs + row * hidden);
        } else {
            look_up(row, inputs + row * hidden);
        }
    }
    if (!read) return inputs;
    const OutlayLinear& layer = model.fuse.linear;
    float* fused = memory.fused.get<float>(read * hidden);
    run_linear(layer, quantize_rows(layer, pairs, read, memory.quantized), read, {fused, hidden, model.fuse.bias, false});
    for (int64_t row = 0; row < pass.n; ++row) {
        if (pass.tokens[row] < 0) continue;
        std::copy(fused, fused + hidden, inputs + row * hidden);
        fused += hidden;
    }
    return inputs;
}

// Norms and rotates the row's queries and keys, and writes keys and values to their slot.
void place_heads(const OutlayModel& model, const OutlayLayer& layer, const Kernels& kernels, float* row, int64_t position,
                 int64_t slot) {
    const int head_dim = model.head_dim, half = model.rope_dim / 2;
    for (int h = 0; h < model.n_heads + model.n_kv_heads; ++h) {
        float* head = row + h * head_dim;
        const float* norm = h < model.n_heads ? layer.q_norm : layer.k_norm;
        if (norm) kernels.rms_norm(head, norm, head_dim, model.eps, head);
        if (model.cos) kernels.rope(head, model.cos + position * half, model.sin + position * half, half);
    }
    const float* k = row + model.n_heads * head_dim;
    const float* v = k + model.n_kv_heads * head_dim;
    for (int h = 0; h < model.n_kv_heads; ++h) {
        const int64_t at = h * layer.cache.head_stride + slot * layer.cache.slot_stride;
        kernels.store_head(layer.cache, at, k + h * head_dim, v + h * head_dim, head_dim);
    }
}

void apply_norm(const OutlayNorm& norm, const OutlayModel& model, const float* x, float* out) {
    const Kernels& kernels = *active_kernels();
    if (norm.bias) {
        kernels.layer_norm(x, norm.weight, norm.bias, model.hidden, model.eps, out);
    } else if (norm.weight) {
        kernels.rms_norm(x, norm.weight, model.hidden, model.eps, out);
    } else {
        std::copy(x, x + model.hidden, out);
    }
}

// Adds what a part gives to the residual stream, by way of a norm where the model has one there.
void add_change(const OutlayModel& model, const OutlayBiased& part, const OutlayNorm& norm, const Activations& in,
                const OutlayPass& pass, PassMemory& memory) {
    if (!norm.weight) {
        run_linear(part.linear, in, pass.n, {pass.hidden, model.hidden, part.bias, true});
        return;
    }
    const int hidden = model.hidden;
    float* change = memory.change.get<float>(pass.n * hidden);
    run_linear(part.linear, in, pass.n, {change, hidden, part.bias, false});
    each_row(pass.n, [&](int64_t row) {
        apply_norm(norm, model, change + row * hidden, change + row * hidden);
        active_kernels()->add(change + row * hidden, hidden, pass.hidden + row * hidden);
    });
}

void run_layer(const OutlayModel& model, const OutlayLayer& layer, const OutlayPass& pass, PassMemory& memory) {
    const Kernels& kernels = *active_kernels();
    const int64_t n = pass.n;
    const int hidden = model.hidden, wide = model.intermediate, q_size = model.n_heads * model.head_dim;
    const int qkv_size = q_size + 2 * model.n_kv_heads * model.head_dim;

    Activations in = prepare(layer.qkv.linear, n, memory, [&](int64_t row, float* out) {
        apply_norm(layer.attn_norm, model, pass.hidden + row * hidden, out);
    });
    float* qkv = memory.qkv.get<float>(n * qkv_size);
    run_linear(layer.qkv.linear, in, n, {qkv, qkv_size, layer.qkv.bias, false});
    each_row(n, [&](int64_t row) {
        place_heads(model, layer, kernels, qkv + row * qkv_size, pass.positions[row], pass.slots[row]);
    });

    float* attended = memory.attended.get<float>(n * q_size);
    const AttendCall call = {qkv, qkv_size, layer.cache, model.n_heads, model.n_kv_heads, model.head_dim,
                             model.attention_scale, model.attention_softcap, attended, q_size, nullptr};
    run_attend(call, pass.plans[layer.plan], memory.spans[layer.plan], n, memory.scores);
    in = quantize_rows(layer.out.linear, attended, n, memory.quantized);
    add_change(model, layer.out, layer.post_attn_norm, in, pass, memory);

    in = prepare(layer.gate_up.linear, n, memory, [&](int64_t row, float* out) {
        apply_norm(layer.mlp_norm, model, pass.hidden + row * hidden, out);
    });
    const int64_t inner = apart(layer.gate_up.linear.m);
    float* gate_up = memory.gate_up.get<float>(n * inner);
    run_linear(layer.gate_up.linear, in, n, {gate_up, inner, layer.gate_up.bias, false});
    in = prepare(layer.down.linear, n, memory, [&](int64_t row, float* out) {
        const float* gate = gate_up + row * inner;
        kernels.activate(model.activation, gate, model.gated ? gate + wide : nullptr, wide, out);
    });
    add_change(model, layer.down, layer.post_mlp_norm, in, pass, memory);
}

// Puts the `top` largest of a row's logits, in descending order, where the pass wants them. `most` holds the largest of
// each block of kHeadBlock: only blocks that can hold one of them are read, by `read(block)`.
template <class Read>
void find_top(const OutlayPass& pass, int64_t row, int64_t vocab, const float* most, int64_t blocks, const Read& read) {
    int64_t* tokens = pass.top_tokens + row * pass.top;
    float* values = pass.top_logits + row * pass.top;
    int64_t found = 0;
    std::vector<int64_t> order(blocks);
    std::iota(order.begin(), order.end(), 0);
    const int64_t sure = std::min(pass.top, blocks);
    const auto before = [&](int64_t a, int64_t b) { return most[a] > most[b] || (most[a] == most[b] && a < b); };
    std::partial_sort(order.begin(), order.begin() + sure, order.end(), before);
    std::sort(order.begin(), order.begin() + sure);  // in the order of the tokens, so that equals keep theirs
    for (int64_t i = 0; i < sure; ++i) {
        const float* logits = read(order[i]);
        const int64_t first = order[i] * kHeadBlock, count = std::min<int64_t>(vocab - first, kHeadBlock);
        for (int64_t j = 0; j < count; ++j) {
            if (found == pass.top && !(logits[j] > values[found - 1])) continue;
            int64_t at = found < pass.top ? found++ : found - 1;
            for (; at > 0 && logits[j] > values[at - 1]; --at) values[at] = values[at - 1], tokens[at] = tokens[at - 1];
            values[at] = logits[j], tokens[at] = first + j;
        }
    }
}

// The logits, and what is wanted of them: the maxima and sums of each block are found while it is in the first-level cache.
void run_head(const OutlayModel& model, const OutlayPass& pass, PassMemory& memory) {
    const Kernels& kernels = *active_kernels();
    const int64_t rows = pass.n_head_rows, vocab = model.head.m, blocks = (vocab + kHeadBlock - 1) / kHeadBlock;
    const Activations in = prepare(model.head, rows, memory, [&](int64_t row, float* out) {
        const int64_t from = pass.head_rows ? pass.head_rows[row] : row;
        apply_norm(model.final_norm, model, pass.hidden + from * model.hidden, out);
    });
    const bool kept = pass.logits || rows < kRowsToForget || pass.top > kTopToForget;
    const int64_t kept_stride = pass.logits ? vocab : apart(vocab);
    float* logits = pass.logits ? pass.logits : kept ? memory.logits.get<float>(rows * kept_stride) : nullptr;
    float* most = memory.most.get<float>(rows * blocks);
    float* sums = memory.sums.get<float>(rows * blocks);
    // Computes the logits of a block for some rows; the first of row 0's goes to `out`.
    const auto compute = [&](int64_t block, int64_t row_begin, int64_t row_end, float* out, int64_t stride) {
        OutlayLinear part = model.head;
        part.data += block * (kHeadBlock / kTile) * tile_bytes(part);
        part.m = int32_t(std::min<int64_t>(vocab - block * kHeadBlock, kHeadBlock));
        kernels.linear(part, in, row_begin, row_end, 0, tiles_of(part), {out, stride, nullptr, false});
        if (model.logit_softcap <= 0.0f) return part.m;
        for (int64_t row = row_begin; row < row_end; ++row) kernels.softcap(model.logit_softcap, part.m, out + row * stride);
        return part.m;
    };
    const auto forgotten = [](int64_t n) { return reinterpret_cast<float*>(thread_memory(Use::kLogits, n * sizeof(float))); };
    Pool::get().run(blocks, [&](int64_t block) {
        const int64_t first = block * kHeadBlock, stride = kept ? kept_stride : apart(kHeadBlock);
        float* begin = kept ? logits + first : forgotten(rows * stride);
        const int count = compute(block, 0, rows, begin, stride);
        for (int64_t row = 0; row < rows; ++row) {
            const float* part = begin + row * stride;
            for (int64_t i = row * pass.n_picks; i < (row + 1) * pass.n_picks; ++i)
                if (first <= pass.picks[i] && pass.picks[i] < first + count) pass.picked[i] = part[pass.picks[i] - first];
            if (!pass.top && !pass.lse) continue;
            const float largest = most[row * blocks + block] = kernels.most(part, count);
            if (pass.lse) sums[row * blocks + block] = kernels.sum_exp(part, count, largest);
        }
    });
    if (!pass.top && !pass.lse) return;
    Pool::get().run(rows, [&](int64_t row) {
        const float* tops = most + row * blocks;
        if (pass.top) {
            find_top(pass, row, vocab, tops, blocks, [&](int64_t block) -> const float* {
                if (kept) return logits + row * kept_stride + block * kHeadBlock;
                float* part = forgotten(kHeadBlock);
                compute(block, row, row + 1, part, 0);
                return part;
            });
        }
        if (!pass.lse) return;
        const float largest = kernels.most(tops, blocks);
        double total = 0.0;
        for (int64_t block = 0; block < blocks; ++block)
            total += double(sums[row * blocks + block]) * std::exp(double(tops[block]) - double(largest));
        pass.lse[row] = float(double(largest) + std::log(total));
    });
}

}  // namespace

void run_pass(const OutlayModel& model, const OutlayPass& asked) {
    PassMemory& memory = pass_memory();
    OutlayPass pass = asked;
    if (!pass.hidden) pass.hidden = make_inputs(model, pass, memory);
    if (int64_t(memory.spans.size()) < pass.n_plans) memory.spans.resize(pass.n_plans);
    for (int64_t i = 0; i < pass.n_plans; ++i) memory.spans[i].build(pass.plans[i], pass.n);
    for (int64_t i = pass.layer_begin; i < pass.layer_end; ++i) run_layer(model, model.layers[i], pass, memory);
    if (pass.features) {
        each_row(pass.n, [&](int64_t row) {
            float* kept = pass.features + pass.slots[row] * model.hidden;
            apply_norm(model.final_norm, model, pass.hidden + row * model.hidden, kept);
        });
    }
    if (pass.n_head_rows > 0) run_head(model, pass, memory);
}

}  // namespace outlay
