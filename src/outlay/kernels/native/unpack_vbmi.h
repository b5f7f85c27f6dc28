// The steps of unpacking on AVX-512 with VBMI and VBMI2: 64 bytes are looked up in 128 by one instruction, and kept values
// spread by one. Written over `Bytes`, which has those instructions or does the same without them.
#pragma once
#include "unpack_avx2.h"

namespace {

// A table of 64 or 256 bytes in registers.
template <class Bytes, int N>
struct ByteTable {
    __m512i part[N / 64];

    OUTLAY_ALWAYS explicit ByteTable(const int8_t* from) {
        for (int i = 0; i < N / 64; ++i) part[i] = _mm512_loadu_si512(from + 64 * i);
    }
    OUTLAY_ALWAYS __m512i operator[](__m512i index) const {
        if constexpr (N == 64) {
            return Bytes::look_up_64(part[0], index);
        } else {
            const __m512i low = Bytes::look_up_128(part[0], index, part[1]), high = Bytes::look_up_128(part[2], index, part[3]);
            return _mm512_mask_mov_epi8(low, _mm512_movepi8_mask(index), high);
        }
    }
};

// Sixty-four nibbles, the lower of a byte first, as bytes.
inline __m512i load_nibbles(const uint8_t* from) {
    const __m512i words = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    return _mm512_and_si512(_mm512_or_si512(words, _mm512_slli_epi16(words, 4)), _mm512_set1_epi8(15));
}

template <class Bytes>
struct VbmiUnpacker : Avx2Unpacker {
    // Makes columns of the rows of each 4 x 4 block of 32 bits: part c of result j is part j of each row's part c.
    OUTLAY_ALWAYS static void transpose(const __m512i* rows, __m512i* columns) {
        const __m512i low = _mm512_unpacklo_epi32(rows[0], rows[1]), low2 = _mm512_unpacklo_epi32(rows[2], rows[3]);
        const __m512i high = _mm512_unpackhi_epi32(rows[0], rows[1]), high2 = _mm512_unpackhi_epi32(rows[2], rows[3]);
        columns[0] = _mm512_unpacklo_epi64(low, low2), columns[1] = _mm512_unpackhi_epi64(low, low2);
        columns[2] = _mm512_unpacklo_epi64(high, high2), columns[3] = _mm512_unpackhi_epi64(high, high2);
    }

    // Vectors of four: 64 indices are those of a tile for 16 inputs. R is the residual's entries: 0, 16 or 256.
    template <int R>
    static void look_up_fours(const OutlayCodebook& book, const uint8_t* block, int groups, uint8_t* out) {
        using Main = ByteTable<Bytes, 256>;
        using Residual = ByteTable<Bytes, R == 256 ? 256 : 64>;
        const Main main[4] = {Main(book.planes), Main(book.planes + 256), Main(book.planes + 512), Main(book.planes + 768)};
        for (; groups > 0; --groups, block += 128 + (R == 256 ? 128 : R == 16 ? 64 : 0), out += outlay::kQ8Block) {
            for (int h = 0; h < 2; ++h) {
                const __m512i index = _mm512_loadu_si512(block + 64 * h);
                __m512i channels[4], columns[4];
                for (int c = 0; c < 4; ++c) channels[c] = main[c][index];
                if constexpr (R != 0) {
                    const uint8_t* from = block + 128 + (R == 16 ? 32 : 64) * h;
                    const __m512i extra = R == 16 ? load_nibbles(from) : _mm512_loadu_si512(from);
                    for (int c = 0; c < 4; ++c) {
                        const Residual residual(book.residual_planes + c * (R == 16 ? 64 : 256));
                        channels[c] = _mm512_add_epi8(channels[c], residual[extra]);
                    }
                }
                transpose(channels, columns);
                for (int j = 0; j < 4; ++j) _mm512_storeu_si512(out + 2 * outlay::kTile + 64 * (4 * h + j), columns[j]);
            }
        }
    }

    // Vectors of eight: 64 indices are those of a tile for 32 inputs.
    template <int R>
    static void look_up_eights(const OutlayCodebook& book, const uint8_t* block, int groups, uint8_t* out) {
        const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
        for (; groups > 0; --groups, block += 64 + (R == 256 ? 64 : R == 16 ? 32 : 0), out += outlay::kQ8Block) {
            const __m512i index = _mm512_loadu_si512(block);
            const __m512i extra = R == 16 ? load_nibbles(block + 64) : _mm512_loadu_si512(block + (R == 256 ? 64 : 0));
            __m512i channels[8], columns[8];
            for (int c = 0; c < 8; ++c) {
                channels[c] = ByteTable<Bytes, 256>(book.planes + 256 * c)[index];
                if constexpr (R != 0) {
                    constexpr int kEntries = R == 256 ? 256 : 64;
                    const ByteTable<Bytes, kEntries> residual(book.residual_planes + c * kEntries);
                    channels[c] = _mm512_add_epi8(channels[c], residual[extra]);
                }
            }
            transpose(channels, columns), transpose(channels + 4, columns + 4);
            for (int j = 0; j < 4; ++j) {
                uint8_t* to = out + 2 * outlay::kTile + 64 * j;
                _mm512_storeu_si512(to, _mm512_permutex2var_epi64(columns[j], first, columns[4 + j]));
                _mm512_storeu_si512(to + 256, _mm512_permutex2var_epi64(columns[j], second, columns[4 + j]));
            }
        }
    }

    static void look_up(const OutlayCodebook& book, const uint8_t* block, int groups, uint8_t* out) {
        if (book.bits == 8 && book.v == 4) {
            switch (book.residual_bits) {
                case 0: return look_up_fours<0>(book, block, groups, out);
                case 4: return look_up_fours<16>(book, block, groups, out);
                case 8: return look_up_fours<256>(book, block, groups, out);
            }
        }
        if (book.bits == 8 && book.v == 8) {
            switch (book.residual_bits) {
                case 0: return look_up_eights<0>(book, block, groups, out);
                case 4: return look_up_eights<16>(book, block, groups, out);
                case 8: return look_up_eights<256>(book, block, groups, out);
            }
        }
        Avx2Unpacker::look_up(book, block, groups, out);
    }

    static void spread_bytes(const uint8_t* mask, const uint8_t* kept, uint8_t* out) {
        for (int i = 0; i < outlay::kMaskBytes; i += 8) {
            uint64_t bits;
            std::memcpy(&bits, mask + i, 8);
            _mm512_storeu_si512(out + 8 * i, Bytes::spread_bytes(bits, _mm512_loadu_si512(kept)));
            kept += _mm_popcnt_u64(bits);
        }
    }

    static void spread_words(const uint8_t* mask, const uint8_t* kept, uint8_t* out) {
        for (int i = 0; i < outlay::kMaskBytes; i += 4) {
            uint32_t bits;
            std::memcpy(&bits, mask + i, 4);
            _mm512_storeu_si512(out + 16 * i, Bytes::spread_words(bits, _mm512_loadu_si512(kept)));
            kept += 2 * _mm_popcnt_u32(bits);
        }
    }
};

}  // namespace
