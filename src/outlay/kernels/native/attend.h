// Attention of a block of rows over the spans of the KV cache that they attend to, in four phases: score the keys, softmax,
// add the weighted values, normalize.
//
// A row's result depends only on the sequence of the keys that it sees, not on how they are cut into spans, on masked
// keys between them or on other rows: the largest score is found first, then exponentials are summed as integers and values
// are accumulated key by key, in order. So decoding token by token and verifying a whole tree give the same bits.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "kv.h"
#include "ops.h"

namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr int kQueriesAtOnce = 4;  // queries that pass over a tile of keys together

// Adds the products of sixteen dimensions from `d` on (eight where `Low`) to the partial sums of Q queries and some keys.
template <int Q, bool Low>
inline void add_products(const float* const* q, const float* const* key, int d, F16 (*dot)[kKeysAtOnce]) {
    F16 part[kKeysAtOnce];
    for (int k = 0; k < kKeysAtOnce; ++k) part[k] = Low ? load16_low(key[k] + d) : load16(key[k] + d);
    for (int i = 0; i < Q; ++i) {
        const F16 x = Low ? load16_low(q[i] + d) : load16(q[i] + d);
        for (int k = 0; k < kKeysAtOnce; ++k) dot[i][k] = fmadd(x, part[k], dot[i][k]);
    }
}

// scores[i][j] = scale * q[i] . keys[j]; writes up to a multiple of kKeysSummed. A product has sixteen partial sums, one for
// each dimension modulo 16, which are added in one order, whatever it is computed with.
template <int Q>
OUTLAY_NOINLINE void score_keys(const float* const* q, const float* const* keys, int count, int head_dim, float scale,
                                float* const* scores) {
    for (int j = 0; j < count; j += kKeysSummed) {
        Folded folded[Q][kKeysSummed];
        for (int first = 0; first < kKeysSummed; first += kKeysAtOnce) {
            const float* key[kKeysAtOnce];
            for (int k = 0; k < kKeysAtOnce; ++k) key[k] = keys[std::min(j + first + k, count - 1)];
            F16 dot[Q][kKeysAtOnce];
            for (int i = 0; i < Q; ++i)
                for (int k = 0; k < kKeysAtOnce; ++k) dot[i][k] = splat<F16>(0.0f);
            int d = 0;
            for (; d + 16 <= head_dim; d += 16) add_products<Q, false>(q, key, d, dot);
            if (d < head_dim) add_products<Q, true>(q, key, d, dot);
            for (int i = 0; i < Q; ++i)
                for (int k = 0; k < kKeysAtOnce; ++k) folded[i][first + k] = fold(dot[i][k]);
        }
        store_scores<Q>(folded, scale, scores, j);
    }
}

// out[i][0 : 16 * Width] += weights[i][j] * values[j], key by key.
template <int Q, int Width>
OUTLAY_NOINLINE void add_strip(const float* const* weights, const float* const* values, int count, int offset,
                               float* const* out) {
    F16 total[Q][Width];
    for (int i = 0; i < Q; ++i)
        for (int w = 0; w < Width; ++w) total[i][w] = load16(out[i] + offset + 16 * w);
    for (int j = 0; j < count; ++j) {
        F16 value[Width];
        for (int w = 0; w < Width; ++w) value[w] = load16(values[j] + offset + 16 * w);
        for (int i = 0; i < Q; ++i) {
            const F16 weight = splat<F16>(weights[i][j]);
            for (int w = 0; w < Width; ++w) total[i][w] = fmadd(weight, value[w], total[i][w]);
        }
    }
    for (int i = 0; i < Q; ++i)
        for (int w = 0; w < Width; ++w) store16(out[i] + offset + 16 * w, total[i][w]);
}

