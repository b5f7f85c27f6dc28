// Walks the tiles of a linear layer, in blocks whose sums stay in registers. The including file says how large they are:
// kRows rows of one tile for quantized formats; kFloatRows rows of kFloatTiles tiles for the others, and kTilesOfOneRow
// tiles of a single row, so that there are enough chains of additions to hide their latency. It provides
//   dot_q4<Q4 or PlainQ4, R>, dot_q8<Q8 or PlainQ8, R>(tile, groups, x, next, acc) with acc[R][16],
//   dot_bf16<T, R>, dot_f32<T, R>(tiles, k, x, ahead, acc) with acc[R * T][16],
//   fetch(address), and widen_halves(from, to) of sixteen floats.
// Rows of x follow each other. What should be fetched meanwhile is the tile `next`, or lies `ahead` of each tile.
// Whatever the block, a sum goes through the same operations in the same order.
#pragma once
#include <algorithm>
#include <type_traits>

#include "ops.h"
#include "output.h"

namespace {

constexpr int64_t kPanelBytes = 512 * 1024;  // of inputs that stay in the second-level cache while the tiles pass by

// From how many blocks of rows on a tile is unpacked, once for all of them. A plain group has floats for its scales and, in
// q4, minima, and a byte for each weight, [8][16 channels][4]. Where PlainQ8 is Q8, that would gain nothing.
constexpr int kBlocksToUnpack = 3;

struct Bf16 {};
struct F32 {};
template <class Format>
constexpr bool kQ4Like = std::is_same_v<Format, Q4> || std::is_same_v<Format, PlainQ4>;
template <class Format>
constexpr bool kQ8Like = std::is_same_v<Format, Q8> || std::is_same_v<Format, PlainQ8>;
template <class Format>
constexpr bool kPlain = (kQ4Like<Format> || kQ8Like<Format>) && !std::is_same_v<Format, Q4> && !std::is_same_v<Format, Q8>;

struct Job {
    const OutlayLinear& layer;
    const outlay::Activations& in;
    const outlay::Output& to;
    int tile_end;
    size_t tile_bytes;

