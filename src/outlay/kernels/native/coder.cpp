// Entropy coding with whole-number weights, which no order of their sums can change: the weights of logits, the interval of
// each symbol, and an asymmetric numeral system (rANS) over them.
//
// A row of weights w[K] becomes intervals of 2^24: symbol k begins at floor(C(k) * (2^24 - K) / C(K)) + k, where C(k) is the
// sum of those before it. So each symbol has a place, also one of weight 0. The states, the words and the intervals are those
// of `constriction` (Bamler): AnsCoder with Categorical(weights, perfect=False).
#include "coder.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "engine.h"

namespace outlay {
namespace {

constexpr int kPrecision = 24;
constexpr int kBlock = 256;  // weights whose sum is kept for the search
constexpr uint64_t kLeastState = uint64_t(1) << 32;

int64_t sum(const int32_t* weights, int64_t n) {
    int64_t total = 0;
    for (int64_t i = 0; i < n; ++i) total += weights[i];
    return total;
}

// Where symbols begin, in 2^24ths: products and quotients of doubles, rounded as IEEE 754 says.
struct Intervals {
    double scale;
    int64_t size, total;
    Intervals(int64_t total, int64_t size)
        : scale(double((int64_t(1) << kPrecision) - size) / double(total)), size(size), total(total) {}
    // Of the symbol `k`, whose predecessors' weights have this sum.
    uint32_t begin(int64_t k, int64_t before) const {
        return k == size ? uint32_t(1) << kPrecision : uint32_t(double(before) * scale) + uint32_t(k);
    }
};

// A row's symbol whose interval holds `slot`, with the interval.
Interval find(const int32_t* weights, const int64_t* block_sums, const Intervals& intervals, uint32_t slot, int64_t* symbol) {
    int64_t k = 0, before = 0;
    for (int64_t block = 0; k + kBlock <= intervals.size; ++block) {
        const int64_t after = before + block_sums[block];
        if (intervals.begin(k + kBlock, after) > slot) break;
        before = after, k += kBlock;
    }
    uint32_t begin = intervals.begin(k, before);
    for (;; ++k) {
        before += weights[k];
        const uint32_t end = intervals.begin(k + 1, before);
        if (end > slot) {
            *symbol = k;
            return {begin, end - begin};
        }
        begin = end;
    }
}

}  // namespace

LogitWeights weigh_logits(const float* logits, int64_t n, int32_t* out) {
    const Kernels& kernels = *active_kernels();
    LogitWeights found = {kernels.max(logits, n), 0, 0.0};
    float differences[kBlock], exps[kBlock];
    for (int64_t at = 0; at < n; at += kBlock) {
        const int count = int(std::min<int64_t>(kBlock, n - at));
        for (int i = 0; i < count; ++i) differences[i] = logits[at + i] - found.max;
        kernels.exp(differences, count, exps);
        double exact = 0.0;
        int64_t total = 0;
        for (int i = 0; i < count; ++i) {
            const float weight = exps[i] * 0x1p23f;
            out[at + i] = int32_t(weight);
            total += out[at + i];
            exact += double(weight);
        }
        found.total += total, found.exact += exact;
    }
    return found;
}

Interval interval_of(const int32_t* weights, int64_t size, int64_t symbol) {
    const int64_t before = sum(weights, symbol), total = before + sum(weights + symbol, size - symbol);
    if (total <= 0) return {0, 0};
    const Intervals intervals(total, size);
    const uint32_t begin = intervals.begin(symbol, before);
    return {begin, intervals.begin(symbol + 1, before + weights[symbol]) - begin};
}

int64_t ans_encode(const Interval* intervals, int64_t n, uint32_t* words) {
    uint64_t state = 0;
    int64_t count = 0;
    for (int64_t i = n - 1; i >= 0; --i) {
        const auto [begin, width] = intervals[i];
        if (state >> (64 - kPrecision) >= width) words[count++] = uint32_t(state), state >>= 32;
        state = (state / width << kPrecision) | (begin + state % width);
    }
    for (; state; state >>= 32) words[count++] = uint32_t(state);
    return count;
}

void ans_decode(OutlayAnsStream* streams, const int64_t* stream_of, const int32_t* weights, int64_t rows, int64_t size,
                int64_t* symbols) {
    const int64_t blocks = size / kBlock;
    static std::vector<int64_t> block_sums, totals;  // guarded by the pool's pass mutex
    block_sums.resize(rows * blocks + 1), totals.resize(rows);
    for_each_row(rows, [&](int64_t row) {
        const int32_t* of_row = weights + row * size;
        int64_t total = 0;
        for (int64_t block = 0; block < blocks; ++block)
            total += block_sums[row * blocks + block] = sum(of_row + block * kBlock, kBlock);
        totals[row] = total + sum(of_row + blocks * kBlock, size - blocks * kBlock);
    });
    for (int64_t row = 0; row < rows; ++row) {
        if (totals[row] <= 0) {
            symbols[row] = -1;
            continue;
        }
        OutlayAnsStream& stream = streams[stream_of[row]];
        const uint32_t slot = uint32_t(stream.state) & ((1u << kPrecision) - 1);
        const Intervals intervals(totals[row], size);
        const Interval at = find(weights + row * size, &block_sums[row * blocks], intervals, slot, symbols + row);
        stream.state = (stream.state >> kPrecision) * at.width + (slot - at.begin);
        if (stream.state < kLeastState && stream.left > 0) stream.state = stream.state << 32 | stream.words[--stream.left];
    }
}

}  // namespace outlay
