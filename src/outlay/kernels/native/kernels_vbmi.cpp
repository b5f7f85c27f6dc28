// Unpacking with VBMI and VBMI2, beside the other kernels of AVX-512.
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,popcnt,avx512f,avx512bw,avx512vl,avx512vbmi,avx512vbmi2")
#endif

#include "unpack_vbmi.h"

namespace {

struct VbmiBytes {
    OUTLAY_ALWAYS static __m512i look_up_64(__m512i table, __m512i index) { return _mm512_permutexvar_epi8(index, table); }
    OUTLAY_ALWAYS static __m512i look_up_128(__m512i low, __m512i index, __m512i high) {
        return _mm512_permutex2var_epi8(low, index, high);
    }
    OUTLAY_ALWAYS static __m512i spread_bytes(uint64_t mask, __m512i kept) {
        return _mm512_maskz_expand_epi8(mask, in_register(kept));
    }
    OUTLAY_ALWAYS static __m512i spread_words(uint32_t mask, __m512i kept) {
        return _mm512_maskz_expand_epi16(mask, in_register(kept));
    }

  private:
    // Keeps the compiler from expanding out of memory: some processors then take care of faults, place by place.
    OUTLAY_ALWAYS static __m512i in_register(__m512i value) {
        asm("" : "+v"(value));
        return value;
    }
};

}  // namespace

const outlay::Unpack outlay::kVbmiUnpack = unpack_tile<VbmiUnpacker<VbmiBytes>>;

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