// out[i] += weights[i][j] * values[j], key by key.
template <int Q>
inline void add_values(const float* const* weights, const float* const* values, int count, int head_dim, float* const* out) {
    int offset = 0;
    for (; offset + 16 * kValueStrip <= head_dim; offset += 16 * kValueStrip)
        add_strip<Q, kValueStrip>(weights, values, count, offset, out);
    for (; offset + 16 <= head_dim; offset += 16) add_strip<Q, 1>(weights, values, count, offset, out);
    for (; offset < head_dim; offset += 8)
        for (int i = 0; i < Q; ++i) {
            F16 total = load16_low(out[i] + offset);
            for (int j = 0; j < count; ++j) total = fmadd(splat<F16>(weights[i][j]), load16_low(values[j] + offset), total);
            store16_low(out[i] + offset, total);
        }
}

// The same for one query with a mask. Masked values are not read, since they may hold anything.
inline void add_visible_values(const float* weights, const uint8_t* mask, const float* const* values, int count, int head_dim,
                               float* out) {
    const float* visible[outlay::kKeyTile];
    float weight[outlay::kKeyTile];
    int n = 0;
    for (int j = 0; j < count; ++j)
        if (mask[j]) visible[n] = values[j], weight[n++] = weights[j];
    const float* first = weight;
    add_values<1>(&first, visible, n, head_dim, &out);
}

// Collects the queries that a tile serves, and calls body(count, from, to) for kQueriesAtOnce of them at a time.
template <class Body>
class QueryBatch {
  public:
    explicit QueryBatch(Body body) : body_(body) {}
    ~QueryBatch() { flush(); }
    void add(const float* from, float* to) {
        from_[count_] = from, to_[count_] = to;
        if (++count_ == kQueriesAtOnce) flush();
    }

  private:
    void flush() {
        switch (count_) {
            case 0: break;
            case 1: body_(std::integral_constant<int, 1>(), from_, to_); break;
            case 2: body_(std::integral_constant<int, 2>(), from_, to_); break;
            case 3: body_(std::integral_constant<int, 3>(), from_, to_); break;
            default: body_(std::integral_constant<int, 4>(), from_, to_); break;
        }
        count_ = 0;
    }
    Body body_;
    const float* from_[kQueriesAtOnce];
    float* to_[kQueriesAtOnce];
    int count_ = 0;
};

// Up to kKeyTile keys (or values) of a span, and the rows that see some of them.
struct KeyTile {
    int count, rows;
    const float* pointers[outlay::kKeyTile];
    int row[outlay::kRowBlock];
    int visible[outlay::kRowBlock];          // how many of the keys each row sees
    const uint8_t* mask[outlay::kRowBlock];  // which of them, or null: all
    int64_t place[outlay::kRowBlock];        // index of the first among the row's keys
};

// Iterates over the spans of a block of rows, in the plan's order, and over the key tiles of each.
class KeyTiles {
  public:
    KeyTiles(const outlay::AttentionItem& item, const KVReader& reader)
        : item_(item), reader_(reader), rows_(int(item.row_end - item.row_begin)) {
        for (int r = 0; r < rows_; ++r) cursor_[r] = item.row_start[item.row_begin + r];
    }

    // Moves on to the next span that any row attends to; false where there is none.
    bool next_span() {
        int32_t next = std::numeric_limits<int32_t>::max();
        for (int r = 0; r < rows_; ++r)
            if (!at_end(r)) next = std::min(next, item_.span_of[cursor_[r]]);
        if (next == std::numeric_limits<int32_t>::max()) return false;
        span_ = &item_.spans[next];
        longest_ = 0;
        for (int r = 0; r < rows_; ++r) {
            const bool attends = !at_end(r) && item_.span_of[cursor_[r]] == next;
            visible_[r] = attends ? enter_span(r, item_.place_in_span[cursor_[r]++]) : 0;
            longest_ = std::max(longest_, visible_[r]);
        }
        return true;
    }

    // Calls body(tile) for the tiles of the span, in order.
    template <class Body>
    void each_tile(Body body) {
        for (int64_t begin = 0; begin < longest_; begin += outlay::kKeyTile) {
            KeyTile tile;
            load_keys(begin, tile);
            find_rows(begin, tile);
            body(tile);
        }
    }

    // How many keys row r of the block has had.
    int64_t n_keys(int r) const { return place_[r]; }

  private:
    bool at_end(int r) const { return cursor_[r] == item_.row_start[item_.row_begin + r + 1]; }

