/* The frame in memory: commit word, header, validity, scan. Pure functions over pointers; no Python, no system call.
 * What a frame is, and when it is valid, stands in format/frame.py; the readable twin of this file is reference.py.
 *
 *   - Nothing here reads outside [segment, segment + size), whatever the bytes say.
 *   - A commit word is read with acquire order before anything else of its frame, and stored after everything else.
 */
#ifndef MMWAL_FRAME_H
#define MMWAL_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "crc32.h"

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the compiled kernel is for little-endian machines; the pure-Python kernel runs everywhere"
#endif

#define MM_ALIGNMENT 64u
#define MM_LENGTH_MASK ((UINT64_C(1) << 26) - 1)
#define MM_KIND_PAD 255
#define MM_LSN_MAX (UINT64_C(1) << 62)
#define MM_FIND_BUDGET 8 /* mm_find checksums at most this many times its range */

/* The memory orders that make a frame visible. tools/sanitize.sh weakens each, to see that the race test notices.
 * Publishing is sequentially consistent, not only release: the appender goes on to look at its neighbours' commit words,
 * and of two that finish at once one must see the other, else nobody would move `published` over both. */
#ifndef MM_ORDER_PUBLISH
#define MM_ORDER_PUBLISH __ATOMIC_SEQ_CST
#endif
#ifndef MM_ORDER_LOOK
#define MM_ORDER_LOOK __ATOMIC_ACQUIRE
#endif

/* Why a scan stopped. */
enum { MM_SCAN_END, MM_SCAN_NO_FRAME, MM_SCAN_MALFORMED, MM_SCAN_CHECKSUM, MM_SCAN_FULL };

typedef struct {
    uint64_t commit;
    uint32_t frame_crc;
    uint8_t kind, flags, dtype, reserved;
    uint64_t start_lsn, txn, time_ns, durable_lsn;
    uint32_t rows, vector_bytes, id_bytes, meta_bytes;
} mm_header;

_Static_assert(sizeof(mm_header) == MM_ALIGNMENT, "the header is one cache line without gaps");

static inline uint64_t mm_align(uint64_t size)
{
    return (size + MM_ALIGNMENT - 1) & ~(uint64_t)(MM_ALIGNMENT - 1);
}

static inline uint64_t mm_commit_word(uint64_t salt, uint64_t lsn, uint64_t length)
{
    uint64_t x = salt ^ (lsn * UINT64_C(0x9E3779B97F4A7C15));
    x = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94D049BB133111EB);
    x ^= x >> 31;
    return (x & ~MM_LENGTH_MASK) | (length / MM_ALIGNMENT);
}

/* The length of the frame published at `lsn` according to its commit word; 0 where none is. */
static inline uint64_t mm_published_length(uint64_t salt, uint64_t lsn, uint64_t word)
{
    const uint64_t length = (word & MM_LENGTH_MASK) * MM_ALIGNMENT;
    return word == mm_commit_word(salt, lsn, length) ? length : 0;
}

/* Memory to scan may start at any address; memory to append to is aligned. */
static inline uint64_t mm_load_commit(const uint8_t *frame)
{
    if (((uintptr_t)frame & 7) == 0)
        return __atomic_load_n((const uint64_t *)(const void *)frame, MM_ORDER_LOOK);
    uint64_t word;
    memcpy(&word, frame, 8);
    return word;
}

static inline void mm_store_commit(uint8_t *frame, uint64_t word)
{
    __atomic_store_n((uint64_t *)(void *)frame, word, MM_ORDER_PUBLISH);
}

/* The checksum of a frame: of the commit word and of bytes 12 to `covered`, started from the low half of the salt.
 * Moved up by four bytes these make whole blocks: the first holds zeros, the commit word and the header behind its crc
 * field; the others are the blocks of the frame itself. */
static inline void mm_frame_block(const mm_header *header, uint64_t salt, uint8_t first[MM_CRC_BLOCK])
{
    const uint64_t message = header->commit ^ (uint32_t)~(uint32_t)salt;
    memset(first, 0, 4);
    memcpy(first + 4, &message, 8);
    memcpy(first + 12, (const uint8_t *)header + 12, sizeof *header - 12);
}

static inline uint32_t mm_frame_crc(const mm_header *header, const uint8_t *frame, uint64_t covered, uint64_t salt)
{
    uint8_t first[MM_CRC_BLOCK];
    mm_frame_block(header, salt, first);
    return ~mm_fold(first, frame + sizeof *header, (size_t)(covered - sizeof *header) / MM_CRC_BLOCK);
}

