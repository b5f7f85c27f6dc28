// Portable kernels: the reference that the vector kernels must equal bit for bit.
#include "kernels.h"
#include "vec_scalar.h"
#include "vec_pair.h"

namespace {

using outlay::QuantizedGroup;

inline float half_to_float(const uint8_t* p) {
    uint16_t h;
    std::memcpy(&h, p, 2);
    const uint32_t sign = uint32_t(h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 1023;
    if (exponent == 0) return (sign ? -1.0f : 1.0f) * float(fraction) * 0x1p-24f;
    const uint32_t bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// Calls sum(row, channel) for each of a tile's sums.
template <class Sum>
inline void each_sum(int rows, float (*acc)[outlay::kTile], const Sum& sum) {
    for (int r = 0; r < rows; ++r)
        for (int c = 0; c < outlay::kTile; ++c) acc[r][c] = sum(r, c);
}

// The weight of a channel, among a tile's for one input.
inline float load_weight(outlay::Bf16, const uint8_t* p, int c) {
    uint32_t bits = 0;
    std::memcpy(reinterpret_cast<char*>(&bits) + 2, p + 2 * c, 2);
    float weight;
    std::memcpy(&weight, &bits, 4);
    return weight;
}
inline float load_weight(outlay::F32, const uint8_t* p, int c) { return reinterpret_cast<const float*>(p)[c]; }

struct Scalar {
    static constexpr int kRows = 4, kFloatRows = 4, kFloatTiles = 1, kTilesOfOneRow = 1;

    static void halves_to_floats(const uint8_t* from, float* to) {
        for (int c = 0; c < outlay::kTile; ++c) to[c] = half_to_float(from + 2 * c);
    }

    // A group of a tile, and its weight for a channel's input.
    struct Q4 {
        static constexpr int kBytes = outlay::kQ4Block;
        const uint8_t* block;
        int weight(int c, int i) const {
            const uint8_t pair = block[64 + (i % 16 / 4) * 64 + c * 4 + i % 4];
            return i < 16 ? pair & 15 : pair >> 4;
        }
        float scale(int c) const { return half_to_float(block + 2 * c); }
        float minimum(int c) const { return half_to_float(block + 32 + 2 * c); }
    };
    struct UnpackedQ4 {
        static constexpr int kBytes = 640;
        const uint8_t* block;
        int weight(int c, int i) const { return block[128 + (i / 4) * 64 + c * 4 + i % 4]; }
        float scale(int c) const { return reinterpret_cast<const float*>(block)[c]; }
        float minimum(int c) const { return reinterpret_cast<const float*>(block)[outlay::kTile + c]; }
    };

    template <class Format, int R>
    static void dot_q4(const uint8_t* tile, int groups, const QuantizedGroup* x, const uint8_t*, float (*acc)[outlay::kTile]) {
        each_sum(R, acc, [=](int r, int c) {
            Format weights = {tile};
            float total = 0.0f;
            for (int g = 0; g < groups; ++g, weights.block += Format::kBytes) {
                const QuantizedGroup& group = x[r * groups + g];
                int32_t dot = 0;
                for (int i = 0; i < outlay::kGroup; ++i) dot += weights.weight(c, i) * group.q[i];
                total = std::fma(float(dot), weights.scale(c) * group.scale, total);
                total = std::fma(weights.minimum(c), group.sum, total);
            }
            return total;
        });
    }

    struct Q8 {
        static constexpr int kBytes = outlay::kQ8Block;
    };
    using UnpackedQ8 = Q8;  // signed weights are what the instructions here want

    template <class, int R>
    static void dot_q8(const uint8_t* tile, int groups, const QuantizedGroup* x, const uint8_t*, float (*acc)[outlay::kTile]) {
        each_sum(R, acc, [=](int r, int c) {
            const uint8_t* block = tile;
            float total = 0.0f;
            for (int g = 0; g < groups; ++g, block += outlay::kQ8Block) {
                const QuantizedGroup& group = x[r * groups + g];
                int32_t dot = 0;
                for (int i = 0; i < 32; ++i) dot += int8_t(block[32 + (i / 4) * 64 + c * 4 + i % 4]) * group.q[i];
                total = std::fma(float(dot), half_to_float(block + 2 * c) * group.scale, total);
            }
            return total;
        });
    }

    template <class Format, int T, int R>
    static void dot_float(const uint8_t* const* tiles, int k, const float* x, int64_t stride, size_t,
                          float (*acc)[outlay::kTile]) {
        static_assert(T == 1);
        each_sum(R, acc, [=](int r, int c) {
            float total = acc[r][c];
            for (int i = 0; i < k; ++i) {
                const float weight = load_weight(Format(), tiles[0] + size_t(i) * Format::kBytes, c);
                total = std::fma(x[r * stride + i], weight, total);
            }
            return total;
        });
    }
};

}  // namespace

#include "table.h"

const outlay::Kernels outlay::kScalarKernels = table_of<Scalar>("scalar");
