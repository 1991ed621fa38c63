/* Blocks of ids and metadata as the log and images hold them, and replay: frames applied to a directory.
 *
 *   - A block is checked whole before anything of it is used. What is wrong with it comes back as a sentence.
 *   - Replay decides in the order of effective LSNs: the last writer of an id wins, and takes a row that nobody sees.
 *     A row that was taken by a replay and replaced by the same one is free again at once.
 *   - Vectors are not copied: for each row taken it is noted where its vector is.
 */
#ifndef MMWAL_REPLAY_H
#define MMWAL_REPLAY_H

#include "directory.h"
#include "frame.h"

/* ---- blocks; see format/frame.py, pack_ids and pack_metadata */

static inline uint32_t mm_u32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

/* UTF-8 as Python decodes it: no surrogates, nothing longer than it must be, nothing above U+10FFFF. */
static bool mm_is_utf8(const uint8_t *at, uint32_t size)
{
    const uint8_t *end = at + size;
    while (at < end) {
        uint64_t eight;
        if (end - at >= 8 && (memcpy(&eight, at, 8), (eight & UINT64_C(0x8080808080808080)) == 0)) {
            at += 8;
            continue;
        }
        const uint8_t lead = *at++;
        if (lead < 0x80)
            continue;
        const int more = lead >= 0xF0 ? 3 : lead >= 0xE0 ? 2 : 1;
        if (lead < 0xC2 || lead > 0xF4 || end - at < more)
            return false;
        const uint8_t second = at[0];
        const uint8_t least = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
        const uint8_t most = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
        if (second < least || second > most)
            return false;
        for (int i = 1; i < more; i++)
            if ((at[i] & 0xC0) != 0x80)
                return false;
        at += more;
    }
    return true;
}

/* NULL, or what is wrong with a block of `count` ids. */
static const char *mm_check_ids(const uint8_t *block, uint64_t size, uint64_t count)
{
    if (count > size / 4)
        return "a block of ids is too short for its rows";
    uint64_t at = 4 * count;
    for (uint64_t i = 0; i < count; i++) {
        const uint32_t tag = mm_u32(block + 4 * i), bytes = tag & ~MM_ID_IS_INT;
        if (bytes == 0 || bytes > size - at)
            return "a block of ids ends inside an id";
        if (tag & MM_ID_IS_INT) {
            if (bytes != 8)
                return "an int id that has not 8 bytes";
        } else if (bytes > MM_ID_BYTES_MAX)
            return "a str id of too many bytes";
        else if (!mm_is_utf8(block + at, bytes))
            return "a str id that is no UTF-8";
        at += bytes;
    }
    return at == size ? NULL : "bytes behind the last id of a block";
}

/* NULL, or what is wrong with a block of metadata of `count` rows; an empty block says nothing of any row. */
static const char *mm_check_metadata(const uint8_t *block, uint64_t size, uint64_t count)
{
    if (size == 0)
        return NULL;
    if (count > size / 4)
        return "a block of metadata is too short for its rows";
    uint64_t at = 4 * count;
    for (uint64_t i = 0; i < count; i++) {
        const uint32_t bytes = mm_u32(block + 4 * i);
        if (bytes == MM_NO_METADATA)
            continue;
        if (bytes > size - at)
            return "a block of metadata ends inside a value";
        at += bytes;
    }
    return at == size ? NULL : "bytes behind the last value of a block of metadata";
}

/* A place in a block that was checked: the next id, the next metadata. */
typedef struct {
    const uint8_t *table, *bytes;
} mm_walk;

static inline mm_walk mm_walk_block(const uint8_t *block, uint64_t size, uint64_t count)
{
    return size == 0 ? (mm_walk){NULL, NULL} : (mm_walk){block, block + 4 * count};
}

static inline mm_id mm_next_id(mm_walk *walk)
{
    const uint32_t tag = mm_u32(walk->table);
    const mm_id id = {walk->bytes, tag & ~MM_ID_IS_INT, (tag & MM_ID_IS_INT) != 0};
    walk->table += 4;
    walk->bytes += id.size;
    return id;
}

/* NULL: nothing is said of this row. */
static inline const uint8_t *mm_next_metadata(mm_walk *walk, uint32_t *size)
{
    if (walk->table == NULL)
        return NULL;
    *size = mm_u32(walk->table);
    walk->table += 4;
    if (*size == MM_NO_METADATA)
        return NULL;
    walk->bytes += *size;
    return walk->bytes - *size;
}

/* ---- replay */

enum { MM_KIND_INSERT = 1, MM_KIND_UPDATE = 2, MM_KIND_DELETE = 3, MM_KIND_UPSERT = 4 };
enum { MM_NOT_TAKEN = 0, MM_FROM_MATRIX = 1 }; /* an origin that is no extent */