    const uint8_t* tile(int index) const { return layer.data + size_t(index) * tile_bytes; }
};

inline void unpack(PlainQ4, const uint8_t* tile, int groups, uint8_t* plain) {
    for (; groups > 0; --groups, tile += Q4::kBytes, plain += PlainQ4::kBytes) {
        widen_halves(tile, reinterpret_cast<float*>(plain));
        widen_halves(tile + 32, reinterpret_cast<float*>(plain + 64));
        for (int i = 0; i < 256; ++i) plain[128 + i] = tile[64 + i] & 15, plain[384 + i] = tile[64 + i] >> 4;
    }
}

// Its weights are unsigned, 128 too large.
inline void unpack(PlainQ8, const uint8_t* tile, int groups, uint8_t* plain) {
    for (; groups > 0; --groups, tile += Q8::kBytes, plain += PlainQ8::kBytes) {
        widen_halves(tile, reinterpret_cast<float*>(plain));
        for (int i = 0; i < 512; ++i) plain[64 + i] = tile[32 + i] ^ 128;
    }
}

// T tiles of R rows.
template <class Format, int T, int R>
inline void compute(const Job& job, const uint8_t* const* tiles, int tile, int64_t row) {
    const int k = job.layer.k, written = std::min(T, job.tile_end - tile);
    const auto out_of = [&](int r) { return job.to.out + (row + r) * job.to.stride; };
    alignas(64) float acc[R * T][outlay::kTile];
    if constexpr (kQ4Like<Format> || kQ8Like<Format>) {
        const int groups = k / outlay::kGroup;
        const outlay::QuantizedGroup* x = job.in.q + row * groups;
        const uint8_t* next = job.tile(tile + 1);
        if constexpr (kQ4Like<Format>) {
            dot_q4<Format, R>(tiles[0], groups, x, next, acc);
        } else {
            dot_q8<Format, R>(tiles[0], groups, x, next, acc);
        }
    } else if constexpr (std::is_same_v<Format, Bf16>) {
        dot_bf16<T, R>(tiles, k, job.in.x + row * k, T * job.tile_bytes, acc);
    } else {
        dot_f32<T, R>(tiles, k, job.in.x + row * k, T * job.tile_bytes, acc);
    }
    for (int r = 0; r < R; ++r)
        for (int t = 0; t < written; ++t) write_tile(acc[r * T + t], out_of(r), tile + t, job.layer.m, job.to);
}

template <class Format, int T, int R>
inline void compute_rows(const Job& job, const uint8_t* const* tiles, int tile, int64_t row, int64_t rows) {
    if constexpr (R > 1) {
        if (rows < R) return compute_rows<Format, T, R - 1>(job, tiles, tile, row, rows);
    }
    compute<Format, T, R>(job, tiles, tile, row);
}

template <class Format, int T, int R>
inline void walk(const Job& job, int tile_begin, int64_t row_begin, int64_t row_end) {
    for (int tile = tile_begin; tile < job.tile_end; tile += T) {
        const uint8_t* tiles[T];  // where fewer are left, the last one is computed again
        for (int t = 0; t < T; ++t) tiles[t] = job.tile(std::min(tile + t, job.tile_end - 1));
        if constexpr (kPlain<Format>) {
            const int groups = job.layer.k / outlay::kGroup;
            uint8_t* plain = outlay::thread_memory(outlay::Use::kTile, size_t(groups) * Format::kBytes);
            unpack(Format(), tiles[0], groups, plain);
            tiles[0] = plain;
        }
        for (int64_t row = row_begin; row < row_end; row += R)
            compute_rows<Format, T, R>(job, tiles, tile, row, row_end - row);
    }
}

template <class Format, class Plain>
inline void walk_quantized(const Job& job, int tile_begin, int64_t row_begin, int64_t row_end) {
    if (row_end - row_begin > (kBlocksToUnpack - 1) * kRows) {
        walk<Plain, 1, kRows>(job, tile_begin, row_begin, row_end);
    } else {
        walk<Format, 1, kRows>(job, tile_begin, row_begin, row_end);
    }
}

template <class Format>
inline void walk_floats(const Job& job, int tile_begin, int64_t row_begin, int64_t row_end) {
    if (row_end - row_begin == 1) {
        walk<Format, kTilesOfOneRow, 1>(job, tile_begin, row_begin, row_end);
    } else {
        walk<Format, kFloatTiles, kFloatRows>(job, tile_begin, row_begin, row_end);
    }
}

void linear(const OutlayLinear& layer, const outlay::Activations& in, int64_t row_begin, int64_t row_end, int tile_begin,
            int tile_end, const outlay::Output& to) {
    const Job job = {layer, in, to, tile_end, outlay::tile_bytes(layer)};
    const bool quantized = layer.format == kQ4 || layer.format == kQ8;
    const int64_t block = quantized ? kRows : kFloatRows;
    const int64_t row_bytes = quantized ? layer.k / outlay::kGroup * int64_t(sizeof(outlay::QuantizedGroup)) : layer.k * 4;
    const int64_t panel_rows = std::max<int64_t>(kPanelBytes / row_bytes / block, 4) * block;
    for (int64_t panel = row_begin; panel < row_end; panel += panel_rows) {
        const int64_t panel_end = std::min(row_end, panel + panel_rows);
        switch (layer.format) {
            case kQ4: walk_quantized<Q4, PlainQ4>(job, tile_begin, panel, panel_end); break;
            case kQ8: walk_quantized<Q8, PlainQ8>(job, tile_begin, panel, panel_end); break;
            case kBf16: walk_floats<Bf16>(job, tile_begin, panel, panel_end); break;
            default: walk_floats<F32>(job, tile_begin, panel, panel_end); break;
        }
    }
}

}  // namespace
