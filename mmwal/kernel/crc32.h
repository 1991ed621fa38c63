/* CRC-32 of zlib's polynomial, over memory, as fast as the CPU offers.
 *
 * mm_crc32(seed, data, size) is what zlib.crc32(data, seed) is. Call mm_crc32_init() once before.
 *
 * How it works. A message is a polynomial over GF(2); its CRC is the remainder of message * x^32 modulo
 *     P = x^32 + x^26 + x^23 + x^22 + x^16 + x^12 + x^11 + x^10 + x^8 + x^7 + x^5 + x^4 + x^2 + x + 1.
 * The checksum is "reflected": bit 0 of the first byte is the highest power. Two facts make every length one case:
 *
 *   - The start value (the inverted seed) is added to the first four bytes of the message.
 *   - Zeros before a message change nothing once the start value is zero.
 *
 * So a message of n bytes is a first block of 64 bytes (zeros, then the first n % 64 bytes, start value added) and
 * whole blocks after it. A `fold` takes the first block and the rest, and returns the remainder. Three are here.
 *
 * Folding with carry-less multiplication. Let a register of 128 bits hold H * x^64 + L, and let D more bits follow.
 * Moved up by D bits it is congruent to H * (x^(D+64) mod P) + L * (x^D mod P), which is shorter than 128 bits and is
 * added to the 128 bits that stand there. In reflected registers the product of two 64-bit factors comes out multiplied
 * by x, so the constants are x^(D+63) mod P and x^(D-1) mod P, bit-reflected over 64 bits: MM_FOLD_<D>_H and _L.
 * tests/kernel/test_crc32.py recomputes them, and tests/kernel/crc_test.c compares all folds bit by bit.
 */
#ifndef MMWAL_CRC32_H
#define MMWAL_CRC32_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define MM_CRC_BLOCK 64

/* The remainder of the first block and `blocks` blocks at `rest`, start value zero. */
typedef uint32_t (*mm_fold_fn)(const uint8_t first[MM_CRC_BLOCK], const uint8_t *rest, size_t blocks);

/* ---- portable: eight table look-ups for eight bytes */

static uint32_t mm_crc_table[8][256];

static inline uint32_t mm_crc_bitwise(uint32_t state, const uint8_t *data, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        state ^= data[i];
        for (int bit = 0; bit < 8; bit++)
            state = (state >> 1) ^ (UINT32_C(0xEDB88320) & (0u - (state & 1u)));
    }
    return state;
}

static inline uint32_t mm_crc_block_portable(uint32_t state, const uint8_t *block)
{
    for (int i = 0; i < MM_CRC_BLOCK; i += 8) {
        uint64_t eight;
        memcpy(&eight, block + i, 8);
        eight ^= state;
        state = 0;
        for (int byte = 0; byte < 8; byte++)
            state ^= mm_crc_table[7 - byte][(eight >> (8 * byte)) & 0xFF];
    }
    return state;
}

static uint32_t mm_fold_portable(const uint8_t first[MM_CRC_BLOCK], const uint8_t *rest, size_t blocks)
{
    uint32_t state = mm_crc_block_portable(0, first);
    for (; blocks > 0; blocks--, rest += MM_CRC_BLOCK)
        state = mm_crc_block_portable(state, rest);
    return state;
}

static mm_fold_fn mm_fold = mm_fold_portable;

/* ---- x86-64: carry-less multiplication, four registers of 128 bits, or of 512 */

#if defined(__x86_64__) && !defined(MMWAL_CRC_PORTABLE) && \
    ((defined(__GNUC__) && __GNUC__ >= 8) || (defined(__clang__) && __clang_major__ >= 8))
#define MMWAL_CRC_X86 1
#include <immintrin.h>

#define MM_FOLD_128_H 0x65673b4600000000
#define MM_FOLD_128_L 0x9ba54c6f00000000
#define MM_FOLD_256_H 0x9570d49500000000
#define MM_FOLD_256_L 0x01b5fd1d00000000
#define MM_FOLD_384_H 0x69ccfc0d00000000
#define MM_FOLD_384_L 0x2a28386200000000
#define MM_FOLD_512_H 0x653d982200000000
#define MM_FOLD_512_L 0xcad38e8f00000000
#define MM_FOLD_1024_H 0x7d657a1000000000
#define MM_FOLD_1024_L 0x7406fa9500000000
#define MM_FOLD_1536_H 0x67f7947600000000
#define MM_FOLD_1536_L 0xc56d949600000000
#define MM_FOLD_2048_H 0x7cc8e1e700000000
#define MM_FOLD_2048_L 0x03f9f86300000000
#define MM_X95 0xccaa009e00000000 /* x^95 mod P and x^63 mod P, reflected over 64 bits */
#define MM_X63 0xb8bc676500000000
#define MM_MU 0x1f7011641 /* x^64 / P and P, reflected over 33 bits */
#define MM_P 0x1db710641

