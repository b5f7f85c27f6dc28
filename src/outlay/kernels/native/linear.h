// The products of a linear layer: the tiles of its weights with blocks of rows whose sums stay in registers. Written once
// over `Isa`, the class with which a kernels_*.cpp describes its instruction set (see `LinearContract`).
//
// Rows of x follow each other. Whatever the block, a sum goes through the same operations in the same order.
#pragma once
#include <algorithm>
#include <type_traits>
#include <utility>

#include "ops.h"
#include "output.h"

namespace {

constexpr int64_t kPanelBytes = 512 * 1024;  // of inputs that stay in the second-level cache while the tiles pass by

// From this many blocks of rows on, a tile is unpacked once for all of them. An unpacked group has floats for its scales and,
// in q4, minima, and a byte for each weight, [8][16 channels][4].
constexpr int kBlocksToUnpack = 3;
constexpr int kUnpackedQ4Bytes = 2 * 4 * outlay::kTile + outlay::kGroup * outlay::kTile;
constexpr int kUnpackedQ8Bytes = 4 * outlay::kTile + outlay::kGroup * outlay::kTile;

template <class, template <class> class Member, class T>
struct Detected : std::false_type {};
template <template <class> class Member, class T>
struct Detected<std::void_t<Member<T>>, Member, T> : std::true_type {};
template <template <class> class Member, class T>
constexpr bool kHas = Detected<void, Member, T>::value;

// What an instruction set provides, checked here so that the compiler names what is missing.
template <class Isa>
struct LinearContract {
    // acc[R][16] = the sums of a tile with R rows; `next` is the tile to prefetch meanwhile.
    using QuantizedDot = void (*)(const uint8_t* tile, int groups, const outlay::QuantizedGroup* x, const uint8_t* next,
                                  float (*acc)[outlay::kTile]);
    // acc[R * T][16] += the sums of T tiles with R rows, `stride` apart, over k inputs; the weights to prefetch meanwhile lie
    // `ahead` of each tile.
    using FloatDot = void (*)(const uint8_t* const* tiles, int k, const float* x, int64_t stride, size_t ahead,
                              float (*acc)[outlay::kTile]);
    // Sixteen halves, which need no alignment.
    using HalvesToFloats = void (*)(const uint8_t* from, float* to);

    template <class T>
    using BlockSizes = std::integer_sequence<int, T::kRows, T::kFloatRows, T::kFloatTiles, T::kTilesOfOneRow>;
    template <class T>
    using Formats = std::integer_sequence<int, T::Q4::kBytes, T::UnpackedQ4::kBytes, T::Q8::kBytes, T::UnpackedQ8::kBytes>;
    template <class T>
    using DotQ4 = decltype(static_cast<QuantizedDot>(&T::template dot_q4<typename T::Q4, 1>));
    template <class T>
    using DotQ8 = decltype(static_cast<QuantizedDot>(&T::template dot_q8<typename T::Q8, 1>));
    template <class T>
    using DotFloat = decltype(static_cast<FloatDot>(&T::template dot_float<outlay::F32, 1, 1>));
    template <class T>
    using Halves = decltype(static_cast<HalvesToFloats>(&T::halves_to_floats));

    static_assert(kHas<BlockSizes, Isa>,
                  "an instruction set has constants kRows (rows of a tile, for quantized formats), kFloatRows and kFloatTiles "
                  "(rows and tiles, for the others) and kTilesOfOneRow (tiles of a single row)");
    static_assert(kHas<Formats, Isa>,
                  "an instruction set has types Q4, UnpackedQ4, Q8 and UnpackedQ8, each with kBytes of a group");
    static_assert(kHas<DotQ4, Isa>, "an instruction set has template <class Format, int R> static dot_q4, a QuantizedDot");
    static_assert(kHas<DotQ8, Isa>, "an instruction set has template <class Format, int R> static dot_q8, a QuantizedDot");
    static_assert(kHas<DotFloat, Isa>,
                  "an instruction set has template <class Format, int T, int R> static dot_float, a FloatDot");
    static_assert(kHas<Halves, Isa>, "an instruction set has static halves_to_floats(const uint8_t*, float*)");

