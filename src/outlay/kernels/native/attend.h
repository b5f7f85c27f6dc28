// Attention of a block of rows over the spans of the KV cache that they attend to, in three phases: score the keys, add the
// values weighted by the exponentials of their scores, normalize.
//
// A row's result depends only on the sequence of the keys that it sees, not on how they are cut into spans, on masked
// keys between them or on other rows: the largest score is found first, then exponentials are summed as integers and values
// are accumulated key by key, in order. So decoding token by token and verifying a whole tree give the same bits.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "kv.h"
#include "ops.h"

namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr int kQueriesAtOnce = 4;  // queries that pass over a tile of keys together
constexpr int kManyQueries = 16;   // from here on a tile's keys are transposed for them

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

// Writes up to kKeyTile keys as the columns of `columns`, up to a multiple of sixteen: the last one again and again.
OUTLAY_NOINLINE void transpose_keys(const float* const* keys, int count, int head_dim, float* columns) {
    for (int j = 0; j < (count + 15) / 16 * 16; j += 8) {
        const float* key[8];
        for (int k = 0; k < 8; ++k) key[k] = keys[std::min(j + k, count - 1)];
        for (int d = 0; d < head_dim; d += 8) {
            F8 block[8];
            for (int k = 0; k < 8; ++k) block[k] = load8(key[k] + d);
            transpose8(block);
            for (int i = 0; i < 8; ++i) store8(columns + (d + i) * outlay::kKeyTile + j, block[i]);
        }
    }
}

// Calls body(0) to body(N - 1), each with its index as a constant: arrays that it indexes stay in registers.
template <int... I, class Body>
OUTLAY_INLINE void each_index(std::integer_sequence<int, I...>, const Body& body) {
    (body(std::integral_constant<int, I>()), ...);
}

// The products of Q queries with K registers of keys, one key in each lane, of dimensions l, l + 16, ...: one of the sixteen
// partial sums of `score_keys`.
template <int Q, int K>
OUTLAY_INLINE void sum_partly(const float* const* q, const float* columns, int head_dim, int l, Lanes (&sum)[Q][K]) {
    for (int i = 0; i < Q; ++i)
        for (int k = 0; k < K; ++k) sum[i][k] = splat<Lanes>(0.0f);
    for (int d = l; d < head_dim; d += 16) {
        Lanes key[K];
        for (int k = 0; k < K; ++k) {
            key[k] = load_lanes(columns + d * outlay::kKeyTile + k * kLanes);
            keep_in_register(key[k]);
        }
        for (int i = 0; i < Q; ++i) {
            const Lanes x = splat<Lanes>(q[i][d]);
            for (int k = 0; k < K; ++k) sum[i][k] = fmadd(x, key[k], sum[i][k]);
        }
    }
}

template <int Q, int K>
OUTLAY_INLINE void score_lanes(const float* const* q, const float* columns, int head_dim, float scale, float* const* scores,
                               int j) {
    Lanes pairs[8][Q][K];  // the sums of partial sums l and l + 8
    for (int l = 0; l < 8; ++l) {
        Lanes low[Q][K], high[Q][K];
        sum_partly<Q, K>(q, columns, head_dim, l, low);
        sum_partly<Q, K>(q, columns, head_dim, l + 8, high);
        for (int i = 0; i < Q; ++i)
            for (int k = 0; k < K; ++k) pairs[l][i][k] = add(low[i][k], high[i][k]);
    }
    for (int i = 0; i < Q; ++i)
        for (int k = 0; k < K; ++k) {
            const auto four = [&](int l) {
                return add(add(pairs[l][i][k], pairs[l + 1][i][k]), add(pairs[l + 2][i][k], pairs[l + 3][i][k]));
            };
            store_lanes(scores[i] + j + k * kLanes, mul(add(four(0), four(4)), splat<Lanes>(scale)));
        }
}

// As `score_keys`, with the same bits, over transposed keys: no sum goes across the lanes of a register.
template <int Q, int HeadDim>
OUTLAY_NOINLINE void score_columns(const float* const* q, const float* columns, int count, int head_dim, float scale,
                                   float* const* scores) {
    const int dims = HeadDim ? HeadDim : head_dim;
    int j = 0;
    for (; j + kLanes < count; j += 2 * kLanes) score_lanes<Q, 2>(q, columns + j, dims, scale, scores, j);
    if (j < count) score_lanes<Q, 1>(q, columns + j, dims, scale, scores, j);
}

