// AVX-512 with VNNI, for the quantized layers: a dot product of four bytes in one instruction, sixteen channels at once.
// Everything around them is AVX2's. The integer sums are exact and the float steps are the same, so the bits are too.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512vl,avx512vnni"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,popcnt,avx512f,avx512bw,avx512vl,avx512vnni")
#endif

#include "vec_avx2.h"
#include "vec_avx512.h"
#include "unpack_vbmi.h"

#include "dot_float.h"

namespace {

using outlay::QuantizedGroup;

// A dot product takes five cycles and two of them begin in each: fewer rows than ten need several at once for each row.
template <int R>
constexpr int kParts = R <= 2 ? 4 : R <= 8 ? 2 : 1;

inline __m512 load_halves(const void* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p))); }

#define ALWAYS_INLINE __attribute__((always_inline))
// Calls body(0) to body(R - 1), each with its index as a constant: arrays that it indexes stay in registers.
template <int... I, class Body>
ALWAYS_INLINE inline void each_of(std::integer_sequence<int, I...>, const Body& body) {
    (body(std::integral_constant<int, I>()), ...);
}
template <int R, class Body>
ALWAYS_INLINE inline void each_row_of(const Body& body) {
    each_of(std::make_integer_sequence<int, R>(), body);
}

// sum += the products of four weights of each channel and four inputs. Compilers would load the inputs by another
// instruction, and for a dozen rows keep as many pointers.
ALWAYS_INLINE inline void add_products(__m512i& sum, __m512i weights, const int8_t* inputs) {
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(weights), "m"(*reinterpret_cast<const int32_t*>(inputs)));
}

// The dot products of R rows with 16 channels, each in kParts<R> sums of integers.
template <int R>
struct Dots {
    __m512i part[R][kParts<R>];
    ALWAYS_INLINE Dots() {
        each_row_of<R>([&](auto r) ALWAYS_INLINE {
            for (int p = 0; p < kParts<R>; ++p) part[r][p] = _mm512_setzero_si512();
        });
    }
    // Adds the products of each row's four inputs, a row's `stride` after the one before, and the group's `index`-th weights.
    ALWAYS_INLINE void add(int index, __m512i weights, const int8_t* inputs, size_t stride) {
        each_row_of<R>([&](auto r) ALWAYS_INLINE { add_products(part[r][index % kParts<R>], weights, inputs + r * stride); });
    }
    ALWAYS_INLINE __m512 sum(int r) const {
        __m512i total = part[r][0];
        for (int p = 1; p < kParts<R>; ++p) total = _mm512_add_epi32(total, part[r][p]);
        return _mm512_cvtepi32_ps(total);
    }
};

struct Avx512 : VectorDotFloat<Avx512> {
    static constexpr int kRows = 12;  // 12 sums and 12 dot products
    static constexpr int kFloatRows = 8, kFloatTiles = 2, kTilesOfOneRow = 4;