/* The same piece by piece: the state after the header; the state after whole blocks more; inverted it is the checksum. */
static inline uint32_t mm_frame_crc_first(const mm_header *header, uint64_t salt)
{
    uint8_t first[MM_CRC_BLOCK];
    mm_frame_block(header, salt, first);
    return mm_fold(first, first, 0);
}

static inline uint32_t mm_frame_crc_next(uint32_t state, const uint8_t *piece, uint64_t size)
{
    uint8_t first[MM_CRC_BLOCK];
    uint32_t start;
    if (size == 0)
        return state;
    memcpy(first, piece, sizeof first);
    memcpy(&start, first, 4);
    start ^= state;
    memcpy(first, &start, 4);
    return mm_fold(first, piece + sizeof first, (size_t)size / MM_CRC_BLOCK - 1);
}

/* Applies the validity rule to the position `lsn` of a range that ends at `end`; `frame` is its address.
 * Returns MM_SCAN_END for a valid frame, whose header it copies. *length is set wherever the commit word matches. */
static inline int mm_check(const uint8_t *frame, uint64_t salt, uint64_t lsn, uint64_t end, bool verify,
                           mm_header *header, uint64_t *length)
{
    *length = 0;
    if (end - lsn < sizeof *header || lsn % MM_ALIGNMENT != 0)
        return MM_SCAN_NO_FRAME;
    const uint64_t word = mm_load_commit(frame);
    *length = (word & MM_LENGTH_MASK) * MM_ALIGNMENT;
    if (word != mm_commit_word(salt, lsn, *length))
        return MM_SCAN_NO_FRAME;
    header->commit = word;
    memcpy((uint8_t *)header + 8, frame + 8, sizeof *header - 8);
    if (*length < sizeof *header || *length > end - lsn || header->start_lsn != lsn || header->reserved != 0)
        return MM_SCAN_MALFORMED;
    const uint64_t blocks = (uint64_t)header->vector_bytes + header->id_bytes + header->meta_bytes;
    const bool pad = header->kind == MM_KIND_PAD;
    if (pad ? blocks != 0 : mm_align(sizeof *header + blocks) != *length)
        return MM_SCAN_MALFORMED;
    if (verify && mm_frame_crc(header, frame, pad ? sizeof *header : *length, salt) != header->frame_crc)
        return MM_SCAN_CHECKSUM;
    return MM_SCAN_END;
}

typedef struct {
    uint64_t stop;
    uint64_t count;
    int reason;
} mm_scanned;

/* Walks the frames of [start, end) of a segment whose first byte is at `base`; base <= start <= end <= base + size.
 * Copies up to `room` headers to `out`. */
static inline mm_scanned mm_scan(const uint8_t *segment, uint64_t base, uint64_t salt, uint64_t start, uint64_t end,
                          uint8_t *out, uint64_t room, bool verify)
{
    mm_scanned result = {start, 0, MM_SCAN_END};
    while (result.stop < end) {
        mm_header header;
        uint64_t length;
        if (result.count == room) {
            result.reason = MM_SCAN_FULL;
            break;
        }
        result.reason = mm_check(segment + (result.stop - base), salt, result.stop, end, verify, &header, &length);
        if (result.reason != MM_SCAN_END)
            break;
        memcpy(out + result.count * sizeof header, &header, sizeof header);
        result.count++;
        result.stop += length;
    }
    return result;
}

/* The first valid frame that begins at or after `start` and ends by `end`: its position; MM_FIND_NONE; or
 * MM_FIND_ABUSE once the frames that were wrong in their checksum only make up MM_FIND_BUDGET times the range (they
 * overlap so much only in a file made to waste time). Bounds as in mm_scan. */
#define MM_FIND_NONE UINT64_MAX
#define MM_FIND_ABUSE (UINT64_MAX - 1)
static inline uint64_t mm_find(const uint8_t *segment, uint64_t base, uint64_t salt, uint64_t start, uint64_t end)
{
    uint64_t budget = MM_FIND_BUDGET * (end - start);
    for (uint64_t lsn = mm_align(start); lsn < end && end - lsn >= MM_ALIGNMENT; lsn += MM_ALIGNMENT) {
        mm_header header;
        uint64_t length;
        const int reason = mm_check(segment + (lsn - base), salt, lsn, end, true, &header, &length);
        if (reason == MM_SCAN_END)
            return lsn;
        if (reason == MM_SCAN_CHECKSUM) {
            if (header.kind == MM_KIND_PAD)
                length = sizeof header;
            if (length > budget)
                return MM_FIND_ABUSE;
            budget -= length;
        }
    }
    return MM_FIND_NONE;
}

#endif
