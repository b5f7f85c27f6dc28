// A decoder of the Llama family, all layers in one call.
#include <cstring>

#include "engine.h"

namespace outlay {
namespace {

// Memory of a pass, kept from one to the next. Guarded by the pool's pass mutex.
struct PassMemory {
    Scratch normed, qkv, attended, gate_up, scores, picked;
    QuantizedRows quantized;
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
        return {x, nullptr, nullptr, nullptr, nullptr};
    }
    const Activations to = memory.quantized.make(rows, k);
    const int64_t groups = k / kGroup;
    each_row(rows, [&](int64_t row) {
        make(row, x + row * k);
        kernels.quantize(x + row * k, k, const_cast<int8_t*>(to.q) + row * k, const_cast<float*>(to.scale) + row * groups,
                         const_cast<float*>(to.sum) + row * groups, const_cast<int32_t*>(to.isum) + row * groups);
    });
    return to;
}

// Norms and rotates the row's queries and keys, and writes keys and values to their slot.
void place_heads(const OutlayModel& model, const OutlayLayer& layer, const Kernels& kernels, float* row, int64_t position,
                 int64_t slot) {
    const int head_dim = model.head_dim, half = model.rope_dim / 2;
    const float* cos = model.cos + position * half;
    const float* sin = model.sin + position * half;
    for (int h = 0; h < model.n_heads + model.n_kv_heads; ++h) {
        float* head = row + h * head_dim;
        const float* norm = h < model.n_heads ? layer.q_norm : layer.k_norm;
        if (norm) kernels.rms_norm(head, norm, head_dim, model.eps, head);
        kernels.rope(head, cos, sin, half);
    }
    const float* k = row + model.n_heads * head_dim;
    const float* v = k + model.n_kv_heads * head_dim;
    for (int h = 0; h < model.n_kv_heads; ++h) {
        const int64_t place = h * layer.head_stride + slot * layer.slot_stride;
        std::memcpy(layer.k_cache + place, k + h * head_dim, size_t(head_dim) * 4);
        std::memcpy(layer.v_cache + place, v + h * head_dim, size_t(head_dim) * 4);
    }
}

void run_layer(const OutlayModel& model, const OutlayLayer& layer, const OutlayPass& pass, PassMemory& memory) {
    const Kernels& kernels = *active_kernels();
    const int64_t n = pass.n;
    const int hidden = model.hidden, wide = model.intermediate, q_size = model.n_heads * model.head_dim;
    const int qkv_size = q_size + 2 * model.n_kv_heads * model.head_dim;

    Activations in = prepare(layer.qkv, n, memory, [&](int64_t row, float* out) {
        kernels.rms_norm(pass.hidden + row * hidden, layer.input_norm, hidden, model.eps, out);
    });
    float* qkv = memory.qkv.get<float>(n * qkv_size);
    run_linear(layer.qkv, in, n, {qkv, layer.qkv_bias, false});
    each_row(n, [&](int64_t row) {
        place_heads(model, layer, kernels, qkv + row * qkv_size, pass.positions[row], pass.slots[row]);
    });

    float* attended = memory.attended.get<float>(n * q_size);
    const AttendCall call = {qkv, qkv_size, layer.k_cache, layer.v_cache, layer.head_stride, layer.slot_stride, model.n_heads,
                             model.n_kv_heads, model.head_dim, model.attention_scale, attended, q_size, nullptr};
    run_attend(call, pass.plans[layer.plan], memory.spans[layer.plan], n, memory.scores);
    if (is_quantized(layer.o)) {
        in = memory.quantized.make(n, q_size);
        quantize_rows(attended, n, q_size, in);
    } else {
        in = {attended, nullptr, nullptr, nullptr, nullptr};
    }
    run_linear(layer.o, in, n, {pass.hidden, nullptr, true});

    in = prepare(layer.gate_up, n, memory, [&](int64_t row, float* out) {
        kernels.rms_norm(pass.hidden + row * hidden, layer.post_norm, hidden, model.eps, out);
    });
    float* gate_up = memory.gate_up.get<float>(n * 2 * wide);
    run_linear(layer.gate_up, in, n, {gate_up, nullptr, false});
    in = prepare(layer.down, n, memory, [&](int64_t row, float* out) {
        const float* gate = gate_up + row * 2 * wide;
        kernels.silu_mul(gate, gate + wide, wide, out);
    });
    run_linear(layer.down, in, n, {pass.hidden, nullptr, true});
}

}  // namespace

void run_pass(const OutlayModel& model, const OutlayPass& pass) {
    PassMemory& memory = pass_memory();
    const Kernels& kernels = *active_kernels();
    if (int64_t(memory.spans.size()) < pass.n_plans) memory.spans.resize(pass.n_plans);
    for (int64_t i = 0; i < pass.n_plans; ++i) memory.spans[i].build(pass.plans[i], pass.n);
    for (int64_t i = pass.layer_begin; i < pass.layer_end; ++i) run_layer(model, model.layers[i], pass, memory);
    if (!pass.logits || pass.n_head_rows == 0) return;

    const Activations in = prepare(model.head, pass.n_head_rows, memory, [&](int64_t row, float* out) {
        const int64_t from = pass.head_rows ? pass.head_rows[row] : row;
        kernels.rms_norm(pass.hidden + from * model.hidden, model.final_norm, model.hidden, model.eps, out);
    });
    run_linear(model.head, in, pass.n_head_rows, {pass.logits, nullptr, false});
    if (!pass.best) return;
    Pool::get().run(pass.n_head_rows, [&](int64_t row) {
        pass.best[row] = kernels.argmax(pass.logits + row * model.head.m, model.head.m);
    });
}

}  // namespace outlay
