// The plain C interface of the library: the structures that Python fills through ctypes.
#pragma once
#include <cstdint>

#define OUTLAY_API extern "C" __attribute__((visibility("default")))

// How the weights of a linear layer are held. All layouts interleave 16 output channels, so that the inner loops
// need no horizontal additions. Per tile of 16 channels, in order of k:
//   q4   per group of 32: 16 half scales d, 16 half minima m, then [4][16][4] bytes; byte (j, c, b) holds k = 4j+b in
//        its low and k = 16+4j+b in its high nibble; w = d*q + m (320 bytes)
//   q8   per group of 32: 16 half scales d, then [8][16][4] int8; byte (j, c, b) holds k = 4j+b (544 bytes)
//   bf16 [k][16] bfloat16
//   f32  [k][16] float
enum OutlayFormat : int32_t { kQ4 = 0, kQ8 = 1, kBf16 = 2, kF32 = 3 };

struct OutlayLinear {
    const uint8_t* data;
    int32_t format;
    int32_t m;  // output channels
    int32_t k;  // input channels
    int32_t reserved;
};

// Rows of integers [rows, k], signed where there are no minima, with a half scale (and minimum) for each group of 32.
struct OutlayTable {
    const uint8_t* q;
    const uint16_t* scales;
    const uint16_t* mins;  // or null
    int64_t k;
};

// A run of keys which some rows of the pass read.
struct OutlayPiece {
    int64_t start;          // first slot
    int64_t length;         // number of keys
    const int64_t* slots;   // [length] or null: then the keys lie in slots start, start+1, ...
    int64_t n_rows;
    const int64_t* rows;    // [n_rows] or null: then all rows of the pass, in order
    const uint8_t* mask;    // [n_rows, length], 1 = visible, or null
    const int64_t* limits;  // [n_rows] or null: row i sees the first limits[i] keys
};

struct OutlayPlan {
    const OutlayPiece* pieces;
    int64_t n_pieces;
};

// How keys and values are held. int8: a value is q times the scale of its group of dimensions.
enum OutlayCacheFormat : int32_t { kCacheF32 = 0, kCacheBf16 = 1, kCacheQ8 = 2 };

// One layer's keys and values, [num_kv_heads, capacity, head_dim] with the strides below (in elements; for int8 a slot's
// heads have no gaps: its scales are [num_kv_heads, capacity, head_dim / group] in the same order).
struct OutlayCache {
    void* k;
    void* v;
    float* k_scale;  // or null
    float* v_scale;
    int64_t head_stride;
    int64_t slot_stride;
    int32_t format;
    int32_t group;  // dimensions that share a scale, a multiple of 8
};

enum OutlayActivation : int32_t { kSilu = 0, kGelu = 1, kGeluTanh = 2, kRelu = 3 };

// RMSNorm, or LayerNorm where there is a bias; no norm at all where there is no weight.
struct OutlayNorm {
    const float* weight;
    const float* bias;
};

// A linear layer with its bias, or null.
struct OutlayBiased {
    OutlayLinear linear;
    const float* bias;
};

struct OutlayLayer {
    OutlayNorm attn_norm;
    OutlayBiased qkv;     // rows: all of q, then k, then v
    const float* q_norm;  // [head_dim] or null: RMSNorm of every query head before the rotation
    const float* k_norm;
    OutlayBiased out;
    OutlayNorm post_attn_norm;  // of what attention adds to the residual stream
    OutlayNorm mlp_norm;
    OutlayBiased gate_up;  // rows: all of gate, if the model is gated, then up
    OutlayBiased down;
    OutlayNorm post_mlp_norm;
    OutlayCache cache;
    int64_t plan;  // which of the pass's plans this layer attends by
};

struct OutlayModel {
    int32_t n_layers, hidden, n_heads, n_kv_heads, head_dim, rope_dim, intermediate;
    int32_t activation, gated;
    float eps, attention_scale;
    float attention_softcap, logit_softcap;  // 0: none
    float embed_scale;                       // what the rows of `embed` are multiplied by
    const OutlayLayer* layers;
    OutlayNorm final_norm;
    OutlayLinear head;
    const float* cos;  // [positions, rope_dim / 2], or null: no rotation
    const float* sin;
    OutlayTable embed;  // the vectors of tokens [vocab, hidden]; q is null where rows are given as `hidden` only
    OutlayBiased fuse;  // of a draft head, [2 hidden] -> [hidden]: of a vector beside its token's; data is null: none
};

struct OutlayPass {
    int64_t n;                  // rows
    float* hidden;              // [n, hidden], overwritten with the last layer's residual stream; null: made of `tokens`
    const int64_t* tokens;      // [n]; negative: none, the row is its vector
    const float* const* vectors;  // [n], each [hidden] or null: stands in place of the token's, or is fused with it; or null
    const int64_t* positions;   // [n]
    const int64_t* slots;       // [n] where the new keys and values go
    const OutlayPlan* plans;
    int64_t n_plans;
    int64_t layer_begin, layer_end;
    int64_t n_head_rows;
    const int64_t* head_rows;  // [n_head_rows] or null: all rows
    float* logits;             // [n_head_rows, vocab] or null: not wanted
    int64_t top;               // how many of the largest logits of each row are wanted, in descending order
    int64_t* top_tokens;       // [n_head_rows, top]; the lower index first among equals
    float* top_logits;         // [n_head_rows, top]
    float* lse;                // [n_head_rows] the log-sum-exp of each row's logits, or null: not wanted
    int64_t n_picks;           // how many tokens of each row have their logit picked
    const int64_t* picks;      // [n_head_rows, n_picks] tokens
    float* picked;             // [n_head_rows, n_picks] their logits
    float* features;           // [slots, hidden] where what the head reads of each row is kept, by its slot; null: nowhere
};
