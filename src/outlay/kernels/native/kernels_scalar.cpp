// Portable kernels: the reference that the vector kernels must equal bit for bit.
#include "vec_scalar.h"

#include "attend.h"

namespace {

struct RowView;

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

template <int R>
void dot_q4(const uint8_t* tile, int groups, const RowView* rows, float (*acc)[outlay::kTile]);
template <int R>
void dot_q8(const uint8_t* tile, int groups, const RowView* rows, float (*acc)[outlay::kTile]);
template <int R>
void dot_bf16(const uint8_t* tile, int k, const RowView* rows, float (*acc)[outlay::kTile]);
template <int R>
void dot_f32(const uint8_t* tile, int k, const RowView* rows, float (*acc)[outlay::kTile]);

}  // namespace

#include "linear.h"

namespace {

template <int R>
void dot_q4(const uint8_t* tile, int groups, const RowView* rows, float (*acc)[outlay::kTile]) {
    for (int r = 0; r < R; ++r) {
        for (int c = 0; c < outlay::kTile; ++c) {
            float total = 0.0f;
            for (int g = 0; g < groups; ++g) {
                const uint8_t* block = tile + g * outlay::kQ4Block;
                const int8_t* q = rows[r].q + g * outlay::kGroup;
                int32_t dot = 0;
                for (int i = 0; i < 16; ++i) {
                    const uint8_t pair = block[64 + (i / 4) * 64 + c * 4 + i % 4];
                    dot += (pair & 15) * q[i] + (pair >> 4) * q[16 + i];
                }
                total = std::fma(float(dot), half_to_float(block + 2 * c) * rows[r].scale[g], total);
                total = std::fma(half_to_float(block + 32 + 2 * c), rows[r].sum[g], total);
            }
            acc[r][c] = total;
        }
    }
}

template <int R>
void dot_q8(const uint8_t* tile, int groups, const RowView* rows, float (*acc)[outlay::kTile]) {
    for (int r = 0; r < R; ++r) {
        for (int c = 0; c < outlay::kTile; ++c) {
            float total = 0.0f;
            for (int g = 0; g < groups; ++g) {
                const uint8_t* block = tile + g * outlay::kQ8Block;
                const int8_t* q = rows[r].q + g * outlay::kGroup;
                int32_t dot = 0;
                for (int i = 0; i < 32; ++i) dot += int8_t(block[32 + (i / 4) * 64 + c * 4 + i % 4]) * q[i];
                total = std::fma(float(dot), half_to_float(block + 2 * c) * rows[r].scale[g], total);
            }
            acc[r][c] = total;
        }
    }
}

template <int R>
void dot_bf16(const uint8_t* tile, int k, const RowView* rows, float (*acc)[outlay::kTile]) {
    for (int r = 0; r < R; ++r) {
        for (int c = 0; c < outlay::kTile; ++c) {
            float total = 0.0f;
            for (int i = 0; i < k; ++i) {
                uint32_t bits = 0;
                std::memcpy(reinterpret_cast<char*>(&bits) + 2, tile + (size_t(i) * outlay::kTile + c) * 2, 2);
                float weight;
                std::memcpy(&weight, &bits, 4);
                total = std::fma(rows[r].x[i], weight, total);
            }
            acc[r][c] = total;
        }
    }
}

template <int R>
void dot_f32(const uint8_t* tile, int k, const RowView* rows, float (*acc)[outlay::kTile]) {
    const float* weights = reinterpret_cast<const float*>(tile);
    for (int r = 0; r < R; ++r) {
        for (int c = 0; c < outlay::kTile; ++c) {
            float total = 0.0f;
            for (int i = 0; i < k; ++i) total = std::fma(rows[r].x[i], weights[size_t(i) * outlay::kTile + c], total);
            acc[r][c] = total;
        }
    }
}

void dot_bf16_tiles(const uint8_t* const* tiles, int k, const float* x, float (*acc)[outlay::kTile]) {
    const RowView row = {x, nullptr, nullptr, nullptr, nullptr};
    for (int t = 0; t < outlay::kMaxTiles; ++t) dot_bf16<1>(tiles[t], k, &row, acc + t);
}

void dot_f32_tiles(const uint8_t* const* tiles, int k, const float* x, float (*acc)[outlay::kTile]) {
    const RowView row = {x, nullptr, nullptr, nullptr, nullptr};
    for (int t = 0; t < outlay::kMaxTiles; ++t) dot_f32<1>(tiles[t], k, &row, acc + t);
}

}  // namespace

const outlay::Kernels outlay::kScalarKernels = {"scalar",  quantize,  linear, rms_norm, rope,
                                                silu_mul, add_array, exp_array, attend,  argmax};
