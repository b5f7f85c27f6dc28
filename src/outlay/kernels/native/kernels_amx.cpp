// Intel AMX: the products of 16 rows with a group of 16 channels in one instruction, for the quantized layers. Fewer rows
// and the other formats run on AVX-512. (AMX's bfloat16 products would round the inputs to 8 bits, and those of a single row
// would not.) The integer sums are exact and the float steps those of AVX-512.
#include "kernels.h"

#if defined(OUTLAY_AMX)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,amx-tile,amx-int8"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni,amx-tile,amx-int8")
#endif

#include "vec_avx2.h"
#include "vec_avx512.h"

#include "output.h"

namespace {

constexpr int kBlock = 16;          // rows of a tile register
constexpr int64_t kRowPanel = 128;  // rows whose sums stay in the first-level cache

// The compiler does not know what the tile instructions read: all that was written before must be in memory.
inline void compiler_barrier() { asm volatile("" ::: "memory"); }

// The processor's tile registers: 0 holds sums, 1 inputs, 2 weights.
class Tiles {
  public:
    Tiles() {
        alignas(64) uint8_t config[64] = {1};
        const auto shape = [&config](int tile, uint8_t rows, uint8_t bytes) {
            config[16 + 2 * tile] = bytes;
            config[48 + tile] = rows;
        };
        shape(0, kBlock, 64);
        shape(1, kBlock, outlay::kGroup);
        shape(2, outlay::kGroup / 4, 64);
        compiler_barrier();
        _tile_loadconfig(config);
    }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
    ~Tiles() { _tile_release(); }

    // sums[16][16] = inputs[16 rows, `stride` bytes apart][32] times weights[32/4][16][4], signed or unsigned.
    template <bool kSigned>
    void multiply(const int8_t* inputs, size_t stride, const uint8_t* weights, int32_t* sums) {
        compiler_barrier();
        _tile_zero(0);
        _tile_loadd(1, inputs, stride);
        _tile_loadd(2, weights, 64);
        if constexpr (kSigned) {
            _tile_dpbssd(0, 1, 2);
        } else {
            _tile_dpbsud(0, 1, 2);
        }
        _tile_stored(0, sums, 64);
    }
};

// The same in plain C++, so that the rest can be tested on any processor with AVX-512.
struct EmulatedTiles {
    template <bool kSigned>
    void multiply(const int8_t* inputs, size_t stride, const uint8_t* weights, int32_t* sums) {
        for (int r = 0; r < kBlock; ++r) {
            for (int c = 0; c < outlay::kTile; ++c) {
                int32_t sum = 0;
                for (int i = 0; i < outlay::kGroup; ++i) {
                    const uint8_t weight = weights[i / 4 * 64 + 4 * c + i % 4];
                    sum += inputs[r * stride + i] * (kSigned ? int8_t(weight) : weight);
                }
                sums[r * outlay::kTile + c] = sum;
            }
        }
    }
};

inline __m512 load_halves(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }

// acc[rows][16] += the products of one group of a tile.
template <class T>
inline void add_q4(T& tiles, const uint8_t* block, const outlay::QuantizedGroup* x, int groups, int rows,
                   float (*acc)[outlay::kTile]) {
    const __m512i nibble = _mm512_set1_epi8(15);
    alignas(64) uint8_t weights[outlay::kGroup * outlay::kTile];
    alignas(64) int32_t sums[kBlock * outlay::kTile];
    for (int j = 0; j < 4; ++j) {
        const __m512i packed = _mm512_loadu_si512(block + 64 + 64 * j);
        _mm512_store_si512(weights + 64 * j, _mm512_and_si512(packed, nibble));
        _mm512_store_si512(weights + 256 + 64 * j, _mm512_and_si512(_mm512_srli_epi16(packed, 4), nibble));
    }
    const __m512 scale = load_halves(block), minimum = load_halves(block + 32);
    for (int row = 0; row < rows; row += kBlock) {
        tiles.template multiply<false>(x[size_t(row) * groups].q, groups * sizeof(*x), weights, sums);
        for (int r = 0; r < kBlock; ++r) {
            const outlay::QuantizedGroup& group = x[size_t(row + r) * groups];
            const __m512 step = _mm512_mul_ps(scale, _mm512_set1_ps(group.scale));
            __m512 total = _mm512_load_ps(acc[row + r]);
            total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(sums + r * outlay::kTile)), step, total);
            _mm512_store_ps(acc[row + r], _mm512_fmadd_ps(minimum, _mm512_set1_ps(group.sum), total));
        }
    }
}

template <class T>
inline void add_q8(T& tiles, const uint8_t* block, const outlay::QuantizedGroup* x, int groups, int rows,
                   float (*acc)[outlay::kTile]) {
    alignas(64) int32_t sums[kBlock * outlay::kTile];
    const __m512 scale = load_halves(block);
    for (int row = 0; row < rows; row += kBlock) {
        tiles.template multiply<true>(x[size_t(row) * groups].q, groups * sizeof(*x), block + 32, sums);
        for (int r = 0; r < kBlock; ++r) {
            const __m512 step = _mm512_mul_ps(scale, _mm512_set1_ps(x[size_t(row + r) * groups].scale));
            const __m512 value = _mm512_cvtepi32_ps(_mm512_load_si512(sums + r * outlay::kTile));
            _mm512_store_ps(acc[row + r], _mm512_fmadd_ps(value, step, _mm512_load_ps(acc[row + r])));
        }
    }
}

template <class T>
void linear(const OutlayLinear& layer, const outlay::Activations& in, int64_t row_begin, int64_t row_end, int tile_begin,
            int tile_end, const outlay::LinearOutput& to) {
    const bool quantized = layer.format == kQ4 || layer.format == kQ8;
    const int64_t whole_end = quantized ? row_end - (row_end - row_begin) % kBlock : row_begin;
    if (whole_end < row_end) outlay::kAvx512Kernels.linear(layer, in, whole_end, row_end, tile_begin, tile_end, to);
    if (row_begin == whole_end) return;
    const int groups = layer.k / outlay::kGroup;
    const size_t block_bytes = layer.format == kQ4 ? outlay::kQ4Block : outlay::kQ8Block;
    T tiles;
    for (int64_t panel = row_begin; panel < whole_end; panel += kRowPanel) {
        const int rows = int(std::min(kRowPanel, whole_end - panel));
        for (int tile = tile_begin; tile < tile_end; ++tile) {
            const uint8_t* block = layer.weights + tile * outlay::tile_bytes(layer);
            const outlay::QuantizedGroup* x = in.q + panel * groups;
            alignas(64) float acc[kRowPanel][outlay::kTile] = {};
            for (int g = 0; g < groups; ++g, ++x, block += block_bytes)
                layer.format == kQ4 ? add_q4(tiles, block, x, groups, rows, acc) : add_q8(tiles, block, x, groups, rows, acc);
            for (int r = 0; r < rows; ++r) write_tile(acc[r], to.out + (panel + r) * to.stride, tile, layer.m, to);
        }
    }
}

}  // namespace

const outlay::Linear outlay::kAmxLinear = linear<Tiles>;
const outlay::Linear outlay::kEmulatedAmxLinear = linear<EmulatedTiles>;

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
