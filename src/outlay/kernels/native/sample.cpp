// Sampling in float32 with sums in float64. Every sum has one order, so the same logits give the same token everywhere.
#include "sample.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "engine.h"

namespace outlay {
namespace {

constexpr float kLeastStep = 0.25f;  // a factor on the weight from which tokens are listed, until they are probable enough
constexpr float kSmallestWeight = std::numeric_limits<float>::min();  // no weight but 0 is below
constexpr float kSlack = 1.0f - 1e-6f;    // the largest weight of a block is known up to rounding
constexpr double kSumSlack = 1.0 + 1e-5;  // float32 sums of the same weights in another order differ by less

// Unsigned integers in the order of the floats.
uint32_t key_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

float value_of(uint32_t key) {
    const uint32_t bits = key & 0x80000000u ? key & 0x7fffffffu : ~key;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Where values in descending order are cut: at `value`, with the total of those above it.
struct Cut {
    float value;
    double above;
};

// Finds where the total of `amount(i)` (above 0) reaches `enough`, from the largest of n > 0 values down, by the digits of
// their keys.
template <class Amount>
Cut find_cut(const float* values, int64_t n, double enough, const Amount& amount) {
    double bins[2048];
    uint32_t prefix = 0, known = 0;
    double above = 0.0;
    for (int shift : {21, 10, 0}) {
        const int size = shift ? 2048 : 1024;
        std::fill(bins, bins + size, 0.0);
        for (int64_t i = 0; i < n; ++i) {
            const uint32_t key = key_of(values[i]);
            if ((key & known) == prefix) bins[key >> shift & uint32_t(size - 1)] += amount(i);
        }
        int lowest = 0, bin = size - 1;
        while (bins[lowest] == 0.0) ++lowest;
        for (; bin > lowest && above + bins[bin] < enough; --bin) above += bins[bin];
        prefix |= uint32_t(bin) << shift;
        known |= uint32_t(size - 1) << shift;
    }
    return {value_of(prefix), above};
}

// A row's memory, reused by the next one of the thread.
struct Memory {
    std::vector<float> weights, listed, block_weights;
    std::vector<double> block_totals;
    std::vector<int32_t> tokens;
};

Memory& memory_of_thread() {
    static thread_local Memory memory;
    return memory;
}

// Weights in proportion to the probabilities that temperature and truncation leave; the most probable token's is 1. They
// stand for the whole vocabulary, or, where truncation left fewer, in a list in the order of the tokens.
class Weights {
  public:
    Weights(const LogitRow& row, const OutlaySampling& sampling)
        : row_(row),
          sampling_(sampling),
          memory_(memory_of_thread()),
          blocks_((row.vocab + kLogitBlock - 1) / kLogitBlock),
          max_(active_kernels()->max(row.block_max, blocks_)) {
        if (sampling.top_k > 0 && sampling.top_k < row.vocab) {
            keep_top_k();
        } else {
            weigh_all();
        }
        if (sampling.top_p < 1.0) keep_nucleus();
        if (sampling.min_p > 0.0) keep_min_p();
    }

    // Inverts the cumulative sum of the weights at `uniform` in [0, 1).
    int64_t draw(double uniform) const {
        const double at = uniform * total_;
        if (listed_) {
            const int64_t place = invert(memory_.listed.data(), count_, 0.0, at);
            return count_ ? memory_.tokens[place] : 0;
        }
        double edge = 0.0;
        int64_t last = 0;  // the last block that has any weight
        for (int64_t block = 0; block < blocks_; ++block) {
            if (memory_.block_totals[block] <= 0.0) continue;
            if (at < edge + memory_.block_totals[block])
                return block * kLogitBlock + invert(block_weights(block), width(block), edge, at);
            edge += memory_.block_totals[block];
            last = block;
        }
        return last * kLogitBlock + invert(block_weights(last), width(last), 0.0, total_);
    }

    void write(float* probs) const {
        const float scale = total_ > 0.0 ? float(1.0 / total_) : 0.0f;
        if (!listed_) {
            for (int64_t i = 0; i < row_.vocab; ++i) probs[i] = memory_.weights[i] * scale;
            return;
        }
        std::fill(probs, probs + row_.vocab, 0.0f);
        for (int64_t i = 0; i < count_; ++i) probs[memory_.tokens[i]] = memory_.listed[i] * scale;
    }

  private:
    int64_t width(int64_t block) const { return std::min<int64_t>(row_.vocab - block * kLogitBlock, kLogitBlock); }
    const float* block_weights(int64_t block) const { return memory_.weights.data() + block * kLogitBlock; }

    // The first place whose cumulative sum, from `edge` on, is above `at`; else the last one with a weight.
    static int64_t invert(const float* weights, int64_t n, double edge, double at) {
        int64_t last = 0;
        for (int64_t i = 0; i < n; ++i) {
            if (weights[i] == 0.0f) continue;
            edge += double(weights[i]);
            last = i;
            if (at < edge) break;
        }
        return last;
    }

    void weigh_all() {
        const Kernels& kernels = *active_kernels();
        memory_.weights.resize(row_.vocab);
        memory_.block_totals.resize(blocks_);
        total_ = 0.0;
        for (int64_t block = 0; block < blocks_; ++block) {
            const int64_t begin = block * kLogitBlock;
            memory_.block_totals[block] = kernels.weigh(row_.logits + begin, int(width(block)), max_, sampling_.temperature,
                                                        memory_.weights.data() + begin);
            total_ += memory_.block_totals[block];
        }
    }

    // Keeps the k largest logits, and what equals the least of them.
    void keep_top_k() {
        // As many blocks have a logit as large as the k-th largest of the blocks' largest.
        float bound = -std::numeric_limits<float>::infinity();
        if (sampling_.top_k <= blocks_) {
            std::vector<float> largest(row_.block_max, row_.block_max + blocks_);
            std::nth_element(largest.begin(), largest.begin() + sampling_.top_k - 1, largest.end(), std::greater<float>());
            bound = largest[sampling_.top_k - 1];
        }
        list(row_.logits, row_.block_max, bound, bound);
        if (count_ == 0) return;
        const float least = find_cut(memory_.listed.data(), count_, sampling_.top_k, [](int64_t) { return 1.0; }).value;
        filter([&](float logit) { return logit >= least; });
        active_kernels()->weigh(memory_.listed.data(), int(count_), max_, sampling_.temperature, memory_.listed.data());
        filter([](float weight) { return weight > 0.0f; });
        add_up();
    }

    // Keeps the most probable tokens, the lower one first among equals, until they have the probability `top_p`.
    void keep_nucleus() {
        const double enough = sampling_.top_p * total_;
        if (!listed_) list_probability(enough * kSumSlack);
        if (count_ == 0) return;
        const float* weights = memory_.listed.data();
        const Cut cut = find_cut(weights, count_, enough, [=](int64_t i) { return double(weights[i]); });
        double before = cut.above;
        filter([&](float weight) {
            if (weight != cut.value) return weight > cut.value;
            const bool kept = before < enough;
            before += double(weight);
            return kept;
        });
        add_up();
    }

    // Lists tokens from some weight on that have at least this much weight together, or all that have any.
    void list_probability(double enough) {
        weigh_blocks();
        float least = kLeastStep;
        while (least > kSmallestWeight && weight_from(least) < enough) least *= kLeastStep;
        least = std::max(least, kSmallestWeight);
        list(memory_.weights.data(), memory_.block_weights.data(), least, least * kSlack);
    }

    // The weight of all tokens that have at least `least`.
    double weight_from(float least) const {
        double total = 0.0;
        for (int64_t block = 0; block < blocks_; ++block)
            if (memory_.block_weights[block] >= least)
                total += double(active_kernels()->sum_from(block_weights(block), width(block), least));
        return total;
    }

    void keep_min_p() {
        const double least = sampling_.min_p;
        if (!listed_) {
            weigh_blocks();
            const float rounded = std::max(float(least) * kSlack, kSmallestWeight);
            list(memory_.weights.data(), memory_.block_weights.data(), rounded, rounded * kSlack);
        }
        filter([=](float weight) { return double(weight) >= least; });
        add_up();
    }

    // The weight of each block's largest logit.
    void weigh_blocks() {
        memory_.block_weights.resize(blocks_);
        active_kernels()->weigh(row_.block_max, int(blocks_), max_, sampling_.temperature, memory_.block_weights.data());
    }

    // Lists the tokens whose value is at least `least`, which only blocks have whose own is at least `block_least`.
    void list(const float* values, const float* block_values, float least, float block_least) {
        memory_.tokens.resize(row_.vocab + 1);
        memory_.listed.resize(row_.vocab + 1);
        int32_t* tokens = memory_.tokens.data();
        float* listed = memory_.listed.data();
        listed_ = true, count_ = 0;
        for (int64_t block = 0; block < blocks_; ++block) {
            if (!(block_values[block] >= block_least)) continue;
            const int64_t begin = block * kLogitBlock, end = begin + width(block);
            for (int64_t i = begin; i < end; ++i) {
                tokens[count_] = int32_t(i), listed[count_] = values[i];
                count_ += values[i] >= least;
            }
        }
    }

    template <class Keep>
    void filter(const Keep& keep) {
        int64_t kept = 0;
        for (int64_t i = 0; i < count_; ++i) {
            const float value = memory_.listed[i];
            if (!keep(value)) continue;
            memory_.tokens[kept] = memory_.tokens[i], memory_.listed[kept++] = value;
        }
        count_ = kept;
    }

    void add_up() {
        total_ = 0.0;
        for (int64_t i = 0; i < count_; ++i) total_ += double(memory_.listed[i]);
    }

    const LogitRow& row_;
    const OutlaySampling& sampling_;
    Memory& memory_;
    const int64_t blocks_;
    const float max_;
    bool listed_ = false;
    int64_t count_ = 0;  // of the list
    double total_ = 0.0;
};

}  // namespace

int64_t draw_token(const LogitRow& row, const OutlayDraw& draw) { return Weights(row, draw.sampling).draw(draw.uniform); }

void write_probs(const LogitRow& row, const OutlaySampling& sampling, float* probs) { Weights(row, sampling).write(probs); }

}  // namespace outlay
