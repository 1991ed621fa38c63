/* The write position of a log over a cursor block and a ring of segments: reserve, write, publish, advance.
 * Pure functions over pointers; no Python, no system call, no lock. The block's layout stands in interface.py.
 *
 *   - An append is: mm_reserve (a compare-and-swap), mm_write (copy, checksum, commit word), mm_settle.
 *     Nothing between them can fail.
 *   - A commit word is the last store to its frame. mm_advance walks commit words and moves `published`, never back.
 *   - A segment's memory stays in place while a reservation in it is unfinished, or somebody may be in mm_advance:
 *     the caller detaches only below `published` and, in Python, under the GIL.
 */
#ifndef MMWAL_CURSOR_H
#define MMWAL_CURSOR_H

#include "copy.h"
#include "frame.h"

#define MM_PIECE_BYTES UINT64_C(32768)

#define MM_BLOCK_BYTES 4096
#define MM_RESERVED 0
#define MM_PUBLISHED 64
#define MM_DURABLE 128
#define MM_STATE 192
#define MM_ATTENTION 200
#define MM_RING 1024
#define MM_RING_SLOTS 16
#define MM_RING_SLOT_BYTES 32

#define MM_DATA_OFFSET 8192
#define MM_FOOTER_BYTES 512
#define MM_SEGMENT_BYTES_MIN 16384
#define MM_SEGMENT_BYTES_MAX (UINT64_C(1) << 30)

/* What an append returns instead of an LSN; below -64: published, not yet covered. */
enum { MM_NOT_READY = -1, MM_REFUSED = -2, MM_CONVERT = -3, MM_NONFINITE = -4, MM_TOO_LARGE = -5, MM_SETTLE = -64 };

#ifndef MM_PAUSE
#define MM_PAUSE() /* tests/kernel/race_test.c stops an appender here, between reserve and publish */
#endif

typedef struct {
    uint8_t *block;
    uint64_t segment_bytes;
} mm_cursor;

/* What an appender wants to log; the blocks' bytes are borrowed. */
typedef struct {
    uint8_t kind, dtype;
    uint32_t rows;
    uint64_t txn, time_ns;
    const void *vector, *ids[2], *meta[2]; /* a block of ids or metadata comes in two pieces: table, bytes */
    uint64_t vector_bytes, ids_bytes[2], meta_bytes[2];
} mm_entry;

/* A range of the log that one appender owns until it has published it. */
typedef struct {
    uint64_t lsn, length, salt;
    uint8_t *at;
} mm_range;

typedef struct {
    mm_range pad; /* length 0: none */
    mm_range frame;
} mm_claim;

static inline uint64_t *mm_word(const mm_cursor *cursor, size_t offset)
{
    return (uint64_t *)(void *)(cursor->block + offset);
}

static inline uint64_t mm_load(const mm_cursor *cursor, size_t offset)
{
    return __atomic_load_n(mm_word(cursor, offset), __ATOMIC_SEQ_CST);
}

static inline uint64_t mm_data_start(const mm_cursor *cursor, uint64_t number)
{
    return number * cursor->segment_bytes + MM_DATA_OFFSET;
}

static inline uint64_t mm_data_end(const mm_cursor *cursor, uint64_t number)
{
    return (number + 1) * cursor->segment_bytes - MM_FOOTER_BYTES;
}

static inline uint64_t mm_frame_bytes_max(const mm_cursor *cursor)
{
    return cursor->segment_bytes - MM_DATA_OFFSET - MM_FOOTER_BYTES - MM_ALIGNMENT; /* none fills a segment alone */
}

/* ---- the ring: number + 1 is stored last and cleared first */

static inline size_t mm_slot(uint64_t number)
{
    return MM_RING + (size_t)(number % MM_RING_SLOTS) * MM_RING_SLOT_BYTES;
}

static inline void mm_attach(const mm_cursor *cursor, uint64_t number, uint8_t *segment, uint64_t salt)
{
    const size_t slot = mm_slot(number);
    __atomic_store_n(mm_word(cursor, slot + 8), (uint64_t)(uintptr_t)segment, __ATOMIC_RELAXED);
    __atomic_store_n(mm_word(cursor, slot + 16), salt, __ATOMIC_RELAXED);
    __atomic_store_n(mm_word(cursor, slot), number + 1, __ATOMIC_RELEASE);
}