#define MM_TARGET_128 __attribute__((target("pclmul,sse4.1")))
#define MM_TARGET_512 __attribute__((target("pclmul,sse4.1,avx512f,avx512bw,avx512vl,vpclmulqdq")))

MM_TARGET_128 static inline __m128i mm_pair(uint64_t high, uint64_t low)
{
    return _mm_set_epi64x((long long)low, (long long)high); /* the higher powers stand in the lower half */
}

MM_TARGET_128 static inline __m128i mm_move(__m128i x, __m128i k, __m128i onto)
{
    return _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(x, k, 0x00), _mm_clmulepi64_si128(x, k, 0x11)), onto);
}

/* The remainder of R * x^32, R the 128 bits of a register, A its higher and B its lower half. */
MM_TARGET_128 static inline uint32_t mm_reduce(__m128i r)
{
    const __m128i k = mm_pair(MM_X95, MM_X63);
    const __m128i barrett = mm_pair(MM_MU, MM_P);
    /* A * x^96 + B * x^32: 96 bits are left, with x^95 and the x of the reflected product. */
    __m128i s = _mm_xor_si128(_mm_clmulepi64_si128(r, k, 0x00), _mm_slli_si128(_mm_srli_si128(r, 8), 4));
    /* The highest 32 of them times x^64, with x^63 likewise: 64 bits are left, in the upper half. */
    s = _mm_srli_si128(_mm_xor_si128(s, _mm_clmulepi64_si128(s, k, 0x10)), 8);
    /* Barrett: quotient = upper 32 bits * (x^64 / P) / x^32; remainder = lower 32 bits of s + quotient * P. */
    const __m128i low = _mm_set_epi32(0, 0, 0, -1);
    __m128i q = _mm_and_si128(_mm_clmulepi64_si128(_mm_and_si128(s, low), barrett, 0x00), low);
    s = _mm_xor_si128(s, _mm_clmulepi64_si128(q, barrett, 0x10));
    return (uint32_t)_mm_extract_epi32(s, 1);
}

MM_TARGET_128 static uint32_t mm_fold_128(const uint8_t first[MM_CRC_BLOCK], const uint8_t *rest, size_t blocks)
{
    const __m128i k512 = mm_pair(MM_FOLD_512_H, MM_FOLD_512_L);
    __m128i a = _mm_loadu_si128((const __m128i *)(const void *)(first + 0));
    __m128i b = _mm_loadu_si128((const __m128i *)(const void *)(first + 16));
    __m128i c = _mm_loadu_si128((const __m128i *)(const void *)(first + 32));
    __m128i d = _mm_loadu_si128((const __m128i *)(const void *)(first + 48));
    for (; blocks > 0; blocks--, rest += MM_CRC_BLOCK) {
        a = mm_move(a, k512, _mm_loadu_si128((const __m128i *)(const void *)(rest + 0)));
        b = mm_move(b, k512, _mm_loadu_si128((const __m128i *)(const void *)(rest + 16)));
        c = mm_move(c, k512, _mm_loadu_si128((const __m128i *)(const void *)(rest + 32)));
        d = mm_move(d, k512, _mm_loadu_si128((const __m128i *)(const void *)(rest + 48)));
    }
    d = mm_move(a, mm_pair(MM_FOLD_384_H, MM_FOLD_384_L), d);
    d = mm_move(b, mm_pair(MM_FOLD_256_H, MM_FOLD_256_L), d);
    d = mm_move(c, mm_pair(MM_FOLD_128_H, MM_FOLD_128_L), d);
    return mm_reduce(d);
}

MM_TARGET_512 static inline __m512i mm_pair_512(uint64_t high, uint64_t low)
{
    return _mm512_broadcast_i32x4(mm_pair(high, low));
}

MM_TARGET_512 static inline __m512i mm_move_512(__m512i x, __m512i k, __m512i onto)
{
    const __m512i upper = _mm512_clmulepi64_epi128(x, k, 0x00);
    const __m512i lower = _mm512_clmulepi64_epi128(x, k, 0x11);
    return _mm512_ternarylogic_epi64(upper, lower, onto, 0x96); /* the sum of the three */
}

