// The plain C interface of the library: the structures that Python fills through ctypes.
#pragma once
#include <cstdint>

#define OUTLAY_API extern "C" __attribute__((visibility("default")))

// The weight formats of a linear layer. All layouts interleave 16 output channels, so that the inner loops need no
// horizontal additions. Per tile of 16 channels, in order of k:
//   q4   per group of 32: 16 half scales d, 16 half minima m, then [4][16][4] bytes; byte (j, c, b) holds k = 4j+b in
//        its low and k = 16+4j+b in its high nibble; w = d*q + m (320 bytes)
//   q8   per group of 32: 16 half scales d, then [8][16][4] int8; byte (j, c, b) holds k = 4j+b (544 bytes)
//   bf16 [k][16] bfloat16
//   f32  [k][16] float
// Packed formats hold less than a byte or two for each weight, and a tile of them is unpacked to one of the plain formats
// above before it is multiplied. Each has 64 readable bytes behind its last tile.
//   codebook   unpacks to q8. Per group of 32: an index of `bits` bits for each vector of v channels and each input, in one
//              stream, the lowest bits first, in the order [2][16/v vectors][16]: k = 16 h + i; then the residual
//              indices likewise. The byte of a weight is entries[index] + residual[residual index], its scale the step
//   sparse q8  per group of 32: 16 half scales, a mask of 512 bits in the order of q8's bytes, and the int8 of those set
//   sparse q4  likewise, in nibbles, 8 added, the lower first; unpacks to q4 with the minima -8 d. Bits in q8's order
//   sparse bf16 per 32 inputs: a mask of 512 bits in bf16's order, and the bfloat16 of those set
enum OutlayFormat : int32_t {
    kQ4 = 0,
    kQ8 = 1,
    kBf16 = 2,
    kF32 = 3,
    kCodebook = 4,
    kSparseQ8 = 5,
    kSparseQ4 = 6,
    kSparseBf16 = 7
};

// The entries of a codebook on an 8-bit grid, and of its residual codebook. A sum of both fits a signed byte.
struct OutlayCodebook {
    const int8_t* entries;          // [2^bits][v]
    const int8_t* residual;         // [2^residual_bits][v], or null
    const int8_t* planes;           // [v][2^bits], as some instructions look them up
    const int8_t* residual_planes;  // [v][max(2^residual_bits, 64)], or null
    int32_t v;                      // channels of a vector: 2, 4, 8 or 16
    int32_t bits;                   // of an index, 1 to 16
    int32_t residual_bits;          // 0 to 16; 0: no residual
    uint16_t step;                  // half
};

// The weights of output channels that share a format.
struct OutlayLinear {
    const uint8_t* weights;
    int32_t format;
    int32_t m;                       // output channels
    int32_t k;                       // input channels
    int32_t kept;                    // of a tile's weights for 32 inputs, in the sparse formats
    const OutlayCodebook* codebook;  // or null
};

// A linear layer: parts that read the same input, the channels of each after those of the one before, in its own format.
struct OutlayStack {
    const OutlayLinear* parts;
    int32_t n_parts;    // 0: there is no such layer
    int32_t m;          // output channels of all parts
    int32_t k;          // input channels
    const float* bias;  // [m] or null
};

// A table of quantized rows [rows, k]: signed integers where there are no minima, with a half scale (and minimum) for each
// group of 32.
struct OutlayTable {
    const uint8_t* q;
    const uint16_t* scales;
    const uint16_t* mins;  // or null
    int64_t k;
};

// A run of keys and values of the KV cache, and the rows of the pass that attend to it.
struct OutlayAttentionSpan {
    int64_t start;          // first slot
    int64_t length;         // number of keys
    const int64_t* slots;   // [length] or null: the keys lie in slots start, start+1, ...
    int64_t n_rows;
    const int64_t* rows;    // [n_rows] or null: all rows of the pass, in order
    const uint8_t* mask;    // [n_rows, length], 1 = visible, or null
    const int64_t* limits;  // [n_rows] or null: row i sees the first limits[i] keys
};

struct OutlayAttentionPlan {
    const OutlayAttentionSpan* spans;
    int64_t n_spans;
};

// The formats of the KV cache. int8: a value is q times the scale of its group of dimensions.
enum OutlayKVFormat : int32_t { kKVF32 = 0, kKVBf16 = 1, kKVQ8 = 2 };

// One layer's KV cache, [num_kv_heads, capacity, head_dim] with the strides below, in elements. In int8 a slot's heads have
// no gaps: its scales are [num_kv_heads, capacity, head_dim / group] in the same order.
struct OutlayKVCache {
    void* k;
    void* v;
    float* k_scales;  // or null
    float* v_scales;
    int64_t head_stride;
    int64_t slot_stride;
    int32_t format;
    int32_t group;  // dimensions that share a scale, a multiple of 8
};