    static_assert(Isa::kRows > 0 && Isa::kFloatRows > 0, "a block has at least one row");
    static_assert(outlay::kTilesTogether % Isa::kFloatTiles == 0 && outlay::kTilesTogether % Isa::kTilesOfOneRow == 0,
                  "kTilesTogether is a multiple of kFloatTiles and kTilesOfOneRow");
    static_assert(Isa::Q4::kBytes == outlay::kQ4Block && Isa::Q8::kBytes == outlay::kQ8Block, "Q4 and Q8 are as in abi.h");
    static_assert(Isa::UnpackedQ4::kBytes == kUnpackedQ4Bytes, "UnpackedQ4 is as unpack() writes it");
    static_assert(std::is_same_v<typename Isa::UnpackedQ8, typename Isa::Q8> || Isa::UnpackedQ8::kBytes == kUnpackedQ8Bytes,
                  "UnpackedQ8 is as unpack() writes it, or Q8 where unpacking would gain nothing");
};

template <class Isa>
class LinearProducts : LinearContract<Isa> {
  public:
    LinearProducts(const OutlayLinear& layer, const outlay::Activations& in, int tile_end, const outlay::LinearOutput& to)
        : layer_(layer), in_(in), to_(to), tile_end_(tile_end), tile_bytes_(outlay::tile_bytes(layer)) {}

    void run(int64_t row_begin, int64_t row_end, int tile_begin) const {
        switch (layer_.format) {
            case kQ4: return run_quantized<Q4, UnpackedQ4>(row_begin, row_end, tile_begin);
            case kQ8: return run_quantized<Q8, UnpackedQ8>(row_begin, row_end, tile_begin);
            case kBf16: return run_floats<outlay::Bf16>(row_begin, row_end, tile_begin);
            default: return run_floats<outlay::F32>(row_begin, row_end, tile_begin);
        }
    }

  private:
    using Q4 = typename Isa::Q4;
    using UnpackedQ4 = typename Isa::UnpackedQ4;
    using Q8 = typename Isa::Q8;
    using UnpackedQ8 = typename Isa::UnpackedQ8;
    template <class Format>
    static constexpr bool kIsQ4 = std::is_same_v<Format, Q4> || std::is_same_v<Format, UnpackedQ4>;
    template <class Format>
    static constexpr bool kIsQuantized = kIsQ4<Format> || std::is_same_v<Format, Q8> || std::is_same_v<Format, UnpackedQ8>;
    template <class Format>
    static constexpr bool kIsUnpacked = kIsQuantized<Format> && !std::is_same_v<Format, Q4> && !std::is_same_v<Format, Q8>;

    const uint8_t* tile(int index) const { return layer_.weights + size_t(index) * tile_bytes_; }

    template <class Format, class Unpacked>
    void run_quantized(int64_t row_begin, int64_t row_end, int tile_begin) const {
        if (row_end - row_begin > (kBlocksToUnpack - 1) * Isa::kRows) {
            run_tiles<Unpacked, 1, Isa::kRows>(row_begin, row_end, tile_begin);
        } else {
            run_tiles<Format, 1, Isa::kRows>(row_begin, row_end, tile_begin);
        }
    }

    template <class Format>
    void run_floats(int64_t row_begin, int64_t row_end, int tile_begin) const {
        if (row_end - row_begin == 1) {
            run_tiles<Format, Isa::kTilesOfOneRow, 1>(row_begin, row_end, tile_begin);
        } else {
            run_tiles<Format, Isa::kFloatTiles, Isa::kFloatRows>(row_begin, row_end, tile_begin);
        }
    }

    // T tiles at a time with all rows, R at a time.
    template <class Format, int T, int R>
    void run_tiles(int64_t row_begin, int64_t row_end, int tile_begin) const {
        for (int first = tile_begin; first < tile_end_; first += T) {
            const uint8_t* tiles[T];  // where fewer are left, the last one is computed again
            for (int t = 0; t < T; ++t) tiles[t] = tile(std::min(first + t, tile_end_ - 1));
            if constexpr (kIsUnpacked<Format>) {
                const int groups = layer_.k / outlay::kGroup;
                uint8_t* unpacked = outlay::thread_buffer(outlay::ThreadBuffer::kTile, size_t(groups) * Format::kBytes);
                unpack(Format(), tiles[0], groups, unpacked);
                tiles[0] = unpacked;
            }
            for (int64_t row = row_begin; row < row_end; row += R) run_block<Format, T, R>(tiles, first, row, row_end - row);
        }
    }