/* Why a replay stopped. */
enum { MM_REPLAY_DONE, MM_REPLAY_SHAPE, MM_REPLAY_CONTRADICTS, MM_REPLAY_BOUNDS, MM_REPLAY_MEMORY };

typedef struct {
    int64_t *supply; /* rows that nobody sees; the last one is taken first */
    uint64_t left, room;
    int32_t *origins;      /* by row: what the caller calls the segment of its vector, MM_FROM_MATRIX or MM_NOT_TAKEN */
    int64_t *places;       /* by row: the vector's offset in the extent, or its row of the matrix */
    uint64_t *born, *died; /* by row: as in state/rows.py */
    uint64_t rows;         /* that the four arrays have places for */
    uint64_t row_bytes, dtype;
    uint64_t applied, skipped;
} mm_replay;

/* Ends the life of a row that an id has left. */
static inline bool mm_retire(mm_directory *self, mm_replay *replay, int64_t row, uint64_t lsn)
{
    if ((uint64_t)row >= replay->rows)
        return false;
    if (replay->origins[row] == MM_NOT_TAKEN) {
        replay->died[row] = lsn;
        return true;
    }
    if (replay->left == replay->room)
        return false;
    mm_forget_row(self, row);
    replay->origins[row] = MM_NOT_TAKEN;
    replay->died[row] = 0;
    replay->supply[replay->left++] = row;
    return true;
}

/* Applies the frame at `offset` of a segment, whose place and checksum were verified. */
static int mm_replay_frame(mm_directory *self, mm_replay *replay, const uint8_t *segment, uint64_t size,
                           uint64_t offset, uint64_t lsn, int32_t origin)
{
    mm_header header;
    if (offset > size || sizeof header > size - offset)
        return MM_REPLAY_BOUNDS;
    memcpy(&header, segment + offset, sizeof header);
    const uint64_t rows = header.rows, ids_bytes = header.id_bytes, meta_bytes = header.meta_bytes;
    const uint64_t content = offset + sizeof header;
    if (header.vector_bytes + ids_bytes + meta_bytes > size - content)
        return MM_REPLAY_BOUNDS;
    const uint8_t *ids = segment + content + header.vector_bytes, *meta = ids + ids_bytes;
    const bool vectors = header.dtype != 0;
    if (vectors && (header.dtype != replay->dtype || header.vector_bytes != rows * replay->row_bytes))
        return MM_REPLAY_SHAPE;
    if ((!vectors && (header.kind == MM_KIND_INSERT || header.kind == MM_KIND_UPSERT)) ||
        mm_check_ids(ids, ids_bytes, rows) != NULL || mm_check_metadata(meta, meta_bytes, rows) != NULL)
        return MM_REPLAY_CONTRADICTS;
    mm_walk names = mm_walk_block(ids, ids_bytes, rows), metadata = mm_walk_block(meta, meta_bytes, rows);
    for (uint64_t i = 0; i < rows; i++) {
        const mm_id id = mm_next_id(&names);
        uint32_t said_bytes = 0;
        const uint8_t *said = mm_next_metadata(&metadata, &said_bytes);
        int64_t before = mm_find_id(self, &id);
        const bool alive = before != MM_NO_ROW;
        if (!alive && (header.kind == MM_KIND_DELETE || header.kind == MM_KIND_UPDATE)) {
            replay->skipped++;
            continue;
        }
        if (alive && (uint64_t)before >= replay->rows)
            return MM_REPLAY_BOUNDS;
        replay->applied++;
        if (header.kind == MM_KIND_DELETE) {
            mm_pop_id(self, &id);
            if (!mm_retire(self, replay, before, lsn))
                return MM_REPLAY_BOUNDS;
            continue;
        }
        if (replay->left == 0 || (uint64_t)replay->supply[replay->left - 1] >= replay->rows)
            return MM_REPLAY_BOUNDS;
        const int64_t row = replay->supply[replay->left - 1];
        int32_t from = origin;
        int64_t place = (int64_t)(content + i * replay->row_bytes);
        if (!vectors) { /* an update of one that is alive: its vector stays */
            from = replay->origins[before] == MM_NOT_TAKEN ? MM_FROM_MATRIX : replay->origins[before];
            place = replay->origins[before] == MM_NOT_TAKEN ? before : replay->places[before];
        }
        if (said == NULL && alive && header.kind != MM_KIND_INSERT) {
            const mm_piece *kept = mm_metadata(self, before);
            if (kept != NULL) {
                said = kept->bytes;
                said_bytes = kept->size;
            }
        }
        if (!mm_put_id(self, &id, row, said, said_bytes, &before))
            return MM_REPLAY_MEMORY;
        replay->left--;
        replay->origins[row] = from;
        replay->places[row] = place;
        replay->born[row] = lsn;
        replay->died[row] = UINT64_MAX;
        if (alive && !mm_retire(self, replay, before, lsn))
            return MM_REPLAY_BOUNDS;
    }
    return MM_REPLAY_DONE;
}

#endif