enum OutlayActivation : int32_t { kSilu = 0, kGelu = 1, kGeluTanh = 2, kRelu = 3, kQuickGelu = 4 };

// RMSNorm, or LayerNorm where there is a bias; the identity where there is no weight.
struct OutlayNorm {
    const float* weight;
    const float* bias;
};

struct OutlayLayer {
    OutlayNorm attn_norm;
    OutlayStack qkv;         // rows: all of q, then k, then v
    const float* q_norm;     // [head_dim] or null: RMSNorm of every query head before its rotation; where norms are wide,
                             // [n_heads * head_dim], of all query heads at once
    const float* k_norm;
    OutlayStack out;
    OutlayNorm post_attn_norm;  // of the attention output before it joins the residual stream
    OutlayNorm mlp_norm;
    OutlayStack gate_up;  // rows: all of gate, if the model is gated, then up
    OutlayStack down;
    OutlayNorm post_mlp_norm;
    OutlayKVCache kv;
    int64_t plan;  // index of this layer's plan among those of the pass
    const float* cos;  // [positions, rope_dim / 2], or null: its queries and keys are not rotated
    const float* sin;
};

struct OutlayModel {
    int32_t n_layers, hidden_size, n_heads, n_kv_heads, head_dim, rope_dim, intermediate_size;
    int32_t activation, gated;
    float eps, attention_scale;
    float attention_softcap, logit_softcap;  // 0: none
    float embed_scale;                       // factor on the rows of `embed`
    float residual_scale, logit_scale;       // factors on what joins the residual stream, and on logits before their cap
    int32_t wide_qk_norms;
    const OutlayLayer* layers;
    OutlayNorm final_norm;
    OutlayLinear lm_head;
    OutlayTable embed;        // the token embeddings [vocab, hidden_size]; q is null: passes take no tokens
    OutlayStack fuse;         // a draft head's [2 hidden_size] -> [hidden_size], of a hidden state beside its token's
                              // embedding; or none
};

// How probabilities are made of logits; `transformers` gives the options their meaning.
struct OutlaySampling {
    float temperature;  // above 0
    int32_t top_k;      // 0: all tokens
    double top_p;       // 1: all tokens
    double min_p;       // 0: all tokens
};

// A token to draw from a row's probabilities, whose cumulative sum is inverted at `uniform`, in [0, 1).
struct OutlayDraw {
    int64_t row;  // among those that have logits
    OutlaySampling sampling;
    double uniform;
};

// A stream of coded symbols: the state, and the words that are left, the last of which is read next.
struct OutlayAnsStream {
    uint64_t state;
    const uint32_t* words;
    int64_t left;
};

struct OutlayPass {
    int64_t n;                          // rows
    float* residual;                    // [n, hidden_size], overwritten with the last layer's residual stream; null: the
                                        // first layer reads the embeddings of `tokens` and `inputs_embeds`
    const int64_t* tokens;              // [n]; negative: none, the row is its input embedding
    const float* const* inputs_embeds;  // [n], each [hidden_size] or null; or null. Replaces the token's embedding, or is
                                        // fused with it
    const int64_t* positions;           // [n]
    const int64_t* slots;               // [n] where the new keys and values go
    const OutlayAttentionPlan* plans;
    int64_t n_plans;
    int64_t layer_begin, layer_end;
    int64_t n_lm_head_rows;
    const int64_t* lm_head_rows;  // [n_lm_head_rows] or null: all rows
    float* logits;                // [n_lm_head_rows, vocab] or null: not wanted
    int64_t top_k;                // how many of the largest logits of each row are wanted, in descending order
    int64_t* top_tokens;          // [n_lm_head_rows, top_k]; the lower token first among equals
    float* top_logits;            // [n_lm_head_rows, top_k]
    float* lse;                   // [n_lm_head_rows] the log-sum-exp of each row's logits, or null: not wanted
    int64_t n_picks;              // how many tokens of each row have their logit picked
    const int64_t* picks;         // [n_lm_head_rows, n_picks] tokens
    float* picked;                // [n_lm_head_rows, n_picks] their logits
    int64_t n_draws;
    const OutlayDraw* draws;      // [n_draws]
    int64_t* drawn;               // [n_draws] the tokens
    float* hidden_states;         // [slots, hidden_size]: receives the LM head's input of each row, in the row's slot; or null
    float* const* weights;        // [n] or null: for each row null, or [n_layers, n_heads, weight_stride]: receives the weight
                                  // of each key that the row goes over, span by span, 0 where it is masked
    int64_t weight_stride;        // the keys that a row goes over at most, up to a multiple of 16
};