static inline void mm_detach(const mm_cursor *cursor, uint64_t number)
{
    const size_t slot = mm_slot(number);
    __atomic_store_n(mm_word(cursor, slot), 0, __ATOMIC_SEQ_CST);
    __atomic_store_n(mm_word(cursor, slot + 8), 0, __ATOMIC_RELAXED);
    __atomic_store_n(mm_word(cursor, slot + 16), 0, __ATOMIC_RELAXED);
}

/* Places [lsn, lsn + length) of segment `number`; false where that is not attached. */
static inline bool mm_place(const mm_cursor *cursor, uint64_t number, uint64_t lsn, uint64_t length, mm_range *range)
{
    const size_t slot = mm_slot(number);
    if (mm_load(cursor, slot) != number + 1)
        return false;
    const uint64_t address = __atomic_load_n(mm_word(cursor, slot + 8), __ATOMIC_RELAXED);
    range->at = (uint8_t *)(uintptr_t)address + (lsn - number * cursor->segment_bytes);
    range->salt = __atomic_load_n(mm_word(cursor, slot + 16), __ATOMIC_RELAXED);
    range->lsn = lsn;
    range->length = length;
    return true;
}

/* ---- reserve */

/* Takes `length` bytes of the log: 0, or MM_REFUSED or MM_NOT_READY with nothing taken. What would cross the end of a
 * segment's data takes the rest of it as a pad, and lands at the start of the next segment's data, in one step. What
 * ends there exactly needs the next segment, too: a full segment always has a successor, which recovery relies on.
 * `length` is a multiple of 64 and at most mm_frame_bytes_max. */
