// Attention of a block of rows over the pieces of the cache that they read.
//
// A row's result depends only on the sequence of the keys that it sees, not on how they are cut into pieces, on masked
// keys between them or on other rows: the largest score is found first, then exponentials, sums and weighted values are
// accumulated key by key, in order. So stepping token by token and verifying a whole tree give the same bits.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>

#include "ops.h"

namespace {

constexpr int kKeyTile = 64;  // keys whose K or V stay in the first-level cache while the rows pass over them

// scores[j] = scale * q . keys[j]; writes up to a multiple of 8.
inline void score_keys(const float* q, const float* const* keys, int count, int head_dim, float scale, float* scores) {
    for (int j = 0; j < count; j += 8) {
        const float* key[8];
        for (int i = 0; i < 8; ++i) key[i] = keys[std::min(j + i, count - 1)];
        F8 dot[8];
        for (int i = 0; i < 8; ++i) dot[i] = splat8(0.0f);
        for (int d = 0; d < head_dim; d += 8) {
            F8 part = load8(q + d);
            for (int i = 0; i < 8; ++i) dot[i] = fma8(part, load8(key[i] + d), dot[i]);
        }
        store8(scores + j, mul8(sums8(dot), splat8(scale)));
    }
}

// out[0 : 8*Width] += weights[j] * values[j], key by key. Keys of weight zero are not read: what is masked may hold anything.
template <int Width>
inline void add_values(const float* weights, const float* const* values, int count, int offset, float* out) {
    F8 total[Width];
    for (int i = 0; i < Width; ++i) total[i] = load8(out + offset + 8 * i);
    for (int j = 0; j < count; ++j) {
        if (weights[j] == 0.0f) continue;
        F8 weight = splat8(weights[j]);
        const float* value = values[j] + offset;
        for (int i = 0; i < Width; ++i) total[i] = fma8(weight, load8(value + 8 * i), total[i]);
    }
    for (int i = 0; i < Width; ++i) store8(out + offset + 8 * i, total[i]);
}

inline void weigh_values(const float* weights, const float* const* values, int count, int head_dim, float* out) {
    int offset = 0;
    for (; offset + 64 <= head_dim; offset += 64) add_values<8>(weights, values, count, offset, out);
    if (offset + 32 <= head_dim) add_values<4>(weights, values, count, offset, out), offset += 32;
    for (; offset < head_dim; offset += 8) add_values<1>(weights, values, count, offset, out);
}

// Calls body(row, place, tile_count, pointers, mask) for every tile of every piece in order, and every row that reads it;
// `place` is the index of the tile's first key among the row's keys.
template <class Body>
inline void each_tile(const outlay::AttendItem& item, const float* base, int64_t* totals, Body body) {
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
        for (int64_t begin = 0; begin < longest; begin += kKeyTile) {
            const float* pointers[kKeyTile];
            const int count = int(std::min<int64_t>(kKeyTile, longest - begin));
            for (int j = 0; j < count; ++j) {
                const int64_t slot = piece.slots ? piece.slots[begin + j] : piece.start + begin + j;
                pointers[j] = base + slot * item.slot_stride;
            }
            for (int r = 0; r < rows; ++r) {
                const int visible = int(std::min<int64_t>(count, seen[r] - begin));
                if (visible <= 0) continue;
                body(r, place[r], visible, pointers, mask[r] ? mask[r] + begin : nullptr);
                place[r] += visible;
            }
        }
    }
    for (int r = 0; r < rows; ++r) totals[r] = place[r];
}

void attend(const outlay::AttendItem& item) {
    constexpr float kNone = -std::numeric_limits<float>::infinity();
    const int rows = int(item.row_end - item.row_begin);
    const int head_dim = item.head_dim, heads = item.n_heads;
    int64_t totals[outlay::kRowBlock];
    const auto scores_of = [&](int r, int h) { return item.scores + (int64_t(r) * heads + h) * item.score_stride; };
    const auto out_of = [&](int r, int h) { return item.out + (item.row_begin + r) * item.out_stride + h * head_dim; };

    each_tile(item, item.k, totals, [&](int r, int64_t place, int count, const float* const* keys, const uint8_t* mask) {
        for (int h = 0; h < heads; ++h) {
            float* scores = scores_of(r, h) + place;
            const float* q = item.q + (item.row_begin + r) * item.q_stride + h * head_dim;
            score_keys(q, keys, count, head_dim, item.scale, scores);
            if (!mask) continue;
            for (int j = 0; j < count; ++j)
                if (!mask[j]) scores[j] = kNone;
        }
    });

    for (int r = 0; r < rows; ++r) {
        for (int h = 0; h < heads; ++h) {
            float* scores = scores_of(r, h);
            float* out = out_of(r, h);
            for (int d = 0; d < head_dim; d += 8) store8(out + d, splat8(0.0f));
            int64_t padded = totals[r];
            while (padded % 8) scores[padded++] = kNone;
            F8 most = splat8(kNone);
            for (int64_t j = 0; j < padded; j += 8) most = max8(load8(scores + j), most);
            const float top = most8(most);
            float total = 0.0f;
            if (top > kNone) {
                for (int64_t j = 0; j < padded; j += 8) store8(scores + j, exp8(sub8(load8(scores + j), splat8(top))));
                for (int64_t j = 0; j < totals[r]; ++j) total += scores[j];
            } else {
                std::fill(scores, scores + padded, 0.0f);
            }
            // The first of the eight floats behind the scores keeps the sum for the last step.
            scores[item.score_stride - 8] = total;
            if (item.lse) item.lse[(item.row_begin + r) * item.lse_stride + h] = top + std::log(total);
        }
    }

    each_tile(item, item.v, totals, [&](int r, int64_t place, int count, const float* const* values, const uint8_t*) {
        for (int h = 0; h < heads; ++h) weigh_values(scores_of(r, h) + place, values, count, head_dim, out_of(r, h));
    });

    for (int r = 0; r < rows; ++r) {
        for (int h = 0; h < heads; ++h) {
            const float total = scores_of(r, h)[item.score_stride - 8];
            if (total == 0.0f) continue;
            float* out = out_of(r, h);
            for (int d = 0; d < head_dim; d += 8) store8(out + d, div8(load8(out + d), splat8(total)));
        }
    }
}

}  // namespace