    static void halves_to_floats(const uint8_t* from, float* to) { _mm512_storeu_ps(to, load_halves(from)); }
    // Into the second level: the first has room for few lines on their way, and the loads themselves want it.
    static void prefetch(const uint8_t* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T1); }

    struct Weights {
        __m512i low, high;  // four of each channel: of the inputs from 4 j on, and from 16 + 4 j on
    };
    // A group of a tile.
    struct Q4 {
        static constexpr int kBytes = outlay::kQ4Block;
        const uint8_t* block;
        Weights weights(int j) const {
            const __m512i nibble = _mm512_set1_epi8(15), packed = _mm512_loadu_si512(block + 64 + 64 * j);
            return {_mm512_and_si512(packed, nibble), _mm512_and_si512(_mm512_srli_epi16(packed, 4), nibble)};
        }
        __m512 scale() const { return load_halves(block); }
        __m512 minimum() const { return load_halves(block + 32); }
    };
    struct UnpackedQ4 {
        static constexpr int kBytes = 640;
        const uint8_t* block;
        Weights weights(int j) const {
            return {_mm512_load_si512(block + 128 + 64 * j), _mm512_load_si512(block + 384 + 64 * j)};
        }
        __m512 scale() const { return _mm512_load_ps(block); }
        __m512 minimum() const { return _mm512_load_ps(block + 64); }
    };

    template <class Format, int R>
    static void dot_q4(const uint8_t* tile, int groups, const QuantizedGroup* x, const uint8_t* next,
                       float (*acc)[outlay::kTile]) {
        const size_t stride = groups * sizeof(QuantizedGroup);
        __m512 total[R];
        each_row_of<R>([&](auto r) ALWAYS_INLINE { total[r] = _mm512_setzero_ps(); });
        for (int g = 0; g < groups; ++g, ++x, tile += Format::kBytes, next += outlay::kQ4Block) {
            for (int i = 0; i < outlay::kQ4Block; i += 64) prefetch(next + i);
            const Format group = {tile};
            Dots<R> dots;
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) {
                const Weights weights = group.weights(j);
                dots.add(2 * j, weights.low, x->q + 4 * j, stride);
                dots.add(2 * j + 1, weights.high, x->q + 16 + 4 * j, stride);
            }
            const __m512 scale = group.scale(), minimum = group.minimum();
            each_row_of<R>([&](auto r) ALWAYS_INLINE {
                const QuantizedGroup& inputs = x[r * groups];
                total[r] = _mm512_fmadd_ps(dots.sum(r), _mm512_mul_ps(scale, _mm512_set1_ps(inputs.scale)), total[r]);
                total[r] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(inputs.sum), total[r]);
            });
        }
        each_row_of<R>([&](auto r) ALWAYS_INLINE { _mm512_store_ps(acc[r], total[r]); });
    }

    // The instruction wants unsigned weights: w + 128.
    struct Q8 {
        static constexpr int kBytes = outlay::kQ8Block;
        const uint8_t* block;
        __m512i weights(int j) const {
            return _mm512_xor_si512(_mm512_loadu_si512(block + 32 + 64 * j), _mm512_set1_epi8(-128));
        }
        __m512 scale() const { return load_halves(block); }
    };
    struct UnpackedQ8 {
        static constexpr int kBytes = 576;
        const uint8_t* block;
        __m512i weights(int j) const { return _mm512_load_si512(block + 64 + 64 * j); }
        __m512 scale() const { return _mm512_load_ps(block); }
    };

    template <class Format, int R>
    static void dot_q8(const uint8_t* tile, int groups, const QuantizedGroup* x, const uint8_t* next,
                       float (*acc)[outlay::kTile]) {
        const size_t stride = groups * sizeof(QuantizedGroup);
        __m512 total[R];
        each_row_of<R>([&](auto r) ALWAYS_INLINE { total[r] = _mm512_setzero_ps(); });
        for (int g = 0; g < groups; ++g, ++x, tile += Format::kBytes, next += outlay::kQ8Block) {
            for (int i = 0; i < outlay::kQ8Block; i += 64) prefetch(next + i);
            const Format group = {tile};
            Dots<R> dots;  // from 128 times the sum of the inputs less, which is too much
            each_row_of<R>([&](auto r) ALWAYS_INLINE { dots.part[r][0] = _mm512_set1_epi32(x[r * groups].excess); });
#pragma GCC unroll 8
            for (int j = 0; j < 8; ++j) dots.add(j, group.weights(j), x->q + 4 * j, stride);
            const __m512 scale = group.scale();
            each_row_of<R>([&](auto r) ALWAYS_INLINE {
                total[r] = _mm512_fmadd_ps(dots.sum(r), _mm512_mul_ps(scale, _mm512_set1_ps(x[r * groups].scale)), total[r]);
            });
        }
        each_row_of<R>([&](auto r) ALWAYS_INLINE { _mm512_store_ps(acc[r], total[r]); });
    }
};

// What VBMI's instructions do, in plain C++, so that the unpacking by them can be tested on any processor with AVX-512.
struct EmulatedBytes {
    static __m512i look_up_128(__m512i low, __m512i index, __m512i high) {
        alignas(64) uint8_t table[128], of[64];
        _mm512_store_si512(table, low), _mm512_store_si512(table + 64, high), _mm512_store_si512(of, index);
        for (uint8_t& byte : of) byte = table[byte & 127];
        return _mm512_load_si512(of);
    }
    static __m512i look_up_64(__m512i table, __m512i index) {
        return look_up_128(table, _mm512_and_si512(index, _mm512_set1_epi8(63)), table);
    }
    template <class Mask, class Value>
    static __m512i spread(Mask mask, __m512i kept) {
        alignas(64) Value values[64 / sizeof(Value)], out[64 / sizeof(Value)];
        _mm512_store_si512(values, kept);
        const Value* next = values;
        for (size_t i = 0; i < 64 / sizeof(Value); ++i) out[i] = mask >> i & 1 ? *next++ : Value(0);
        return _mm512_load_si512(out);
    }
    static __m512i spread_bytes(uint64_t mask, __m512i kept) { return spread<uint64_t, uint8_t>(mask, kept); }
    static __m512i spread_words(uint32_t mask, __m512i kept) { return spread<uint32_t, uint16_t>(mask, kept); }
};

}  // namespace

#include "table.h"

const outlay::Kernels outlay::kAvx512Kernels = table_of<Avx512, Avx2Unpacker>("avx512vnni");
const outlay::Unpack outlay::kEmulatedVbmiUnpack = unpack_tile<VbmiUnpacker<EmulatedBytes>>;

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
