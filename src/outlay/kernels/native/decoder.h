// The parts of a decoder's pass that its layers and its LM head share.
#pragma once
#include <vector>

#include "engine.h"

namespace outlay {

// Memory of a pass, reused by the next one. Guarded by the pool's pass mutex.
struct PassMemory {
    Scratch residual, fuse_inputs, fused, floats, quantized, qkv, attention, gate_up, change, scores;
    Scratch logits, block_max, block_sum_exp;
    std::vector<RowSpans> spans;  // of each plan
};

void apply_norm(const OutlayNorm& norm, const OutlayModel& model, const float* x, float* out);
void scale(float factor, float* x, int64_t n);  // x[n] times a factor, in place

// The inputs of a linear layer: `make(row, out)` writes the floats of a row. They are quantized for the parts that need it
// while the row is in the first-level cache.
template <class Make>
Activations make_activations(const OutlayStack& layer, int64_t rows, PassMemory& memory, const Make& make) {
    const Kernels& kernels = *active_kernels();
    const int k = layer.k;
    float* x = memory.floats.get<float>(rows * k);
    if (!is_quantized(layer)) {
        for_each_row(rows, [&](int64_t row) { make(row, x + row * k); });
        return {x, nullptr};
    }
    const int64_t groups = k / kGroup;
    QuantizedGroup* q = memory.quantized.get<QuantizedGroup>(rows * groups);
    for_each_row(rows, [&](int64_t row) {
        make(row, x + row * k);
        kernels.quantize(x + row * k, k, q + row * groups);
    });
    return {x, q};
}

// Computes the logits of the rows that the pass names, and of them the outputs that it wants.
void run_lm_head(const OutlayModel& model, const OutlayPass& pass, PassMemory& memory);

}  // namespace outlay
