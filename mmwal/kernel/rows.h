/* Rows of vectors in memory: are the values finite, copy rows, checksum rows. Pure functions over pointers.
 *
 *   - Every row is checked against the bounds at the moment it is touched, whatever an earlier pass said.
 */
#ifndef MMWAL_ROWS_H
#define MMWAL_ROWS_H

#include "copy.h"
#include "crc32.h"

#include <stdbool.h>

/* ---- finite: a value is NaN or infinity when all bits of its exponent are set; adding one to the exponent then
 * carries into the place of the sign. 64 bytes at a time, in the widest registers there are. */

#define MM_INLINE static inline __attribute__((always_inline))

#define MM_DEFINE_FINITE(bits, lowest_of_exponent)                                                                    \
    typedef uint##bits##_t mm_lanes_##bits __attribute__((vector_size(64), aligned(1), may_alias));                   \
    MM_INLINE bool mm_finite_##bits##_any(const uint8_t *values, size_t count)                                        \
    {                                                                                                                 \
        const uint##bits##_t magnitude = (uint##bits##_t)~(uint##bits##_t)0 >> 1;                                     \
        const size_t lanes = 64 / sizeof magnitude;                                                                   \
        mm_lanes_##bits seen = {0}, seen_too = {0};                                                                   \
        size_t i = 0;                                                                                                 \
        for (; i + 2 * lanes <= count; i += 2 * lanes) {                                                              \
            const uint8_t *at = values + i * sizeof magnitude;                                                        \
            seen |= (*(const mm_lanes_##bits *)(const void *)at & magnitude) + lowest_of_exponent;                    \
            seen_too |= (*(const mm_lanes_##bits *)(const void *)(at + 64) & magnitude) + lowest_of_exponent;         \
        }                                                                                                             \
        seen |= seen_too;                                                                                             \
        uint##bits##_t all = 0;                                                                                       \
        for (size_t lane = 0; lane < lanes; lane++)                                                                   \
            all |= seen[lane];                                                                                        \
        for (; i < count; i++) {                                                                                      \
            uint##bits##_t value;                                                                                     \
            memcpy(&value, values + i * sizeof value, sizeof value);                                                  \
            all |= (uint##bits##_t)((value & magnitude) + lowest_of_exponent);                                        \
        }                                                                                                             \
        return (all & (uint##bits##_t)~magnitude) == 0;                                                               \
    }

MM_DEFINE_FINITE(32, UINT32_C(0x00800000))
MM_DEFINE_FINITE(16, (uint16_t)0x0400)

MM_INLINE bool mm_finite_any(const uint8_t *values, size_t size, int dtype)
{
    return dtype == 1 ? mm_finite_32_any(values, size / 4) : dtype == 2 ? mm_finite_16_any(values, size / 2) : true;
}

typedef bool (*mm_finite_fn)(const uint8_t *values, size_t size, int dtype);

static bool mm_finite_plain(const uint8_t *values, size_t size, int dtype)
{
    return mm_finite_any(values, size, dtype);
}

static mm_finite_fn mm_finite = mm_finite_plain;

#ifdef MMWAL_CRC_X86
__attribute__((target("avx2"))) static bool mm_finite_avx2(const uint8_t *values, size_t size, int dtype)
{
    return mm_finite_any(values, size, dtype);
}

__attribute__((target("avx512f,avx512bw"))) static bool mm_finite_avx512(const uint8_t *values, size_t size, int dtype)
{
    return mm_finite_any(values, size, dtype);
}
#endif

static void mm_finite_init(void)
{
#ifdef MMWAL_CRC_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"))
        mm_finite = mm_finite_avx512;
    else if (__builtin_cpu_supports("avx2"))
        mm_finite = mm_finite_avx2;
#endif
}

/* ---- rows */

/* Whether row `row` of rows `stride` bytes apart lies in `size` bytes; 1 <= row_bytes <= stride. */
static inline bool mm_row_inside(int64_t row, uint64_t row_bytes, uint64_t stride, uint64_t size)
{
    uint64_t at;
    return row >= 0 && !__builtin_mul_overflow((uint64_t)row, stride, &at) && at <= size && row_bytes <= size - at;
}

static inline bool mm_offset_inside(int64_t offset, uint64_t row_bytes, uint64_t size)
{
    return offset >= 0 && row_bytes <= size && (uint64_t)offset <= size - row_bytes;
}

typedef struct {
    uint8_t *bytes;
    uint64_t size, row_bytes, stride;
} mm_rows;

/* The index of the first place that is out of bounds; `count` where there is none. */
static size_t mm_rows_check(const mm_rows *matrix, const int64_t *rows, size_t count)
{
    size_t i = 0;
    while (i < count && mm_row_inside(rows[i], matrix->row_bytes, matrix->stride, matrix->size))
        i++;
    return i;
}

static size_t mm_offsets_check(const int64_t *offsets, uint64_t row_bytes, uint64_t size, size_t count)
{
    size_t i = 0;
    while (i < count && mm_offset_inside(offsets[i], row_bytes, size))
        i++;
    return i;
}

/* Both return false where a place had left the bounds since it was checked (another thread changed the arrays). */
static bool mm_gather(const uint8_t *source, uint64_t source_size, const int64_t *offsets, const mm_rows *target,
                      const int64_t *rows, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const int64_t offset = offsets[i], row = rows[i];
        if (!mm_offset_inside(offset, target->row_bytes, source_size) ||
            !mm_row_inside(row, target->row_bytes, target->stride, target->size))
            return false;
        mm_copy(target->bytes + (uint64_t)row * target->stride, source + offset, target->row_bytes);
    }
    return true;
}

static bool mm_row_checksums(const mm_rows *matrix, const int64_t *rows, const uint32_t *seeds, uint32_t *out,
                             size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const int64_t row = rows[i];
        if (!mm_row_inside(row, matrix->row_bytes, matrix->stride, matrix->size))
            return false;
        out[i] = mm_crc32(seeds[i], matrix->bytes + (uint64_t)row * matrix->stride, (size_t)matrix->row_bytes);
    }
    return true;
}

#endif
