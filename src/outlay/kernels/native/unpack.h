// Packed formats: a tile of indices into a codebook, or of the weights that a mask keeps, becomes a tile of a plain format.
// Nothing is rounded, so every instruction set gives the same bytes. Written once over `Unpacker`, the class with the two
// steps that instruction sets do in their own ways: looking up entries, and spreading kept values over their places.
#pragma once
#include <cstring>

#include "kernels.h"

namespace {

constexpr int kBlockWeights = outlay::kGroup * outlay::kTile;
constexpr int kReadAhead = 64;  // bytes that a step may read behind what it needs

// The numbers of a stream of bits, the lowest first; up to three bytes are read behind the last.
inline void read_numbers(const uint8_t* stream, int bits, int n, uint16_t* out) {
    if (bits == 8) {
        for (int i = 0; i < n; ++i) out[i] = stream[i];
        return;
    }
    const uint32_t mask = (1u << bits) - 1;
    for (int i = 0, at = 0; i < n; ++i, at += bits) {
        uint32_t word;
        std::memcpy(&word, stream + at / 8, 4);
        out[i] = uint16_t(word >> at % 8 & mask);
    }
}

// The indices of a group of a tile, [2][16/v][16] each.
struct Indices {
    uint16_t main[kBlockWeights / 2], residual[kBlockWeights / 2];

    Indices(const OutlayCodebook& book, const uint8_t* block) {
        const int n = kBlockWeights / book.v;
        read_numbers(block, book.bits, n, main);
        if (book.residual_bits) read_numbers(block + outlay::index_bytes(book.v, book.bits), book.residual_bits, n, residual);
    }
};

struct PortableUnpacker {
    // Writes the bytes of a tile of q8.
    static void look_up(const OutlayCodebook& book, const uint8_t* block, int groups, uint8_t* out) {
        const int bytes = outlay::index_bytes(book.v, book.bits + book.residual_bits);
        for (; groups > 0; --groups, block += bytes, out += outlay::kQ8Block) {
            const Indices indices(book, block);
            for (int field = 0; field < kBlockWeights / book.v; ++field) {
                const int channel = field / 16 * book.v % outlay::kTile, k = field / (256 / book.v) * 16 + field % 16;
                uint8_t* to = out + 2 * outlay::kTile + k / 4 * 64 + channel * 4 + k % 4;
                const int8_t* entry = book.entries + indices.main[field] * book.v;
                const int8_t* extra = book.residual_bits ? book.residual + indices.residual[field] * book.v : nullptr;
                for (int c = 0; c < book.v; ++c) to[4 * c] = uint8_t(entry[c] + (extra ? extra[c] : 0));
            }
        }
    }

