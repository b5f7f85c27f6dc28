// Attention of a block of rows over the pieces of the cache that they read.
//
// A row's result depends only on the sequence of the keys that it sees, not on how they are cut into pieces, on masked
// keys between them or on other rows: the largest score is found first, then exponentials are summed as integers and values
// are accumulated key by key, in order. So stepping token by token and verifying a whole tree give the same bits.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "ops.h"

namespace {

constexpr int kQueriesAtOnce = 4;  // queries that pass over a tile of keys together

// Adds the products of sixteen dimensions from `d` on (eight where `Low`) to the partial sums of Q queries and some keys.
template <int Q, bool Low>
inline void add_products(const float* const* q, const float* const* key, int d, F16 (*dot)[kKeysAtOnce]) {
    F16 part[kKeysAtOnce];
    for (int k = 0; k < kKeysAtOnce; ++k) part[k] = Low ? load16_low(key[k] + d) : load16(key[k] + d);
    for (int i = 0; i < Q; ++i) {
        const F16 x = Low ? load16_low(q[i] + d) : load16(q[i] + d);
        for (int k = 0; k < kKeysAtOnce; ++k) dot[i][k] = mul_add(x, part[k], dot[i][k]);
    }
}

// scores[i][j] = scale * q[i] . keys[j]; writes up to a multiple of kKeysSummed. A product has sixteen partial sums, one for
// each dimension modulo 16, which are added in one order, whatever it is computed with.
template <int Q>
inline void score_keys(const float* const* q, const float* const* keys, int count, int head_dim, float scale, float* const* scores) {
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
        store_sums<Q>(folded, scale, scores, j);
    }
}

// out[i][0 : 16 * Width] += weights[i][j] * values[j], key by key.
template <int Q, int Width>
inline void add_values(const float* const* weights, const float* const* values, int count, int offset, float* const* out) {
    F16 total[Q][Width];
    for (int i = 0; i < Q; ++i)
        for (int w = 0; w < Width; ++w) total[i][w] = load16(out[i] + offset + 16 * w);
    for (int j = 0; j < count; ++j) {
        F16 value[Width];
        for (int w = 0; w < Width; ++w) value[w] = load16(values[j] + offset + 16 * w);
        for (int i = 0; i < Q; ++i) {
            const F16 weight = splat<F16>(weights[i][j]);
            for (int w = 0; w < Width; ++w) total[i][w] = mul_add(weight, value[w], total[i][w]);
        }
    }
    for (int i = 0; i < Q; ++i)
        for (int w = 0; w < Width; ++w) store16(out[i] + offset + 16 * w, total[i][w]);
}

template <int Q>
inline void weigh_values(const float* const* weights, const float* const* values, int count, int head_dim, float* const* out) {
    int offset = 0;
    for (; offset + 16 * kStrip <= head_dim; offset += 16 * kStrip) add_values<Q, kStrip>(weights, values, count, offset, out);
    for (; offset + 16 <= head_dim; offset += 16) add_values<Q, 1>(weights, values, count, offset, out);
    for (; offset < head_dim; offset += 8)
        for (int i = 0; i < Q; ++i) {
            F16 total = load16_low(out[i] + offset);
            for (int j = 0; j < count; ++j) total = mul_add(splat<F16>(weights[i][j]), load16_low(values[j] + offset), total);
            store16_low(out[i] + offset, total);
        }
}

// As above for one query some of whose keys are masked: those are not read, since they may hold anything.
inline void weigh_seen_values(const float* weights, const uint8_t* mask, const float* const* values, int count, int head_dim,
                              float* out) {
    const float* seen[outlay::kKeyTile];
    float weight[outlay::kKeyTile];
    int n = 0;
    for (int j = 0; j < count; ++j)
        if (mask[j]) seen[n] = values[j], weight[n++] = weights[j];
    const float* first = weight;
    weigh_values<1>(&first, seen, n, head_dim, &out);
}

// Writes a head's keys and values to element `at` of the cache, in its format.
void store_head(const OutlayCache& cache, int64_t at, const float* k, const float* v, int head_dim) {
    const auto store = [&](void* to, float* scales, const float* x) {
        if (cache.format == kCacheF32) {
            std::copy(x, x + head_dim, static_cast<float*>(to) + at);
        } else if (cache.format == kCacheBf16) {
            for (int d = 0; d < head_dim; d += 8) store_bf16(static_cast<uint16_t*>(to) + at + d, load8(x + d));
        } else {
            for (int d = 0; d < head_dim; d += cache.group) {
                F8 most = splat<F8>(0.0f);
                for (int i = d; i < d + cache.group; i += 8) most = greater(abs8(load8(x + i)), most);
                const float size = largest(most);
                scales[(at + d) / cache.group] = size / 127.0f;
                // A group this small becomes zero; its reciprocal would overflow.
                const F8 inverse = splat<F8>(size > 1e-30f ? 127.0f / size : 0.0f);
                for (int i = d; i < d + cache.group; i += 8)
                    store_int8(static_cast<int8_t*>(to) + at + i, mul(load8(x + i), inverse));
            }
        }
    };
    store(cache.k, cache.k_scale, k);
    store(cache.v, cache.v_scale, v);
}