    static void unpack(UnpackedQ4, const uint8_t* tile, int groups, uint8_t* out) {
        for (; groups > 0; --groups, tile += outlay::kQ4Block, out += kUnpackedQ4Bytes) {
            Isa::halves_to_floats(tile, reinterpret_cast<float*>(out));
            Isa::halves_to_floats(tile + 32, reinterpret_cast<float*>(out + 64));
            for (int i = 0; i < 256; ++i) out[128 + i] = tile[64 + i] & 15, out[384 + i] = tile[64 + i] >> 4;
        }
    }

    // The weights become unsigned, 128 too large.
    static void unpack(UnpackedQ8, const uint8_t* tile, int groups, uint8_t* out) {
        for (; groups > 0; --groups, tile += outlay::kQ8Block, out += kUnpackedQ8Bytes) {
            Isa::halves_to_floats(tile, reinterpret_cast<float*>(out));
            for (int i = 0; i < 512; ++i) out[64 + i] = tile[32 + i] ^ 128;
        }
    }

    // T tiles with R rows, or with the rows that are left.
    template <class Format, int T, int R>
    void run_block(const uint8_t* const* tiles, int first, int64_t row, int64_t rows_left) const {
        if constexpr (R > 1) {
            if (rows_left < R) return run_block<Format, T, R - 1>(tiles, first, row, rows_left);
        }
        alignas(64) float acc[R * T][outlay::kTile];
        dot<Format, T, R>(tiles, first, row, acc);
        const int written = std::min(T, tile_end_ - first);
        for (int r = 0; r < R; ++r)
            for (int t = 0; t < written; ++t)
                write_tile(acc[r * T + t], to_.out + (row + r) * to_.stride, first + t, layer_.m, to_);
    }

    template <class Format, int T, int R>
    void dot(const uint8_t* const* tiles, int first, int64_t row, float (*acc)[outlay::kTile]) const {
        if constexpr (kIsQuantized<Format>) {
            const int groups = layer_.k / outlay::kGroup;
            const outlay::QuantizedGroup* x = in_.q + row * groups;
            if constexpr (kIsQ4<Format>) {
                Isa::template dot_q4<Format, R>(tiles[0], groups, x, tile(first + 1), acc);
            } else {
                Isa::template dot_q8<Format, R>(tiles[0], groups, x, tile(first + 1), acc);
            }
        } else {
            std::fill_n(acc[0], R * T * outlay::kTile, 0.0f);
            Isa::template dot_float<Format, T, R>(tiles, layer_.k, in_.x + row * layer_.k, layer_.k, T * tile_bytes_, acc);
        }
    }

    const OutlayLinear& layer_;
    const outlay::Activations& in_;
    const outlay::LinearOutput& to_;
    const int tile_end_;
    const size_t tile_bytes_;
};

// Rows are cut into panels whose inputs stay in the second-level cache.
template <class Isa>
void linear(const OutlayLinear& layer, const outlay::Activations& in, int64_t row_begin, int64_t row_end, int tile_begin,
            int tile_end, const outlay::LinearOutput& to) {
    const LinearProducts<Isa> products(layer, in, tile_end, to);
    const bool quantized = layer.format == kQ4 || layer.format == kQ8;
    const int64_t block = quantized ? Isa::kRows : Isa::kFloatRows;
    const int64_t row_bytes = quantized ? layer.k / outlay::kGroup * int64_t(sizeof(outlay::QuantizedGroup)) : layer.k * 4;
    const int64_t panel_rows = std::max<int64_t>(kPanelBytes / row_bytes / block, 4) * block;
    for (int64_t panel = row_begin; panel < row_end; panel += panel_rows)
        products.run(panel, std::min(row_end, panel + panel_rows), tile_begin);
}

// The products of a format that is unpacked to bfloat16. Some tiles are unpacked for some inputs at a time, so that they stay in
// the first-level cache, and the sums of all rows go on from there.
template <class Isa>
class UnpackedProducts {
  public:
    UnpackedProducts(outlay::Unpack unpack, const OutlayLinear& layer, const outlay::Activations& in, int tile_end,
                     const outlay::LinearOutput& to)
        : unpack_(unpack), layer_(layer), in_(in), to_(to), tile_end_(tile_end) {}

