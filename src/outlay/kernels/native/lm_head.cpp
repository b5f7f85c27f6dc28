// The LM head: logits, and of each row the largest, the log-sum-exp, those of picked tokens, and a token drawn.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "decoder.h"
#include "sample.h"

namespace outlay {
namespace {

constexpr int kBlock = kLogitBlock;  // logits of a row that are computed and reduced together, in the first-level cache
// From this many rows on, logits that are not wanted as a whole are not stored: the few blocks that hold the top logits
// are computed again.
constexpr int64_t kRowsToRecompute = 32, kTopToRecompute = 2;

class LMHead {
  public:
    LMHead(const OutlayModel& model, const OutlayPass& pass, PassMemory& memory)
        : model_(model),
          pass_(pass),
          rows_(pass.n_lm_head_rows),
          vocab_(model.lm_head.m),
          blocks_((vocab_ + kBlock - 1) / kBlock) {
        in_ = make_activations({&model.lm_head, 1, model.lm_head.m, model.lm_head.k, nullptr}, rows_, memory, [&](int64_t row, float* out) {
            const int64_t from = pass.lm_head_rows ? pass.lm_head_rows[row] : row;
            apply_norm(model.final_norm, model, pass.residual + from * model.hidden_size, out);
        });
        stride_ = pass.logits ? vocab_ : padded_stride(vocab_);
        logits_ = pass.logits;
        if (!logits_ && (rows_ < kRowsToRecompute || pass.top_k > kTopToRecompute || pass.n_draws))
            logits_ = memory.logits.get<float>(rows_ * stride_);
        block_max_ = memory.block_max.get<float>(rows_ * blocks_);
        block_sum_exp_ = memory.block_sum_exp.get<float>(rows_ * blocks_);
    }

    void run() {
        Pool::get().run(blocks_, [&](int64_t block) { compute_and_reduce(block); });
        if (!reduced()) return;
        Pool::get().run(pass_.top_k || pass_.lse ? rows_ : 0, [&](int64_t row) {
            if (pass_.top_k) find_top(row);
            if (pass_.lse) pass_.lse[row] = log_sum_exp(row);
        });
        Pool::get().run(pass_.n_draws, [&](int64_t i) { pass_.drawn[i] = draw(pass_.draws[i]); });
    }

  private:
    // Whether anything is made of the blocks' largest logits.
    bool reduced() const { return pass_.top_k || pass_.lse || pass_.n_draws; }

    int width(int64_t block) const { return int(std::min<int64_t>(vocab_ - block * kBlock, kBlock)); }

    // The logits of a block for some rows; those of row 0 would begin at `out`.
    void compute(int64_t block, int64_t row_begin, int64_t row_end, float* out, int64_t stride) const {
        const Kernels& kernels = *active_kernels();
        OutlayLinear part = model_.lm_head;
        part.weights += block * (kBlock / kTile) * tile_bytes(part);
        part.m = width(block);
        run_tiles(kernels, part, in_, row_begin, row_end, 0, tiles_of(part), {out, stride, nullptr, false});
        for (int64_t row = row_begin; row < row_end; ++row) scale(model_.logit_scale, out + row * stride, part.m);
        if (model_.logit_softcap <= 0.0f) return;
        for (int64_t row = row_begin; row < row_end; ++row) kernels.softcap(model_.logit_softcap, part.m, out + row * stride);
    }

    // Logits that are not stored live in a buffer of the thread.
    static float* buffer(int64_t n) {
        return reinterpret_cast<float*>(thread_buffer(ThreadBuffer::kLogits, n * sizeof(float)));
    }

    void compute_and_reduce(int64_t block) const {
        const int64_t stride = logits_ ? stride_ : padded_stride(kBlock);
        float* begin = logits_ ? logits_ + block * kBlock : buffer(rows_ * stride);
        compute(block, 0, rows_, begin, stride);
        for (int64_t row = 0; row < rows_; ++row) {
            pick(block, row, begin + row * stride);
            if (reduced()) reduce(block, row, begin + row * stride);
        }
    }

