// Entropy coding with whole-number weights; see coder.cpp.
#pragma once
#include <cstdint>

#include "abi.h"

namespace outlay {

// The place of a symbol among 2^24.
struct Interval {
    uint32_t begin, width;
};

struct LogitWeights {
    float max;      // the largest logit
    int64_t total;  // the sum of the weights
    double exact;   // the sum of exp(logit - max) * 2^23
};

// out[n] = floor(exp(logit - max) * 2^23)
LogitWeights weigh_logits(const float* logits, int64_t n, int32_t* out);

// The interval of one symbol of a row of weights [size], of which some are above 0.
Interval interval_of(const int32_t* weights, int64_t size, int64_t symbol);

// Encodes symbols, the last one first, as a stack does; returns the number of words, at most n + 2.
int64_t ans_encode(const Interval* intervals, int64_t n, uint32_t* words);

// Takes a symbol of each row of weights [rows, size] from its stream, one row after the other.
void ans_decode(OutlayAnsStream* streams, const int64_t* stream_of, const int32_t* weights, int64_t rows, int64_t size,
                int64_t* symbols);

}  // namespace outlay