    void run(int64_t row_begin, int64_t row_end, int tile_begin) const {
        if (row_end - row_begin == 1) {
            run_tiles<Isa::kTilesOfOneRow, 1>(row_begin, row_end, tile_begin);
        } else {
            run_tiles<Isa::kFloatTiles, Isa::kFloatRows>(row_begin, row_end, tile_begin);
        }
    }

  private:
    static constexpr int kPiece = 4;  // groups of inputs: 4 KB of a tile
    static constexpr int kTileBytes = kPiece * outlay::kGroup * outlay::Bf16::kBytes;

    // T tiles at a time with all rows, R at a time.
    template <int T, int R>
    void run_tiles(int64_t row_begin, int64_t row_end, int tile_begin) const {
        const int64_t rows = row_end - row_begin;
        const int groups = layer_.k / outlay::kGroup;
        uint8_t* pieces = outlay::thread_buffer(outlay::ThreadBuffer::kPlainTile, T * kTileBytes + rows * T * sizeof(Sums));
        Sums* sums = reinterpret_cast<Sums*>(pieces + T * kTileBytes);  // [row][T], as the blocks of R rows have them
        const uint8_t* tiles[T];
        for (int t = 0; t < T; ++t) tiles[t] = pieces + t * kTileBytes;
        for (int first = tile_begin; first < tile_end_; first += T) {
            const int used = std::min(T, tile_end_ - first);
            std::fill_n(sums[0], rows * T * outlay::kTile, 0.0f);
            for (int g = 0; g < groups; g += kPiece) {
                const int taken = std::min(kPiece, groups - g);
                for (int t = 0; t < used; ++t) unpack_(layer_, first + t, g, taken, pieces + t * kTileBytes);
                const float* x = in_.x + row_begin * layer_.k + g * outlay::kGroup;
                for (int64_t row = 0; row < rows; row += R)
                    add_block<T, R>(tiles, taken * outlay::kGroup, x + row * layer_.k, rows - row, sums + row * T);
            }
            for (int64_t row = 0; row < rows; ++row)
                for (int t = 0; t < used; ++t)
                    write_tile(sums[row * T + t], to_.out + (row_begin + row) * to_.stride, first + t, layer_.m, to_);
        }
    }

    template <int T, int R>
    void add_block(const uint8_t* const* tiles, int k, const float* x, int64_t rows_left, float (*sums)[outlay::kTile]) const {
        if constexpr (R > 1) {
            if (rows_left < R) return add_block<T, R - 1>(tiles, k, x, rows_left, sums);
        }
        Isa::template dot_float<outlay::Bf16, T, R>(tiles, k, x, layer_.k, 0, sums);
    }

    using Sums = float[outlay::kTile];
    const outlay::Unpack unpack_;
    const OutlayLinear& layer_;
    const outlay::Activations& in_;
    const outlay::LinearOutput& to_;
    const int tile_end_;
};

// Rows are cut into panels whose sums stay in the first-level cache beside the weights.
template <class Isa>
void linear_of_unpacked(outlay::Unpack unpack, const OutlayLinear& layer, const outlay::Activations& in, int64_t row_begin,
                        int64_t row_end, int tile_begin, int tile_end, const outlay::LinearOutput& to) {
    constexpr int64_t kPanelRows = std::max(64 / Isa::kFloatRows, 1) * Isa::kFloatRows;
    const UnpackedProducts<Isa> products(unpack, layer, in, tile_end, to);
    for (int64_t panel = row_begin; panel < row_end; panel += kPanelRows)
        products.run(panel, std::min(row_end, panel + kPanelRows), tile_begin);
}

}  // namespace
