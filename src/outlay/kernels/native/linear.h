// Walks the tiles of a linear layer, in blocks whose sums stay in registers. The including file says how large they are:
// kRows rows of one tile for quantized formats; kFloatRows rows of kFloatTiles tiles for the others, and kTilesOfOneRow
// tiles of a single row, so that there are enough chains of additions to hide their latency. It provides
//   dot_q4<R>, dot_q8<R>(tile, groups, x, ahead, acc) with acc[R][16], and
//   dot_bf16<T, R>, dot_f32<T, R>(tiles, k, x, ahead, acc) with acc[R * T][16].
// Rows of x follow each other. `ahead` is how far behind a tile lies what should be fetched meanwhile.
// Whatever the block, a sum goes through the same operations in the same order.
#pragma once
#include <algorithm>

#include "ops.h"
#include "output.h"

namespace {

constexpr int64_t kRowPanel = 128;  // rows whose activations stay in the second-level cache

struct Job {
    const OutlayLinear& layer;
    const outlay::Activations& in;
    const outlay::Output& to;
    int tile_end;
    size_t tile_bytes;
};

// T tiles of R rows. Where fewer tiles are left, the last one is computed again.
template <bool kQuantized, int T, int R>
inline void compute(const Job& job, int tile, int64_t row) {
    const OutlayLinear& layer = job.layer;
    const uint8_t* tiles[T];
    for (int t = 0; t < T; ++t) tiles[t] = layer.data + size_t(std::min(tile + t, job.tile_end - 1)) * job.tile_bytes;
    const size_t ahead = T * job.tile_bytes;
    alignas(64) float acc[R * T][outlay::kTile];
    if constexpr (kQuantized) {
        const int groups = layer.k / outlay::kGroup;
        const outlay::QuantizedGroup* x = job.in.q + row * groups;
        layer.format == kQ4 ? dot_q4<R>(tiles[0], groups, x, ahead, acc) : dot_q8<R>(tiles[0], groups, x, ahead, acc);
    } else {
        const float* x = job.in.x + row * layer.k;
        layer.format == kBf16 ? dot_bf16<T, R>(tiles, layer.k, x, ahead, acc) : dot_f32<T, R>(tiles, layer.k, x, ahead, acc);
    }
    for (int r = 0; r < R; ++r)
        for (int t = 0; t < std::min(T, job.tile_end - tile); ++t)
            write_tile(acc[r * T + t], job.to.out + (row + r) * job.to.stride, tile + t, layer.m, job.to);
}

template <bool kQuantized, int T, int R>
inline void compute_rows(const Job& job, int tile, int64_t row, int64_t rows) {
    if constexpr (R > 1) {
        if (rows < R) return compute_rows<kQuantized, T, R - 1>(job, tile, row, rows);
    }
    compute<kQuantized, T, R>(job, tile, row);
}

template <bool kQuantized, int T, int R>
inline void walk(const Job& job, int tile_begin, int64_t row_begin, int64_t row_end) {
    for (int tile = tile_begin; tile < job.tile_end; tile += T)
        for (int64_t row = row_begin; row < row_end; row += R) compute_rows<kQuantized, T, R>(job, tile, row, row_end - row);
}

void linear(const OutlayLinear& layer, const outlay::Activations& in, int64_t row_begin, int64_t row_end, int tile_begin,
            int tile_end, const outlay::Output& to) {
    const Job job = {layer, in, to, tile_end, outlay::tile_bytes(layer)};
    for (int64_t panel = row_begin; panel < row_end; panel += kRowPanel) {
        const int64_t panel_end = std::min(row_end, panel + kRowPanel);
        if (layer.format == kQ4 || layer.format == kQ8) {
            walk<true, 1, kRows>(job, tile_begin, panel, panel_end);
        } else if (panel_end - panel == 1) {
            walk<false, kTilesOfOneRow, 1>(job, tile_begin, panel, panel_end);
        } else {
            walk<false, kFloatTiles, kFloatRows>(job, tile_begin, panel, panel_end);
        }
    }
}

}  // namespace