    // Copies the logits of the row's picked tokens that lie in the block.
    void pick(int64_t block, int64_t row, const float* logits) const {
        const int64_t first = block * kBlock, end = first + width(block);
        for (int64_t i = row * pass_.n_picks; i < (row + 1) * pass_.n_picks; ++i)
            if (first <= pass_.picks[i] && pass_.picks[i] < end) pass_.picked[i] = logits[pass_.picks[i] - first];
    }

    void reduce(int64_t block, int64_t row, const float* logits) const {
        const Kernels& kernels = *active_kernels();
        const float max = block_max_[row * blocks_ + block] = kernels.max(logits, width(block));
        if (pass_.lse) block_sum_exp_[row * blocks_ + block] = kernels.sum_exp(logits, width(block), max);
    }

    // The blocks that can hold one of the row's top logits, in ascending order, so that the lower token stays first among
    // equals.
    std::vector<int64_t> top_blocks(int64_t row) const {
        const float* max = block_max_ + row * blocks_;
        const int64_t count = std::min(pass_.top_k, blocks_);
        std::vector<int64_t> order(blocks_);
        std::iota(order.begin(), order.end(), 0);
        const auto before = [&](int64_t a, int64_t b) { return max[a] > max[b] || (max[a] == max[b] && a < b); };
        std::partial_sort(order.begin(), order.begin() + count, order.end(), before);
        order.resize(count);
        std::sort(order.begin(), order.end());
        return order;
    }

    // Inserts the row's largest logits into its outputs, in descending order.
    void find_top(int64_t row) const {
        int64_t* tokens = pass_.top_tokens + row * pass_.top_k;
        float* values = pass_.top_logits + row * pass_.top_k;
        int64_t found = 0;
        for (int64_t block : top_blocks(row)) {
            const float* logits = read(block, row);
            const int count = width(block);
            for (int j = 0; j < count; ++j) {
                if (found == pass_.top_k && !(logits[j] > values[found - 1])) continue;
                int64_t at = found < pass_.top_k ? found++ : found - 1;
                for (; at > 0 && logits[j] > values[at - 1]; --at) values[at] = values[at - 1], tokens[at] = tokens[at - 1];
                values[at] = logits[j], tokens[at] = block * kBlock + j;
            }
        }
    }

    int64_t draw(const OutlayDraw& asked) const {
        return draw_token({logits_ + asked.row * stride_, vocab_, block_max_ + asked.row * blocks_}, asked);
    }

    // A row's logits of a block: stored, or computed again.
    const float* read(int64_t block, int64_t row) const {
        if (logits_) return logits_ + row * stride_ + block * kBlock;
        float* part = buffer(kBlock);
        compute(block, row, row + 1, part, 0);
        return part;
    }

    float log_sum_exp(int64_t row) const {
        const float* block_max = block_max_ + row * blocks_;
        const float max = active_kernels()->max(block_max, blocks_);
        double total = 0.0;
        for (int64_t block = 0; block < blocks_; ++block)
            total += double(block_sum_exp_[row * blocks_ + block]) * std::exp(double(block_max[block]) - double(max));
        return float(double(max) + std::log(total));
    }

    const OutlayModel& model_;
    const OutlayPass& pass_;
    const int64_t rows_, vocab_, blocks_;
    Activations in_;
    float* logits_;           // [rows, vocab], rows `stride_` apart; null: not stored
    int64_t stride_;
    float* block_max_;        // [rows, blocks]
    float* block_sum_exp_;    // [rows, blocks] of the logits minus their block's maximum
};

}  // namespace

void run_lm_head(const OutlayModel& model, const OutlayPass& pass, PassMemory& memory) { LMHead(model, pass, memory).run(); }

}  // namespace outlay
