// Walks the tiles of a linear layer. The including file provides, for blocks of R rows, the accumulators of a tile:
//   dot_q4<R>, dot_q8<R>(tile, groups, rows, acc) and dot_bf16<R>, dot_f32<R>(tile, k, rows, acc) with acc[R][16],
//   and for a single row dot_bf16_tiles, dot_f32_tiles(tiles, k, x, acc) with acc[outlay::kMaxTiles][16].
// Whatever the block, an accumulator goes through the same operations in the same order.
#pragma once
#include <algorithm>

#include "ops.h"

namespace {

constexpr int kMaxRows = 4;          // rows of a block
constexpr int64_t kRowPanel = 128;   // rows whose activations stay in the second-level cache

void dot_bf16_tiles(const uint8_t* const* tiles, int k, const float* x, float (*acc)[outlay::kTile]);
void dot_f32_tiles(const uint8_t* const* tiles, int k, const float* x, float (*acc)[outlay::kTile]);

struct RowView {
    const float* x;
    const int8_t* q;
    const float* scale;
    const float* sum;
    const int32_t* isum;
};

inline RowView view_row(const outlay::Activations& in, int64_t row, int k) {
    const int64_t groups = k / outlay::kGroup;
    return {in.x ? in.x + row * k : nullptr, in.q ? in.q + row * k : nullptr, in.scale ? in.scale + row * groups : nullptr,
            in.sum ? in.sum + row * groups : nullptr, in.isum ? in.isum + row * groups : nullptr};
}

inline void write_tile(const float (*acc)[outlay::kTile], int64_t row, int rows, int tile, int m, const outlay::Output& to) {
    const int first = tile * outlay::kTile, width = std::min(outlay::kTile, m - first);
    for (int r = 0; r < rows; ++r) {
        float* out = to.out + (row + r) * m + first;
        if (width == outlay::kTile) {
            for (int c = 0; c < outlay::kTile; c += 8) {
                F8 value = load8(acc[r] + c);
                if (to.bias) value = add8(value, load8(to.bias + first + c));
                if (to.add) value = add8(load8(out + c), value);
                store8(out + c, value);
            }
        } else {
            for (int c = 0; c < width; ++c) {
                float value = acc[r][c];
                if (to.bias) value += to.bias[first + c];
                out[c] = to.add ? out[c] + value : value;
            }
        }
    }
}

template <int R>
inline void dot_tile(const OutlayLinear& layer, const uint8_t* tile, const RowView* rows, float (*acc)[outlay::kTile]) {
    switch (layer.format) {
        case kQ4: dot_q4<R>(tile, layer.k / outlay::kGroup, rows, acc); break;
        case kQ8: dot_q8<R>(tile, layer.k / outlay::kGroup, rows, acc); break;
        case kBf16: dot_bf16<R>(tile, layer.k, rows, acc); break;
        default: dot_f32<R>(tile, layer.k, rows, acc); break;
    }
}

// One row of a float format has a single chain of additions in each tile: several tiles at once hide its latency.
void linear_float_row(const OutlayLinear& layer, const outlay::Activations& in, int64_t row, int tile_begin, int tile_end,
                      const outlay::Output& out) {
    const size_t bytes = outlay::tile_bytes(layer);
    for (int tile = tile_begin; tile < tile_end; tile += outlay::kMaxTiles) {
        const int count = std::min(outlay::kMaxTiles, tile_end - tile);
        const uint8_t* data[outlay::kMaxTiles];
        for (int t = 0; t < outlay::kMaxTiles; ++t) data[t] = layer.data + size_t(tile + std::min(t, count - 1)) * bytes;
        alignas(64) float acc[outlay::kMaxTiles][outlay::kTile];
        if (layer.format == kBf16) {
            dot_bf16_tiles(data, layer.k, in.x + row * layer.k, acc);
        } else {
            dot_f32_tiles(data, layer.k, in.x + row * layer.k, acc);
        }
        for (int t = 0; t < count; ++t) write_tile(acc + t, row, 1, tile + t, layer.m, out);
    }
}

void linear(const OutlayLinear& layer, const outlay::Activations& in, int64_t row_begin, int64_t row_end, int tile_begin,
            int tile_end, const outlay::Output& out) {
    const size_t bytes = outlay::tile_bytes(layer);
    for (int64_t panel = row_begin; panel < row_end; panel += kRowPanel) {
        const int64_t panel_end = std::min(row_end, panel + kRowPanel);
        if (panel_end - panel == 1 && (layer.format == kBf16 || layer.format == kF32)) {
            linear_float_row(layer, in, panel, tile_begin, tile_end, out);
            continue;
        }
        for (int tile = tile_begin; tile < tile_end; ++tile) {
            const uint8_t* data = layer.data + tile * bytes;
            for (int64_t row = panel; row < panel_end; row += kMaxRows) {
                const int count = int(std::min<int64_t>(kMaxRows, panel_end - row));
                RowView rows[kMaxRows];
                for (int r = 0; r < count; ++r) rows[r] = view_row(in, row + r, layer.k);
                alignas(64) float acc[kMaxRows][outlay::kTile];
                switch (count) {
                    case 1: dot_tile<1>(layer, data, rows, acc); break;
                    case 2: dot_tile<2>(layer, data, rows, acc); break;
                    case 3: dot_tile<3>(layer, data, rows, acc); break;
                    default: dot_tile<4>(layer, data, rows, acc); break;
                }
                write_tile(acc, row, count, tile, layer.m, out);
            }
        }
    }
}

}  // namespace
