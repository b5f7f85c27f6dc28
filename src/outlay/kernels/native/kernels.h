// The inner loops, one table of functions for each instruction set. All of them give the same bits.
#pragma once
#include <cstddef>

#include "abi.h"

// For an inner loop whose registers should not be shared with its caller's, and for rare paths with many callers.
#define OUTLAY_NOINLINE __attribute__((noinline))

// For the parts of an inner loop, whose arrays stay in registers.
#define OUTLAY_ALWAYS __attribute__((always_inline))
#define OUTLAY_INLINE OUTLAY_ALWAYS inline

namespace outlay {

constexpr int kTile = 16;          // output channels that are interleaved
constexpr int kTilesTogether = 4;  // a multiple of the tiles that any kernel computes at once
constexpr int kGroup = 32;         // weights that share a scale
constexpr int kQ4Block = 320;      // bytes of a tile's group
constexpr int kQ8Block = 544;
constexpr int kMaskBytes = kGroup * kTile / 8;  // of a tile's group in the sparse formats

// The float formats, with the bytes of a tile's weights for one input.
struct Bf16 {
    static constexpr int kBytes = 2 * kTile;
};
struct F32 {
    static constexpr int kBytes = 4 * kTile;
};

// A group of a row's inputs, rounded to 8 bits.
struct QuantizedGroup {
    float scale;
    float sum;       // scale times the sum of q
    int32_t excess;  // -128 times the sum of q: corrects a dot product with the weights of q8 made unsigned
    int8_t q[kGroup];
};

// The inputs of a linear layer. Quantized formats read q, the others x.
struct Activations {
    const float* x;           // [rows, k]
    const QuantizedGroup* q;  // [rows, k/32]
};

struct LinearOutput {
    float* out;  // [rows, m], rows `stride` apart
    int64_t stride;
    const float* bias;  // [m] or null
    bool accumulate;    // add to `out` (the residual stream)
};

// The distance to keep rows of m floats at. At a distance of a few pages a column of them would fall into one set of the
// caches, which holds a dozen.
inline int64_t padded_stride(int64_t m) { return (m + kTile - 1) / kTile * kTile + kTile; }

// One item of attention: some query heads of one KV head, for a block of rows.
struct AttentionItem {
    const float* q;    // first head of row 0; heads are head_dim apart
    int64_t q_stride;  // between rows
    OutlayKVCache kv;  // of this KV head
    const OutlayAttentionSpan* spans;
    const int64_t* row_start;     // [n+1] into the two arrays below: the spans that each row attends to, in order
    const int32_t* span_of;       // index of the span
    const int32_t* place_in_span; // the row's place among the span's rows
    int64_t row_begin, row_end;   // at most kMaxRowBlock
    int head_dim, n_heads;
    float scale, softcap;
    float* scores;  // [rows, n_heads, score_stride]
    int64_t score_stride;
    float* floats;   // [kKeyTile, head_dim]: buffer for the keys or values of a bfloat16 or int8 cache
    float* columns;  // [head_dim, kKeyTile]: buffer for keys that many queries read, a key in each column
    float* out;     // first head of row 0
    int64_t out_stride;
    float* lse;  // first head of row 0, or null
    int64_t lse_stride;
    float* const* weights;  // [n] or null: what receives a row's weights, or null; from `weight_offset` on, a head each
    int64_t weight_stride, weight_offset;
};
constexpr int kRowBlock = 8;      // rows of an item where each reads keys of its own
constexpr int kMaxRowBlock = 64;  // where they share keys, which are widened once for all rows of an item
constexpr int kKeyTile = 64;      // keys whose K or V stay in the first-level cache while the rows pass over them

using Linear = void (*)(const OutlayLinear& layer, const Activations& in, int64_t row_begin, int64_t row_end, int tile_begin,
                        int tile_end, const LinearOutput& to);

// Writes some groups of inputs of a tile of a packed format in its plain format.
using Unpack = void (*)(const OutlayLinear& layer, int tile, int group, int groups, uint8_t* out);

// The products of a format that `unpack` makes bfloat16 of.
using UnpackedLinear = void (*)(Unpack unpack, const OutlayLinear& layer, const Activations& in, int64_t row_begin,
                                int64_t row_end, int tile_begin, int tile_end, const LinearOutput& to);

struct Kernels {
    const char* name;
    void (*quantize)(const float* x, int k, QuantizedGroup* out);
    Linear linear;  // of plain formats
    UnpackedLinear linear_of_unpacked;
    Unpack unpack;
    void (*rms_norm)(const float* x, const float* weight, int n, float eps, float* out);
    void (*rope)(float* x, const float* cos, const float* sin, int half);
    void (*layer_norm)(const float* x, const float* weight, const float* bias, int n, float eps, float* out);
    void (*activate)(int32_t kind, const float* gate, const float* up, int n, float* out);
    void (*softcap)(float cap, int n, float* x);
    void (*add)(const float* x, int n, float* out);
    void (*exp)(const float* x, int n, float* out);
    void (*attend)(const AttentionItem& item);
    void (*store_kv)(const OutlayKVCache& kv, int64_t at, const float* k, const float* v, int head_dim);
    float (*max)(const float* x, int64_t n);
    float (*sum_exp)(const float* x, int64_t n, float max);
    float (*sum_from)(const float* x, int64_t n, float least);
    double (*weigh)(const float* x, int n, float max, float temperature, float* out);
    void (*nearest)(const float* vectors, int64_t n, int v, const float* planes, const float* halves, int count, int64_t* out);
};

extern const Kernels kScalarKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Unpack kVbmiUnpack, kEmulatedVbmiUnpack;
#if defined(__linux__) && (__has_include(<amxint8intrin.h>) || __has_include(<amxintrin.h>))
#define OUTLAY_AMX
extern const Linear kAmxLinear, kEmulatedAmxLinear;  // all else is AVX-512's
#endif
// Older versions of clang know dot products only where every processor of the target has them.
#elif defined(__aarch64__) && (!defined(__clang__) || __clang_major__ >= 16 || defined(__ARM_FEATURE_DOTPROD))
#define OUTLAY_NEON
extern const Kernels kNeonKernels;
#endif

// Memory of the calling thread for one purpose; its content is lost when a call asks for more.
enum class ThreadBuffer { kTile, kLogits, kPlainTile };
uint8_t* thread_buffer(ThreadBuffer purpose, size_t bytes);

inline int tiles_of(const OutlayLinear& layer) { return (layer.m + kTile - 1) / kTile; }

// The format that a tile is multiplied in.
inline int32_t plain_format(int32_t format) {
    switch (format) {
        case kCodebook:
        case kSparseQ8: return kQ8;
        case kSparseQ4: return kQ4;
        case kSparseBf16: return kBf16;
        default: return format;
    }
}

// The bytes of a stream with an index for each vector of a tile's group.
inline int index_bytes(int v, int bits) { return kGroup * kTile / v * bits / 8; }

inline size_t tile_bytes(const OutlayLinear& layer) {
    const size_t groups = layer.k / kGroup, scales = 2 * kTile;
    switch (layer.format) {
        case kQ4: return groups * kQ4Block;
        case kQ8: return groups * kQ8Block;
        case kBf16: return size_t(layer.k) * kTile * 2;
        case kCodebook: return groups * index_bytes(layer.codebook->v, layer.codebook->bits + layer.codebook->residual_bits);
        case kSparseQ8: return groups * (scales + kMaskBytes + layer.kept);
        case kSparseQ4: return groups * (scales + kMaskBytes + layer.kept / 2);
        case kSparseBf16: return groups * (kMaskBytes + 2 * layer.kept);
        default: return size_t(layer.k) * kTile * 4;
    }
}

}  // namespace outlay
