// Sampling: from a row's logits to the probabilities after temperature and truncation, and to a token drawn from them.
#pragma once
#include <cstdint>

#include "abi.h"

namespace outlay {

// The logits of a row whose largest is known for each block.
constexpr int kLogitBlock = 256;

struct LogitRow {
    const float* logits;  // [vocab]
    int64_t vocab;
    const float* block_max;  // [blocks]
};

int64_t draw_token(const LogitRow& row, const OutlayDraw& draw);
void write_probs(const LogitRow& row, const OutlaySampling& sampling, float* probs);

}  // namespace outlay