// One half of a cache, the keys or the values, and how to read it as floats.
struct Store {
    const void* data;
    const float* scales;
    const OutlayCache* cache;
    int head_dim;

    // Where the floats of a slot are: in the cache, or put into `buffer`.
    const float* read(int64_t slot, float* buffer) const {
        const int64_t at = slot * cache->slot_stride;
        if (cache->format == kCacheF32) return static_cast<const float*>(data) + at;
        if (cache->format == kCacheBf16) {
            for (int d = 0; d < head_dim; d += 8) store8(buffer + d, load_bf16(static_cast<const uint16_t*>(data) + at + d));
            return buffer;
        }
        const int8_t* q = static_cast<const int8_t*>(data) + at;
        for (int d = 0; d < head_dim; d += cache->group) {
            const F8 scale = splat<F8>(scales[(at + d) / cache->group]);
            for (int i = d; i < d + cache->group; i += 8) store8(buffer + i, mul(load_int8(q + i), scale));
        }
        return buffer;
    }
};

// Some keys (or values) of a piece, and the rows that read them.
struct Tile {
    int count, rows;
    const float* pointers[outlay::kKeyTile];
    int row[outlay::kRowBlock];
    int visible[outlay::kRowBlock];         // how many of the keys each row sees
    const uint8_t* mask[outlay::kRowBlock]; // which of them, or null: all
    int64_t place[outlay::kRowBlock];       // index of the first among the row's keys
};

// Calls body(tile) for every tile of every piece, in order.
template <class Body>
inline void each_tile(const outlay::AttendItem& item, const Store& store, int64_t* totals, Body body) {
    const int rows = int(item.row_end - item.row_begin);
    int64_t cursor[outlay::kRowBlock], place[outlay::kRowBlock] = {};
    for (int r = 0; r < rows; ++r) cursor[r] = item.span_start[item.row_begin + r];
    for (;;) {
        int32_t next = std::numeric_limits<int32_t>::max();
        for (int r = 0; r < rows; ++r)
            if (cursor[r] < item.span_start[item.row_begin + r + 1]) next = std::min(next, item.span_piece[cursor[r]]);
        if (next == std::numeric_limits<int32_t>::max()) break;
        const OutlayPiece& piece = item.pieces[next];
        int64_t seen[outlay::kRowBlock], longest = 0;
        const uint8_t* mask[outlay::kRowBlock] = {};
        for (int r = 0; r < rows; ++r) {
            seen[r] = 0;
            if (cursor[r] == item.span_start[item.row_begin + r + 1] || item.span_piece[cursor[r]] != next) continue;
            const int64_t index = item.span_index[cursor[r]++];
            seen[r] = piece.limits ? std::clamp<int64_t>(piece.limits[index], 0, piece.length) : piece.length;
            if (piece.mask) mask[r] = piece.mask + index * piece.length;
            longest = std::max(longest, seen[r]);
        }
        for (int64_t begin = 0; begin < longest; begin += outlay::kKeyTile) {
            Tile tile;
            tile.count = int(std::min<int64_t>(outlay::kKeyTile, longest - begin));
            tile.rows = 0;
            for (int j = 0; j < tile.count; ++j) {
                const int64_t slot = piece.slots ? piece.slots[begin + j] : piece.start + begin + j;
                tile.pointers[j] = store.read(slot, item.floats + j * store.head_dim);
            }
            for (int r = 0; r < rows; ++r) {
                const int visible = int(std::min<int64_t>(tile.count, seen[r] - begin));
                if (visible <= 0) continue;
                tile.row[tile.rows] = r;
                tile.visible[tile.rows] = visible;
                tile.mask[tile.rows] = mask[r] ? mask[r] + begin : nullptr;
                tile.place[tile.rows++] = place[r];
                place[r] += visible;
            }
            body(tile);
        }
    }
    for (int r = 0; r < rows; ++r) totals[r] = place[r];
}