static inline int mm_reserve(const mm_cursor *cursor, uint64_t length, mm_claim *claim)
{
    uint64_t lsn = mm_load(cursor, MM_RESERVED);
    for (;;) {
        if (mm_load(cursor, MM_STATE) != 0)
            return MM_REFUSED;
        uint64_t number = lsn / cursor->segment_bytes;
        uint64_t at = lsn;
        bool ready = true;
        claim->pad.length = 0;
        if (lsn + length > mm_data_end(cursor, number)) {
            const uint64_t rest = mm_data_end(cursor, number) - lsn;
            ready = rest == 0 || mm_place(cursor, number, lsn, rest, &claim->pad);
            number++;
            at = mm_data_start(cursor, number);
        }
        ready = ready && mm_place(cursor, number, at, length, &claim->frame) &&
                (at + length < mm_data_end(cursor, number) || mm_load(cursor, mm_slot(number + 1)) == number + 2);
        if (!ready) { /* or others moved on meanwhile, and the slot with them */
            const uint64_t now = mm_load(cursor, MM_RESERVED);
            if (now == lsn)
                return MM_NOT_READY;
            lsn = now;
        } else if (__atomic_compare_exchange_n(mm_word(cursor, MM_RESERVED), &lsn, at + length, false,
                                               __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            return 0; /* `reserved` stood still, so the slots read above were the right ones */
    }
}

/* ---- write and publish */

/* Completes the header, but for the checksum. */
static inline void mm_complete(const mm_cursor *cursor, const mm_range *range, mm_header *header)
{
    header->start_lsn = range->lsn;
    header->durable_lsn = __atomic_load_n(mm_word(cursor, MM_DURABLE), __ATOMIC_ACQUIRE);
    header->commit = mm_commit_word(range->salt, range->lsn, range->length);
}

/* Stores the header, then the commit word. */
static inline void mm_publish(const mm_range *range, const mm_header *header)
{
    memcpy(range->at + 8, (const uint8_t *)header + 8, sizeof *header - 8);
    mm_store_commit(range->at, header->commit);
}

static inline uint64_t mm_entry_length(const mm_entry *entry)
{
    return mm_align(sizeof(mm_header) + entry->vector_bytes + entry->ids_bytes[0] + entry->ids_bytes[1] +
                    entry->meta_bytes[0] + entry->meta_bytes[1]);
}

/* Fills what mm_reserve took: the pad, where there is one, and the frame. Other threads may change the bytes that
 * `entry` borrows while they are copied; what was copied is what the checksum is of. */
static inline void mm_write(const mm_cursor *cursor, const mm_claim *claim, const mm_entry *entry)
{
    MM_PAUSE();
    if (claim->pad.length != 0) {
        mm_header pad = {.kind = MM_KIND_PAD, .time_ns = entry->time_ns};
        mm_complete(cursor, &claim->pad, &pad);
        pad.frame_crc = mm_frame_crc(&pad, claim->pad.at, sizeof pad, claim->pad.salt);
        mm_publish(&claim->pad, &pad);
    }
    mm_header header = {
        .kind = entry->kind,
        .dtype = entry->dtype,
        .txn = entry->txn,
        .time_ns = entry->time_ns,
        .rows = entry->rows,
        .vector_bytes = (uint32_t)entry->vector_bytes,
        .id_bytes = (uint32_t)(entry->ids_bytes[0] + entry->ids_bytes[1]),
        .meta_bytes = (uint32_t)(entry->meta_bytes[0] + entry->meta_bytes[1]),
    };
    mm_complete(cursor, &claim->frame, &header);

    /* A large payload is copied in pieces, each checksummed at its destination while it is in the nearest cache. */
    uint8_t *to = claim->frame.at + sizeof header;
    const uint8_t *piece = to, *from = entry->vector;
    uint64_t left = entry->vector_bytes;
    uint32_t state = 0;
    if (left > MM_PIECE_BYTES)
        state = mm_frame_crc_first(&header, claim->frame.salt);
    for (; left > MM_PIECE_BYTES; from += MM_PIECE_BYTES, left -= MM_PIECE_BYTES, piece = to) {
        to = mm_copy(to, from, MM_PIECE_BYTES);
        state = mm_frame_crc_next(state, piece, MM_PIECE_BYTES);
    }
    to = mm_copy(to, from, left);
    to = mm_copy(to, entry->ids[0], entry->ids_bytes[0]);
    to = mm_copy(to, entry->ids[1], entry->ids_bytes[1]);
    to = mm_copy(to, entry->meta[0], entry->meta_bytes[0]);
    to = mm_copy(to, entry->meta[1], entry->meta_bytes[1]);
    uint8_t *end = claim->frame.at + claim->frame.length;
    memset(to, 0, (size_t)(end - to));
    if (entry->vector_bytes > MM_PIECE_BYTES)
        header.frame_crc = ~mm_frame_crc_next(state, piece, (uint64_t)(end - piece));
    else
        header.frame_crc = mm_frame_crc(&header, claim->frame.at, claim->frame.length, claim->frame.salt);
    mm_publish(&claim->frame, &header);
}

/* ---- advance */

/* Moves `published` over every finished frame, pads and segment ends included; returns it. */
static inline uint64_t mm_advance(const mm_cursor *cursor)
{
    uint64_t before = mm_load(cursor, MM_PUBLISHED);
    uint64_t lsn = before;
    uint64_t reserved = mm_load(cursor, MM_RESERVED);
    while (lsn < reserved || lsn < (reserved = mm_load(cursor, MM_RESERVED))) {
        uint64_t number = lsn / cursor->segment_bytes;
        uint64_t at = lsn;
        if (lsn == mm_data_end(cursor, number)) { /* the same place as the next segment's start */
            number++;
            at = mm_data_start(cursor, number);
        }
        mm_range range;
        if (!mm_place(cursor, number, at, 0, &range))
            break;
        const uint64_t word = __atomic_load_n((const uint64_t *)(const void *)range.at, __ATOMIC_SEQ_CST);
        const uint64_t length = mm_published_length(range.salt, at, word);
        if (length == 0 || length > mm_data_end(cursor, number) - at)
            break;
        if (at + length > reserved && at + length > (reserved = mm_load(cursor, MM_RESERVED)))
            break;
        lsn = at + length;
    }
    while (lsn > before)
        if (__atomic_compare_exchange_n(mm_word(cursor, MM_PUBLISHED), &before, lsn, false, __ATOMIC_SEQ_CST,
                                        __ATOMIC_SEQ_CST))
            return lsn;
    return before;
}

/* What an append returns for a published frame that ends at `end`. */
static inline int64_t mm_settle(const mm_cursor *cursor, uint64_t end)
{
    const bool covered = mm_advance(cursor) >= end;
    return covered && mm_load(cursor, MM_ATTENTION) == 0 ? (int64_t)end : -(int64_t)end;
}

#endif