    // Writes 512 values: the next one of `kept` where the mask has a bit, else 0.
    static void spread_bytes(const uint8_t* mask, const uint8_t* kept, uint8_t* out) {
        for (int i = 0; i < kBlockWeights; ++i) out[i] = mask[i / 8] >> i % 8 & 1 ? *kept++ : 0;
    }
    static void spread_words(const uint8_t* mask, const uint8_t* kept, uint8_t* out) {
        for (int i = 0; i < kBlockWeights; ++i, out += 2) {
            const bool is_kept = mask[i / 8] >> i % 8 & 1;
            if (is_kept) {
                std::memcpy(out, kept, 2), kept += 2;
            } else {
                std::memset(out, 0, 2);
            }
        }
    }
};

// -8 times a half, exactly; infinite where halves end.
inline uint16_t minus_eight_times(uint16_t half) {
    const uint16_t sign = ~half & 0x8000;
    int magnitude = half & 0x7fff;
    if (magnitude >= 0x7c00) return sign | uint16_t(magnitude);  // infinite or NaN
    if (magnitude >= 0x400) {
        magnitude = magnitude + (3 << 10) < 0x7c00 ? magnitude + (3 << 10) : 0x7c00;
    } else if ((magnitude *= 8) >= 0x400) {  // a subnormal whose product is none
        int exponent = 1;
        for (; magnitude >= 0x800; magnitude /= 2) ++exponent;
        magnitude = exponent << 10 | (magnitude & 0x3ff);
    }
    return sign | uint16_t(magnitude);
}

template <class Unpacker>
void unpack_codebook(const OutlayLinear& layer, const uint8_t* tile, int groups, uint8_t* out) {
    uint16_t scales[outlay::kTile];
    for (uint16_t& scale : scales) scale = layer.codebook->step;
    for (int g = 0; g < groups; ++g) std::memcpy(out + size_t(g) * outlay::kQ8Block, scales, sizeof scales);
    Unpacker::look_up(*layer.codebook, tile, groups, out);
}

template <class Unpacker>
void unpack_sparse_q8(const OutlayLinear& layer, const uint8_t* tile, int groups, uint8_t* out) {
    constexpr int kScales = 2 * outlay::kTile;
    for (; groups > 0; --groups, out += outlay::kQ8Block) {
        std::memcpy(out, tile, kScales);
        Unpacker::spread_bytes(tile + kScales, tile + kScales + outlay::kMaskBytes, out + kScales);
        tile += kScales + outlay::kMaskBytes + layer.kept;
    }
}

template <class Unpacker>
void unpack_sparse_q4(const OutlayLinear& layer, const uint8_t* tile, int groups, uint8_t* out) {
    constexpr int kScales = 2 * outlay::kTile;
    uint8_t kept[kBlockWeights + kReadAhead], bytes[kBlockWeights];
    for (; groups > 0; --groups, out += outlay::kQ4Block) {
        uint16_t scales[outlay::kTile], minima[outlay::kTile];
        std::memcpy(scales, tile, kScales);
        for (int c = 0; c < outlay::kTile; ++c) minima[c] = minus_eight_times(scales[c]);
        std::memcpy(out, scales, kScales), std::memcpy(out + kScales, minima, kScales);
        const uint8_t* nibbles = tile + kScales + outlay::kMaskBytes;
        // A weight that is not kept is 8, which the spreading can't fill in: it becomes so afterwards.
        for (int i = 0; i < layer.kept / 2; ++i) kept[2 * i] = (nibbles[i] & 15) ^ 8, kept[2 * i + 1] = (nibbles[i] >> 4) ^ 8;
        Unpacker::spread_bytes(tile + kScales, kept, bytes);
        for (int i = 0; i < 256; ++i) out[64 + i] = uint8_t((bytes[i] ^ 8) | (bytes[256 + i] ^ 8) << 4);
        tile += kScales + outlay::kMaskBytes + layer.kept / 2;
    }
}

template <class Unpacker>
void unpack_sparse_bf16(const OutlayLinear& layer, const uint8_t* tile, int groups, uint8_t* out) {
    for (; groups > 0; --groups, out += 2 * kBlockWeights) {
        Unpacker::spread_words(tile, tile + outlay::kMaskBytes, out);
        tile += outlay::kMaskBytes + 2 * layer.kept;
    }
}

template <class Unpacker>
void unpack_tile(const OutlayLinear& layer, int index, int group, int groups, uint8_t* out) {
    const size_t bytes = outlay::tile_bytes(layer), group_bytes = bytes / (layer.k / outlay::kGroup);
    const uint8_t* tile = layer.weights + size_t(index) * bytes + group * group_bytes;
    switch (layer.format) {
        case kCodebook: return unpack_codebook<Unpacker>(layer, tile, groups, out);
        case kSparseQ8: return unpack_sparse_q8<Unpacker>(layer, tile, groups, out);
        case kSparseQ4: return unpack_sparse_q4<Unpacker>(layer, tile, groups, out);
        default: return unpack_sparse_bf16<Unpacker>(layer, tile, groups, out);
    }
}

}  // namespace