// Collects what some queries read and write, and calls body(count, from, to) for kQueriesAtOnce of them at a time.
template <class Body>
class Batch {
  public:
    explicit Batch(Body body) : body_(body) {}
    ~Batch() { flush(); }
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

void attend(const outlay::AttendItem& item) {
    constexpr float kNone = -std::numeric_limits<float>::infinity();
    const int rows = int(item.row_end - item.row_begin);
    const int head_dim = item.head_dim, heads = item.n_heads;
    int64_t totals[outlay::kRowBlock];
    const auto scores_of = [&](int r, int h) { return item.scores + (int64_t(r) * heads + h) * item.score_stride; };
    const auto out_of = [&](int r, int h) { return item.out + (item.row_begin + r) * item.out_stride + h * head_dim; };
    const Store keys = {item.cache.k, item.cache.k_scale, &item.cache, head_dim};
    const Store values = {item.cache.v, item.cache.v_scale, &item.cache, head_dim};

    // Rows that see less of a tile than others are scored on all of it: what is too much is overwritten by what follows.
    each_tile(item, keys, totals, [&](const Tile& tile) {
        {
            Batch batch([&](auto q, const float* const* from, float* const* to) {
                score_keys<q()>(from, tile.pointers, tile.count, head_dim, item.scale, to);
            });
            for (int i = 0; i < tile.rows; ++i)
                for (int h = 0; h < heads; ++h)
                    batch.add(item.q + (item.row_begin + tile.row[i]) * item.q_stride + h * head_dim,
                              scores_of(tile.row[i], h) + tile.place[i]);
        }
        for (int i = 0; i < tile.rows; ++i) {
            for (int h = 0; h < heads; ++h) {
                float* scores = scores_of(tile.row[i], h) + tile.place[i];
                if (item.softcap > 0.0f) cap_scores(item.softcap, tile.visible[i], scores);
                for (int j = 0; tile.mask[i] && j < tile.visible[i]; ++j)
                    if (!tile.mask[i][j]) scores[j] = kNone;
            }
        }
    });

    for (int r = 0; r < rows; ++r) {
        for (int h = 0; h < heads; ++h) {
            float* scores = scores_of(r, h);
            float* out = out_of(r, h);
            for (int d = 0; d < head_dim; d += 8) store8(out + d, splat<F8>(0.0f));
            int64_t padded = totals[r];
            while (padded % 16) scores[padded++] = kNone;
            F16 most = splat<F16>(kNone);
            for (int64_t j = 0; j < padded; j += 16) most = greater(load16(scores + j), most);
            const float top = largest(most);
            Sums sums = no_sums();  // integers, so that their order does not matter: masked keys would change it
            if (top > kNone) {
                for (int64_t j = 0; j < padded; j += 16) {
                    const F16 weights = exp_of(sub(load16(scores + j), splat<F16>(top)));
                    sums = add_fixed(sums, weights);
                    store16(scores + j, weights);
                }
            } else {
                std::fill(scores, scores + padded, 0.0f);
            }
            const float total = float(double(total_of(sums)) * 0x1p-30);
            // The first of the eight floats behind the scores keeps the sum for the last step.
            scores[item.score_stride - 8] = total;
            if (item.lse) item.lse[(item.row_begin + r) * item.lse_stride + h] = top + std::log(total);
        }
    }

    each_tile(item, values, totals, [&](const Tile& tile) {
        const auto weighing = [&](int count) {
            return Batch([&, count](auto q, const float* const* from, float* const* to) {
                weigh_values<q()>(from, tile.pointers, count, head_dim, to);
            });
        };
        auto whole = weighing(tile.count);  // of the rows that see all keys of the tile, together
        for (int i = 0; i < tile.rows; ++i) {
            auto part = weighing(tile.visible[i]);
            for (int h = 0; h < heads; ++h) {
                const float* weights = scores_of(tile.row[i], h) + tile.place[i];
                float* out = out_of(tile.row[i], h);
                if (tile.mask[i]) {
                    weigh_seen_values(weights, tile.mask[i], tile.pointers, tile.visible[i], head_dim, out);
                } else {
                    (tile.visible[i] < tile.count ? part : whole).add(weights, out);
                }
            }
        }
    });

    for (int r = 0; r < rows; ++r) {
        for (int h = 0; h < heads; ++h) {
            const float total = scores_of(r, h)[item.score_stride - 8];
            if (total == 0.0f) continue;
            float* out = out_of(r, h);
            for (int d = 0; d < head_dim; d += 8) store8(out + d, div8(load8(out + d), splat<F8>(total)));
        }
    }
}

}  // namespace