MM_TARGET_512 static uint32_t mm_fold_512(const uint8_t first[MM_CRC_BLOCK], const uint8_t *rest, size_t blocks)
{
    const __m512i k512 = mm_pair_512(MM_FOLD_512_H, MM_FOLD_512_L);
    __m512i d = _mm512_loadu_si512(first);
    if (blocks >= 3) {
        const __m512i k2048 = mm_pair_512(MM_FOLD_2048_H, MM_FOLD_2048_L);
        __m512i a = d;
        __m512i b = _mm512_loadu_si512(rest);
        __m512i c = _mm512_loadu_si512(rest + 64);
        d = _mm512_loadu_si512(rest + 128);
        blocks -= 3, rest += 192;
        for (; blocks >= 4; blocks -= 4, rest += 256) {
            a = mm_move_512(a, k2048, _mm512_loadu_si512(rest));
            b = mm_move_512(b, k2048, _mm512_loadu_si512(rest + 64));
            c = mm_move_512(c, k2048, _mm512_loadu_si512(rest + 128));
            d = mm_move_512(d, k2048, _mm512_loadu_si512(rest + 192));
        }
        d = mm_move_512(a, mm_pair_512(MM_FOLD_1536_H, MM_FOLD_1536_L), d);
        d = mm_move_512(b, mm_pair_512(MM_FOLD_1024_H, MM_FOLD_1024_L), d);
        d = mm_move_512(c, k512, d);
    }
    for (; blocks > 0; blocks--, rest += MM_CRC_BLOCK)
        d = mm_move_512(d, k512, _mm512_loadu_si512(rest));
    /* The first three quarters move onto the last, each over its own distance. */
    const __m512i quarters = _mm512_set_epi64(0, 0,                                            /* stays */
                                              (long long)MM_FOLD_128_L, (long long)MM_FOLD_128_H,
                                              (long long)MM_FOLD_256_L, (long long)MM_FOLD_256_H,
                                              (long long)MM_FOLD_384_L, (long long)MM_FOLD_384_H);
    d = mm_move_512(d, quarters, _mm512_maskz_mov_epi64(0xC0, d));
    const __m256i half = _mm256_xor_si256(_mm512_castsi512_si256(d), _mm512_extracti64x4_epi64(d, 1));
    return mm_reduce(_mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1)));
}

static mm_fold_fn mm_fold_best(void)
{
    __builtin_cpu_init();
    if (__builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return mm_fold_512;
    if (__builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1"))
        return mm_fold_128;
    return mm_fold_portable;
}

/* ---- ARM with the CRC instructions, where the compiler was told that they are there */

#elif defined(__ARM_FEATURE_CRC32) && !defined(MMWAL_CRC_PORTABLE)
#include <arm_acle.h>

static inline uint32_t mm_crc_block_arm(uint32_t state, const uint8_t *block)
{
    for (int i = 0; i < MM_CRC_BLOCK; i += 8) {
        uint64_t eight;
        memcpy(&eight, block + i, 8);
        state = __crc32d(state, eight);
    }
    return state;
}

static uint32_t mm_fold_arm(const uint8_t first[MM_CRC_BLOCK], const uint8_t *rest, size_t blocks)
{
    uint32_t state = mm_crc_block_arm(0, first);
    for (; blocks > 0; blocks--, rest += MM_CRC_BLOCK)
        state = mm_crc_block_arm(state, rest);
    return state;
}

static mm_fold_fn mm_fold_best(void) { return mm_fold_arm; }

#else

static mm_fold_fn mm_fold_best(void) { return mm_fold_portable; }

#endif

/* ---- what others call */

static void mm_crc32_init(void)
{
    for (int value = 0; value < 256; value++) {
        const uint8_t byte = (uint8_t)value;
        mm_crc_table[0][value] = mm_crc_bitwise(0, &byte, 1);
    }
    for (int table = 1; table < 8; table++)
        for (int value = 0; value < 256; value++) {
            const uint32_t before = mm_crc_table[table - 1][value];
            mm_crc_table[table][value] = (before >> 8) ^ mm_crc_table[0][before & 0xFF];
        }
    mm_fold = mm_fold_best();
}

static uint32_t mm_crc32_by(mm_fold_fn fold, uint32_t seed, const uint8_t *data, size_t size)
{
    uint32_t state = ~seed;
    size_t head = size % MM_CRC_BLOCK;
    if (head < 4) { /* too short to take the start value */
        state = mm_crc_bitwise(state, data, head);
        if (size == head)
            return ~state;
        data += head;
        size -= head;
        head = MM_CRC_BLOCK;
    }
    uint8_t first[MM_CRC_BLOCK] = {0};
    uint8_t *message = first + (MM_CRC_BLOCK - head);
    uint32_t start;
    memcpy(message, data, head);
    memcpy(&start, message, 4);
    start ^= state;
    memcpy(message, &start, 4);
    return ~fold(first, data + head, (size - head) / MM_CRC_BLOCK);
}

static inline uint32_t mm_crc32(uint32_t seed, const uint8_t *data, size_t size)
{
    return mm_crc32_by(mm_fold, seed, data, size);
}

#endif
