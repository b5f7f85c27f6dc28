// The steps of unpacking on AVX2: entries are loaded whole, and kept values spread by a table of shuffles.
#pragma once
#include <immintrin.h>

#include "unpack.h"

namespace {

// For each eight bits of a mask, where the values of its places come from; 128, which gives 0, for those without one.
struct Shuffles {
    alignas(16) uint8_t of_bytes[256][8] = {};
    alignas(16) uint8_t of_words[256][16] = {};
    uint8_t count[256] = {};

    constexpr Shuffles() {
        for (int mask = 0; mask < 256; ++mask) {
            for (int i = 0; i < 8; ++i) {
                const bool kept = mask >> i & 1;
                of_bytes[mask][i] = kept ? count[mask] : 128;
                of_words[mask][2 * i] = kept ? 2 * count[mask] : 128;
                of_words[mask][2 * i + 1] = kept ? 2 * count[mask] + 1 : 128;
                count[mask] += kept;
            }
        }
    }
};
constexpr Shuffles kShuffles;

inline int32_t load_quad(const int8_t* p) {
    int32_t bits;
    std::memcpy(&bits, p, 4);
    return bits;
}
inline int16_t load_pair(const int8_t* p) {
    int16_t bits;
    std::memcpy(&bits, p, 2);
    return bits;
}
inline __m128i load_eight(const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }

// The entries of one input's vectors, whose indices lie 16 apart: a byte for each channel.
template <int V>
inline __m128i entries_of(const int8_t* entries, const uint16_t* index) {
    const auto at = [=](int vector) { return entries + index[16 * vector] * V; };
    if constexpr (V == 16) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at(0)));
    } else if constexpr (V == 8) {
        return _mm_unpacklo_epi64(load_eight(at(0)), load_eight(at(1)));
    } else if constexpr (V == 4) {
        return _mm_setr_epi32(load_quad(at(0)), load_quad(at(1)), load_quad(at(2)), load_quad(at(3)));
    } else {
        return _mm_setr_epi16(load_pair(at(0)), load_pair(at(1)), load_pair(at(2)), load_pair(at(3)), load_pair(at(4)),
                              load_pair(at(5)), load_pair(at(6)), load_pair(at(7)));
    }
}

struct Avx2Unpacker : PortableUnpacker {
    template <int V>
    static void look_up_vectors(const OutlayCodebook& book, const uint8_t* block, int groups, uint8_t* out) {
        const int bytes = outlay::index_bytes(V, book.bits + book.residual_bits);
        for (; groups > 0; --groups, block += bytes, out += outlay::kQ8Block) {
            const Indices indices(book, block);
            __m128i* to = reinterpret_cast<__m128i*>(out + 2 * outlay::kTile);
            for (int k = 0; k < outlay::kGroup; k += 4, to += 4) {
                __m128i weights[4];
                for (int b = 0; b < 4; ++b) {
                    const int field = k / 16 * (256 / V) + (k + b) % 16;
                    weights[b] = entries_of<V>(book.entries, indices.main + field);
                    if (book.residual_bits)
                        weights[b] = _mm_add_epi8(weights[b], entries_of<V>(book.residual, indices.residual + field));
                }
                // Four bytes of each channel: of the inputs from k on.
                const __m128i low = _mm_unpacklo_epi8(weights[0], weights[1]), low2 = _mm_unpacklo_epi8(weights[2], weights[3]);
                const __m128i high = _mm_unpackhi_epi8(weights[0], weights[1]), high2 = _mm_unpackhi_epi8(weights[2], weights[3]);
                _mm_storeu_si128(to, _mm_unpacklo_epi16(low, low2));
                _mm_storeu_si128(to + 1, _mm_unpackhi_epi16(low, low2));
                _mm_storeu_si128(to + 2, _mm_unpacklo_epi16(high, high2));
                _mm_storeu_si128(to + 3, _mm_unpackhi_epi16(high, high2));
            }
        }
    }

    static void look_up(const OutlayCodebook& book, const uint8_t* block, int groups, uint8_t* out) {
        switch (book.v) {
            case 2: return look_up_vectors<2>(book, block, groups, out);
            case 4: return look_up_vectors<4>(book, block, groups, out);
            case 8: return look_up_vectors<8>(book, block, groups, out);
            default: return look_up_vectors<16>(book, block, groups, out);
        }
    }

    static void spread_bytes(const uint8_t* mask, const uint8_t* kept, uint8_t* out) {
        for (int i = 0; i < outlay::kMaskBytes; ++i) {
            const __m128i values = _mm_shuffle_epi8(load_eight(kept), load_eight(kShuffles.of_bytes[mask[i]]));
            _mm_storel_epi64(reinterpret_cast<__m128i*>(out + 8 * i), values);
            kept += kShuffles.count[mask[i]];
        }
    }

    static void spread_words(const uint8_t* mask, const uint8_t* kept, uint8_t* out) {
        for (int i = 0; i < outlay::kMaskBytes; ++i) {
            const __m128i from = _mm_load_si128(reinterpret_cast<const __m128i*>(kShuffles.of_words[mask[i]]));
            const __m128i values = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(kept)), from);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16 * i), values);
            kept += 2 * kShuffles.count[mask[i]];
        }
    }
};

}  // namespace