template <int Q>
inline void score_transposed(const float* const* q, const float* columns, int count, int head_dim, float scale,
                             float* const* scores) {
    const auto score = head_dim == 64 ? score_columns<Q, 64> : head_dim == 128 ? score_columns<Q, 128> : score_columns<Q, 0>;
    score(q, columns, count, head_dim, scale, scores);
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

// Collects the queries that a tile serves, and calls body(count, from, to) for `AtOnce` of them at a time.
template <int AtOnce, class Body>
class QueryBatch {
  public:
    explicit QueryBatch(Body body) : body_(body) {}
    ~QueryBatch() { flush(); }
    void add(const float* from, float* to) {
        from_[count_] = from, to_[count_] = to;
        if (++count_ == AtOnce) flush();
    }

  private:
    void flush() {
        each_index(std::make_integer_sequence<int, AtOnce>(), [&](auto i) {
            if (count_ == i + 1) body_(std::integral_constant<int, i + 1>(), from_, to_);
        });
        count_ = 0;
    }
    Body body_;
    const float* from_[AtOnce];
    float* to_[AtOnce];
    int count_ = 0;
};
template <int AtOnce, class Body>
QueryBatch<AtOnce, Body> query_batch(Body body) {
    return QueryBatch<AtOnce, Body>(body);
}

// Up to kKeyTile keys (or values) of a span, and the rows that see some of them.
struct KeyTile {
    int count, rows;
    const float* pointers[outlay::kKeyTile];
    int row[outlay::kMaxRowBlock];
    int visible[outlay::kMaxRowBlock];          // how many of the keys each row sees
    const uint8_t* mask[outlay::kMaxRowBlock];  // which of them, or null: all
    int64_t place[outlay::kMaxRowBlock];        // index of the first among the row's keys
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

    // How many keys row r has gone over.
    int64_t keys(int r) const { return place_[r]; }

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
    int64_t longest_ = 0;                         // keys of the span that any row sees
    int64_t cursor_[outlay::kMaxRowBlock];        // each row's next span
    int64_t visible_[outlay::kMaxRowBlock];       // how many keys of the span each row sees
    const uint8_t* mask_[outlay::kMaxRowBlock];   // each row's mask over the span, or null
    int64_t place_[outlay::kMaxRowBlock] = {};    // how many keys each row has had
};

// The phases of attention for a block of rows, which share the item's scores: a row and head have one for each key.
class BlockAttention {
  public:
    explicit BlockAttention(const outlay::AttentionItem& item) : item_(item), rows_(int(item.row_end - item.row_begin)) {}

    void score_all_keys() {
        for (int r = 0; r < rows_; ++r)
            for (int h = 0; h < item_.n_heads; ++h) max_score(r, h) = kMinusInfinity;
        const KVReader keys = {item_.kv.k, item_.kv.k_scales, &item_.kv, item_.head_dim};
        KeyTiles tiles(item_, keys);
        while (tiles.next_span()) {
            tiles.each_tile([&](const KeyTile& tile) {
                score_tile(tile);
                cap_and_mask(tile);
            });
        }
        for (int r = 0; r < rows_; ++r) keys_[r] = tiles.keys(r);
    }

    // Adds the values times exp(score - max), and the exponentials, for `normalize`.
    void add_all_values() {
        for (int r = 0; r < rows_; ++r)
            for (int h = 0; h < item_.n_heads; ++h) {
                for (int d = 0; d < item_.head_dim; d += 8) store8(out(r, h) + d, splat<F8>(0.0f));
                keep_sum(r, h, zero_fixed_sum());
            }
        const KVReader values = {item_.kv.v, item_.kv.v_scales, &item_.kv, item_.head_dim};
        KeyTiles tiles(item_, values);
        while (tiles.next_span()) tiles.each_tile([&](const KeyTile& tile) { add_tile(tile); });
    }

    void normalize() {
        for (int r = 0; r < rows_; ++r) {
            for (int h = 0; h < item_.n_heads; ++h) {
                const float total = float(double(reduce_fixed_sum(sum_of_weights(r, h))) * 0x1p-30);
                if (item_.lse)
                    item_.lse[(item_.row_begin + r) * item_.lse_stride + h] = max_score(r, h) + std::log(total);
                if (item_.weights && item_.weights[item_.row_begin + r]) write_weights(r, h, total);
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
    // Behind a row's scores, where no tile reaches: the largest score so far, and the sum of the exponentials so far.
    float& max_score(int r, int h) const { return scores(r, h)[item_.score_stride - 16]; }
    void keep_sum(int r, int h, FixedSum sum) const {
        static_assert(sizeof sum <= 8 * sizeof(float), "a sum takes the last eight floats of a row's scores");
        std::memcpy(scores(r, h) + item_.score_stride - 8, &sum, sizeof sum);
    }
    FixedSum sum_of_weights(int r, int h) const {
        FixedSum sum;
        std::memcpy(&sum, scores(r, h) + item_.score_stride - 8, sizeof sum);
        return sum;
    }

    // Rows that see less of a tile than others are scored on all of it: later scores overwrite the excess.
    void score_tile(const KeyTile& tile) const {
        if (tile.rows * item_.n_heads >= kManyQueries) {
            score_many(tile);
            return;
        }
        auto batch = query_batch<kQueriesAtOnce>([&](auto q, const float* const* from, float* const* to) {
            score_keys<q()>(from, tile.pointers, tile.count, item_.head_dim, item_.scale, to);
        });
        for (int i = 0; i < tile.rows; ++i)
            for (int h = 0; h < item_.n_heads; ++h) batch.add(query(tile.row[i], h), scores(tile.row[i], h) + tile.place[i]);
    }

    void score_many(const KeyTile& tile) const {
        transpose_keys(tile.pointers, tile.count, item_.head_dim, item_.columns);
        auto batch = query_batch<kQueriesOfColumns>([&](auto q, const float* const* from, float* const* to) {
            score_transposed<q()>(from, item_.columns, tile.count, item_.head_dim, item_.scale, to);
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
                float& max = max_score(tile.row[i], h);
                max = std::max(max, largest(of_tile, tile.visible[i]));
            }
        }
    }

    // Up to sixteen scores, and minus infinities.
    static F16 load_some(const float* scores, int n) {
        if (n >= 16) return load16(scores);
        float some[16];
        for (int j = 0; j < 16; ++j) some[j] = j < n ? scores[j] : kMinusInfinity;
        return load16(some);
    }

    static float largest(const float* scores, int n) {
        F16 part = splat<F16>(kMinusInfinity);
        for (int j = 0; j < n; j += 16) part = max(load_some(scores + j, n - j), part);
        return reduce_max(part);
    }

    // Writes the exponentials of the scores of n keys, up to a multiple of sixteen, and adds them to the row's sum. They are
    // summed as integers, so that their order does not matter: masked keys would change it.
    void exponentiate(int r, int h, const float* of_tile, int n, float* weights) const {
        const float max = max_score(r, h);
        if (max == kMinusInfinity) {
            std::fill(weights, weights + n, 0.0f);
            return;
        }
        FixedSum sum = sum_of_weights(r, h);
        int j = 0;
        for (; j + 32 <= n; j += 32) {
            const F16 first = exp(sub(load16(of_tile + j), splat<F16>(max)));
            const F16 second = exp(sub(load16(of_tile + j + 16), splat<F16>(max)));
            sum = add_fixed(sum, first, second);
            store16(weights + j, first), store16(weights + j + 16, second);
        }
        for (; j < n; j += 16) {
            const F16 some = exp(sub(load_some(of_tile + j, n - j), splat<F16>(max)));
            sum = add_fixed(sum, some);
            store16(weights + j, some);
        }
        keep_sum(r, h, sum);
    }

    // Writes the weight of each key that the row goes over.
    void write_weights(int r, int h, float total) const {
        float* to = item_.weights[item_.row_begin + r] + item_.weight_offset + h * item_.weight_stride;
        for (int64_t j = 0; j < keys_[r]; j += 16) {
            const F16 some = load_some(scores(r, h) + j, int(std::min<int64_t>(keys_[r] - j, 16)));
            const F16 above = exp(sub(some, splat<F16>(max_score(r, h))));
            store16(to + j, total == 0.0f ? splat<F16>(0.0f) : div(above, splat<F16>(total)));
        }
    }

    // Queries that see all keys of the tile are served together, whatever their row.
    void add_tile(const KeyTile& tile) const {
        const auto batch_over = [&](int count) {
            return query_batch<kQueriesAtOnce>([&, count](auto q, const float* const* from, float* const* to) {
                add_values<q()>(from, tile.pointers, count, item_.head_dim, to);
            });
        };
        // A batch is served when it is full, so as many weights as it takes are kept at a time.
        float weights[2][kQueriesAtOnce][outlay::kKeyTile];
        int taken[2] = {};
        auto whole = batch_over(tile.count);
        for (int i = 0; i < tile.rows; ++i) {
            const int row = tile.row[i];
            const bool is_part = tile.visible[i] < tile.count || tile.mask[i];
            auto part = batch_over(tile.visible[i]);
            for (int h = 0; h < item_.n_heads; ++h) {
                float* of_query = weights[is_part][taken[is_part]++ % kQueriesAtOnce];
                exponentiate(row, h, scores(row, h) + tile.place[i], tile.visible[i], of_query);
                float* to = out(row, h);
                if (tile.mask[i]) {
                    add_visible_values(of_query, tile.mask[i], tile.pointers, tile.visible[i], item_.head_dim, to);
                } else {
                    (is_part ? part : whole).add(of_query, to);
                }
            }
        }
    }

    const outlay::AttentionItem& item_;
    const int rows_;
    int64_t keys_[outlay::kMaxRowBlock];  // how many keys each row goes over
};

void attend(const outlay::AttentionItem& item) {
    BlockAttention block(item);
    block.score_all_keys();
    block.add_all_values();
    block.normalize();
}

}  // namespace
