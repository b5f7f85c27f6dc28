// A decoder, all layers in one call.
#include "decoder.h"

#include <algorithm>

namespace outlay {

void apply_norm(const OutlayNorm& norm, const OutlayModel& model, const float* x, float* out) {
    const Kernels& kernels = *active_kernels();
    if (norm.bias) {
        kernels.layer_norm(x, norm.weight, norm.bias, model.hidden_size, model.eps, out);
    } else if (norm.weight) {
        kernels.rms_norm(x, norm.weight, model.hidden_size, model.eps, out);
    } else {
        std::copy(x, x + model.hidden_size, out);
    }
}

void scale(float factor, float* x, int64_t n) {
    if (factor == 1.0f) return;
    for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

namespace {

PassMemory& pass_memory() {
    static PassMemory* memory = new PassMemory;
    return *memory;
}

void embed_token(const OutlayModel& model, int64_t token, float* out) {
    dequantize_row(model.embed, token, out);
    scale(model.embed_scale, out, model.hidden_size);
}

// The first layer's input [n, hidden_size]: a row's embedding is given, or its token's.
float* embed_rows(const OutlayModel& model, const OutlayPass& pass, PassMemory& memory) {
    const int64_t hidden = model.hidden_size;
    float* rows = memory.residual.get<float>(pass.n * hidden);
    for (int64_t row = 0; row < pass.n; ++row) {
        const float* given = pass.inputs_embeds ? pass.inputs_embeds[row] : nullptr;
        if (given) {
            std::copy(given, given + hidden, rows + row * hidden);
        } else {
            embed_token(model, pass.tokens[row], rows + row * hidden);
        }
    }
    return rows;
}

// The same for a draft head: a row with a token is the fuse layer of the given embedding (or zeros) beside the token's.
float* fuse_rows(const OutlayModel& model, const OutlayPass& pass, PassMemory& memory) {
    const int64_t hidden = model.hidden_size;
    float* rows = memory.residual.get<float>(pass.n * hidden);
    float* inputs = memory.fuse_inputs.get<float>(pass.n * 2 * hidden);
    int64_t n = 0;
    for (int64_t row = 0; row < pass.n; ++row) {
        const float* given = pass.inputs_embeds ? pass.inputs_embeds[row] : nullptr;
        float* to = pass.tokens[row] < 0 ? rows + row * hidden : inputs + n++ * 2 * hidden;
        if (given) {
            std::copy(given, given + hidden, to);
        } else {
            std::fill(to, to + hidden, 0.0f);
        }
        if (pass.tokens[row] >= 0) embed_token(model, pass.tokens[row], to + hidden);
    }
    if (!n) return rows;

    float* fused = memory.fused.get<float>(n * hidden);
    run_linear(model.fuse, quantize_rows(model.fuse, inputs, n, memory.quantized), n, {fused, hidden, model.fuse.bias, false});
    for (int64_t row = 0; row < pass.n; ++row) {
        if (pass.tokens[row] < 0) continue;
        std::copy(fused, fused + hidden, rows + row * hidden);
        fused += hidden;
    }
    return rows;
}

// Norms and rotates a row's queries and keys, and stores its keys and values in their slot of the KV cache.
void rope_and_store_kv(const OutlayModel& model, const OutlayLayer& layer, float* row, int64_t position, int64_t slot) {
    const Kernels& kernels = *active_kernels();
    const int head_dim = model.head_dim, half = model.rope_dim / 2, q_size = model.n_heads * head_dim;
    const bool wide = model.wide_qk_norms;
    if (wide) {
        kernels.rms_norm(row, layer.q_norm, q_size, model.eps, row);
        kernels.rms_norm(row + q_size, layer.k_norm, model.n_kv_heads * head_dim, model.eps, row + q_size);
    }
    for (int h = 0; h < model.n_heads + model.n_kv_heads; ++h) {
        float* head = row + h * head_dim;
        const float* norm = h < model.n_heads ? layer.q_norm : layer.k_norm;
        if (norm && !wide) kernels.rms_norm(head, norm, head_dim, model.eps, head);
        if (layer.cos) kernels.rope(head, layer.cos + position * half, layer.sin + position * half, half);
    }
    const float* k = row + q_size;
    const float* v = k + model.n_kv_heads * head_dim;
    for (int h = 0; h < model.n_kv_heads; ++h) {
        const int64_t at = h * layer.kv.head_stride + slot * layer.kv.slot_stride;
        kernels.store_kv(layer.kv, at, k + h * head_dim, v + h * head_dim, head_dim);
    }
}

// Adds a linear layer's output to the residual stream, through a norm and times a factor where the model has them there.
void add_to_residual(const OutlayModel& model, const OutlayStack& layer, const OutlayNorm& norm, const Activations& in,
                     const OutlayPass& pass, PassMemory& memory) {
    const int hidden = model.hidden_size;
    if (!norm.weight && model.residual_scale == 1.0f) {
        run_linear(layer, in, pass.n, {pass.residual, hidden, layer.bias, true});
        return;
    }
    float* change = memory.change.get<float>(pass.n * hidden);
    run_linear(layer, in, pass.n, {change, hidden, layer.bias, false});
    for_each_row(pass.n, [&](int64_t row) {
        float* of_row = change + row * hidden;
        if (norm.weight) apply_norm(norm, model, of_row, of_row);
        scale(model.residual_scale, of_row, hidden);
        active_kernels()->add(of_row, hidden, pass.residual + row * hidden);
    });
}

Activations normed_residual(const OutlayModel& model, const OutlayNorm& norm, const OutlayStack& reader,
                            const OutlayPass& pass, PassMemory& memory) {
    return make_activations(reader, pass.n, memory, [&](int64_t row, float* out) {
        apply_norm(norm, model, pass.residual + row * model.hidden_size, out);
    });
}

void run_attention_block(const OutlayModel& model, int64_t index, const OutlayPass& pass, PassMemory& memory) {
    const OutlayLayer& layer = model.layers[index];
    const int q_size = model.n_heads * model.head_dim, qkv_size = q_size + 2 * model.n_kv_heads * model.head_dim;
    const Activations in = normed_residual(model, layer.attn_norm, layer.qkv, pass, memory);
    float* qkv = memory.qkv.get<float>(pass.n * qkv_size);
    run_linear(layer.qkv, in, pass.n, {qkv, qkv_size, layer.qkv.bias, false});
    for_each_row(pass.n, [&](int64_t row) {
        rope_and_store_kv(model, layer, qkv + row * qkv_size, pass.positions[row], pass.slots[row]);
    });

    float* attention = memory.attention.get<float>(pass.n * q_size);
    const AttentionCall call = {qkv, qkv_size, layer.kv, model.n_heads, model.n_kv_heads, model.head_dim,
                                model.attention_scale, model.attention_softcap, attention, q_size, nullptr,
                                pass.weights, pass.weight_stride, index * model.n_heads * pass.weight_stride};
    run_attention(call, pass.plans[layer.plan], memory.spans[layer.plan], pass.n, memory.scores);
    const Activations attended = quantize_rows(layer.out, attention, pass.n, memory.quantized);
    add_to_residual(model, layer.out, layer.post_attn_norm, attended, pass, memory);
}

void run_mlp_block(const OutlayModel& model, const OutlayLayer& layer, const OutlayPass& pass, PassMemory& memory) {
    const Kernels& kernels = *active_kernels();
    const int wide = model.intermediate_size;
    const Activations in = normed_residual(model, layer.mlp_norm, layer.gate_up, pass, memory);
    const int64_t stride = padded_stride(layer.gate_up.m);
    float* gate_up = memory.gate_up.get<float>(pass.n * stride);
    run_linear(layer.gate_up, in, pass.n, {gate_up, stride, layer.gate_up.bias, false});

    const Activations activated = make_activations(layer.down, pass.n, memory, [&](int64_t row, float* out) {
        const float* gate = gate_up + row * stride;
        kernels.activate(model.activation, gate, model.gated ? gate + wide : nullptr, wide, out);
    });
    add_to_residual(model, layer.down, layer.post_mlp_norm, activated, pass, memory);
}

// Writes the LM head's input of each row to the row's slot.
void store_hidden_states(const OutlayModel& model, const OutlayPass& pass) {
    for_each_row(pass.n, [&](int64_t row) {
        float* out = pass.hidden_states + pass.slots[row] * model.hidden_size;
        apply_norm(model.final_norm, model, pass.residual + row * model.hidden_size, out);
    });
}

}  // namespace

void run_pass(const OutlayModel& model, const OutlayPass& asked) {
    PassMemory& memory = pass_memory();
    OutlayPass pass = asked;
    const auto first_inputs = model.fuse.n_parts ? fuse_rows : embed_rows;
    if (!pass.residual) pass.residual = first_inputs(model, pass, memory);
    if (int64_t(memory.spans.size()) < pass.n_plans) memory.spans.resize(pass.n_plans);
    for (int64_t i = 0; i < pass.n_plans; ++i) memory.spans[i].build(pass.plans[i], pass.n);

    for (int64_t i = pass.layer_begin; i < pass.layer_end; ++i) {
        run_attention_block(model, i, pass, memory);
        run_mlp_block(model, model.layers[i], pass, memory);
    }
    if (pass.hidden_states) store_hidden_states(model, pass);
    if (pass.n_lm_head_rows > 0) run_lm_head(model, pass, memory);
}

}  // namespace outlay