    // Returns how many keys of the span row r sees, as row `place` of the span.
    int64_t enter_span(int r, int64_t place) {
        mask_[r] = span_->mask ? span_->mask + place * span_->length : nullptr;
        return span_->limits ? std::clamp<int64_t>(span_->limits[place], 0, span_->length) : span_->length;
    }

    void load_keys(int64_t begin, KeyTile& tile) const {
        tile.count = int(std::min<int64_t>(outlay::kKeyTile, longest_ - begin));
        for (int j = 0; j < tile.count; ++j) {
            const int64_t slot = span_->slots ? span_->slots[begin + j] : span_->start + begin + j;
            tile.pointers[j] = reader_.read(slot, item_.floats + j * reader_.head_dim);
        }
    }

    void find_rows(int64_t begin, KeyTile& tile) {
        tile.rows = 0;
        for (int r = 0; r < rows_; ++r) {
            const int visible = int(std::min<int64_t>(tile.count, visible_[r] - begin));
            if (visible <= 0) continue;
            tile.row[tile.rows] = r;
            tile.visible[tile.rows] = visible;
            tile.mask[tile.rows] = mask_[r] ? mask_[r] + begin : nullptr;
            tile.place[tile.rows++] = place_[r];
            place_[r] += visible;
        }
    }

    const outlay::AttentionItem& item_;
    const KVReader& reader_;
    const int rows_;
    const OutlayAttentionSpan* span_ = nullptr;
    int64_t longest_ = 0;                      // keys of the span that any row sees
    int64_t cursor_[outlay::kRowBlock];        // each row's next span
    int64_t visible_[outlay::kRowBlock];       // how many keys of the span each row sees
    const uint8_t* mask_[outlay::kRowBlock];   // each row's mask over the span, or null
    int64_t place_[outlay::kRowBlock] = {};    // how many keys each row has had
};

// The phases of attention for a block of rows, which share the item's scores: a row and head have one for each key.
class BlockAttention {
  public:
    explicit BlockAttention(const outlay::AttentionItem& item) : item_(item), rows_(int(item.row_end - item.row_begin)) {}

    void score_all_keys() {
        const KVReader keys = {item_.kv.k, item_.kv.k_scales, &item_.kv, item_.head_dim};
        KeyTiles tiles(item_, keys);
        while (tiles.next_span()) {
            tiles.each_tile([&](const KeyTile& tile) {
                score_tile(tile);
                cap_and_mask(tile);
            });
        }
        for (int r = 0; r < rows_; ++r) n_keys_[r] = tiles.n_keys(r);
    }

    // Replaces scores by exp(score - max), and keeps their sum for `normalize`.
    void softmax() {
        for (int r = 0; r < rows_; ++r) {
            for (int h = 0; h < item_.n_heads; ++h) {
                float* weights = scores(r, h);
                const int64_t padded = pad(weights, n_keys_[r]);
                const float max = max_score(weights, padded);
                const float total = exponentiate(weights, padded, max);
                sum_of_weights(r, h) = total;
                if (item_.lse) item_.lse[(item_.row_begin + r) * item_.lse_stride + h] = max + std::log(total);
            }
        }
    }

    void add_all_values() {
        for (int r = 0; r < rows_; ++r)
            for (int h = 0; h < item_.n_heads; ++h)
                for (int d = 0; d < item_.head_dim; d += 8) store8(out(r, h) + d, splat<F8>(0.0f));
        const KVReader values = {item_.kv.v, item_.kv.v_scales, &item_.kv, item_.head_dim};
        KeyTiles tiles(item_, values);
        while (tiles.next_span()) tiles.each_tile([&](const KeyTile& tile) { add_tile(tile); });
    }

    void normalize() {
        for (int r = 0; r < rows_; ++r) {
            for (int h = 0; h < item_.n_heads; ++h) {
                const float total = sum_of_weights(r, h);
                if (total == 0.0f) continue;
                float* row = out(r, h);
                for (int d = 0; d < item_.head_dim; d += 8) store8(row + d, div(load8(row + d), splat<F8>(total)));
            }
        }
    }

