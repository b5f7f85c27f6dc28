// The inner loops, one table of functions for each instruction set. All of them give the same bits.
#pragma once
#include <cstddef>

#include "abi.h"

namespace outlay {

constexpr int kTile = 16;       // output channels that are interleaved
constexpr int kMaxTiles = 4;    // tiles of a float format that are computed together for a single row
constexpr int kGroup = 32;      // weights that share a scale
constexpr int kQ4Block = 320;   // bytes of a tile's group
constexpr int kQ8Block = 544;

// The inputs of a linear layer. Quantized formats read q, scale, sum and isum; the others read x.
struct Activations {
    const float* x;         // [rows, k]
    const int8_t* q;        // [rows, k]
    const float* scale;     // [rows, k/32]
    const float* sum;       // [rows, k/32]: scale times the sum of the group's q
    const int32_t* isum;    // [rows, k/32]: the sum of the group's q
};

struct Output {
    float* out;             // [rows, m]
    const float* bias;      // [m] or null
    bool add;               // add to what is there (the residual stream)
};

// One item of attention: some heads of one kv head, for a block of rows.
struct AttendItem {
    const float* q;         // first head of row 0; heads are head_dim apart
    int64_t q_stride;       // between rows
    const float* k;         // of this kv head
    const float* v;
    int64_t slot_stride;
    const OutlayPiece* pieces;
    const int64_t* span_start;  // [n+1] into the two arrays below: the pieces that each row reads, in order
    const int32_t* span_piece;
    const int32_t* span_index;  // the row's place among the piece's rows
    int64_t row_begin, row_end; // at most kRowBlock
    int head_dim, n_heads;
    float scale;
    float* scores;          // [rows, n_heads, score_stride]
    int64_t score_stride;
    float* out;             // first head of row 0
    int64_t out_stride;
    float* lse;             // first head of row 0, or null
    int64_t lse_stride;
};
constexpr int kRowBlock = 8;

struct Kernels {
    const char* name;
    void (*quantize)(const float* x, int k, int8_t* q, float* scale, float* sum, int32_t* isum);
    void (*linear)(const OutlayLinear& layer, const Activations& in, int64_t row_begin, int64_t row_end, int tile_begin,
                   int tile_end, const Output& out);
    void (*rms_norm)(const float* x, const float* weight, int n, float eps, float* out);
    void (*rope)(float* x, const float* cos, const float* sin, int half);
    void (*silu_mul)(const float* gate, const float* up, int n, float* out);
    void (*add)(const float* x, int n, float* out);
    void (*exp)(const float* x, int n, float* out);
    void (*attend)(const AttendItem& item);
    int64_t (*argmax)(const float* x, int64_t n);
};

extern const Kernels kScalarKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

inline int tiles_of(const OutlayLinear& layer) { return (layer.m + kTile - 1) / kTile; }

inline size_t tile_bytes(const OutlayLinear& layer) {
    switch (layer.format) {
        case kQ4: return size_t(layer.k / kGroup) * kQ4Block;
        case kQ8: return size_t(layer.k / kGroup) * kQ8Block;
        case kBf16: return size_t(layer.k) * kTile * 2;
        default: return size_t(layer.k) * kTile * 4;
    }
}

}  // namespace outlay