  private:
    const float* query(int r, int h) const { return item_.q + (item_.row_begin + r) * item_.q_stride + h * item_.head_dim; }
    float* scores(int r, int h) const { return item_.scores + (int64_t(r) * item_.n_heads + h) * item_.score_stride; }
    float* out(int r, int h) const { return item_.out + (item_.row_begin + r) * item_.out_stride + h * item_.head_dim; }
    // The first of the last eight floats of a row's scores, which no tile reaches.
    float& sum_of_weights(int r, int h) const { return scores(r, h)[item_.score_stride - 8]; }

    // Rows that see less of a tile than others are scored on all of it: later scores overwrite the excess.
    void score_tile(const KeyTile& tile) const {
        QueryBatch batch([&](auto q, const float* const* from, float* const* to) {
            score_keys<q()>(from, tile.pointers, tile.count, item_.head_dim, item_.scale, to);
        });
        for (int i = 0; i < tile.rows; ++i)
            for (int h = 0; h < item_.n_heads; ++h) batch.add(query(tile.row[i], h), scores(tile.row[i], h) + tile.place[i]);
    }

    void cap_and_mask(const KeyTile& tile) const {
        for (int i = 0; i < tile.rows; ++i) {
            for (int h = 0; h < item_.n_heads; ++h) {
                float* of_tile = scores(tile.row[i], h) + tile.place[i];
                if (item_.softcap > 0.0f) softcap(item_.softcap, tile.visible[i], of_tile);
                for (int j = 0; tile.mask[i] && j < tile.visible[i]; ++j)
                    if (!tile.mask[i][j]) of_tile[j] = kMinusInfinity;
            }
        }
    }

    // Extends n scores by minus infinities to a multiple of 16, and returns how many there are.
    static int64_t pad(float* scores, int64_t n) {
        while (n % 16) scores[n++] = kMinusInfinity;
        return n;
    }

    static float max_score(const float* scores, int64_t padded) {
        F16 part = splat<F16>(kMinusInfinity);
        for (int64_t j = 0; j < padded; j += 16) part = max(load16(scores + j), part);
        return reduce_max(part);
    }

    // Replaces the scores by their exponentials, and returns the sum of these. They are summed as integers, so that their
    // order does not matter: masked keys would change it.
    static float exponentiate(float* scores, int64_t padded, float max) {
        FixedSum sum = zero_fixed_sum();
        if (max > kMinusInfinity) {
            for (int64_t j = 0; j < padded; j += 16) {
                const F16 weights = exp(sub(load16(scores + j), splat<F16>(max)));
                sum = add_fixed(sum, weights);
                store16(scores + j, weights);
            }
        } else {
            std::fill(scores, scores + padded, 0.0f);
        }
        return float(double(reduce_fixed_sum(sum)) * 0x1p-30);
    }

    // Queries that see all keys of the tile are served together, whatever their row.
    void add_tile(const KeyTile& tile) const {
        const auto batch_over = [&](int count) {
            return QueryBatch([&, count](auto q, const float* const* from, float* const* to) {
                add_values<q()>(from, tile.pointers, count, item_.head_dim, to);
            });
        };
        auto whole = batch_over(tile.count);
        for (int i = 0; i < tile.rows; ++i) {
            auto part = batch_over(tile.visible[i]);
            for (int h = 0; h < item_.n_heads; ++h) {
                const float* weights = scores(tile.row[i], h) + tile.place[i];
                float* to = out(tile.row[i], h);
                if (tile.mask[i]) {
                    add_visible_values(weights, tile.mask[i], tile.pointers, tile.visible[i], item_.head_dim, to);
                } else {
                    (tile.visible[i] < tile.count ? part : whole).add(weights, to);
                }
            }
        }
    }

    const outlay::AttentionItem& item_;
    const int rows_;
    int64_t n_keys_[outlay::kRowBlock];  // of each row, masked ones included
};

void attend(const outlay::AttentionItem& item) {
    BlockAttention block(item);
    block.score_all_keys();
    block.softmax();
    block.add_all_values();
    block.normalize();
}

}  // namespace
