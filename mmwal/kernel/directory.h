/* The directory in memory: which id stands in which row, and what each row's id and metadata are.
 * Plain C over memory of its own; no Python, no system call, no lock. The face is _directory.h, the twin directory.py.
 *
 *   - By row, in chunks: the id (an int itself, or a copy of the bytes) and the metadata (a copy, or none). Nothing of a
 *     row with a name moves, whatever is put beside it; so who knows that rows keep their names reads them without the GIL.
 *   - By id: shards of slots, each the hash's low half and the row. Collisions go to the next slot, removal moves what
 *     follows back, so there are no tombstones. A shard grows by itself: no insert waits for more than one of them.
 *   - The hash is keyed, so nobody can prepare ids that collide.
 *   - A slot's row carries the id that found it, or the slot matches nothing: no order of calls reads freed memory.
 *   - What cannot be allocated is said before anything changes.
 */
#ifndef MMWAL_DIRECTORY_H
#define MMWAL_DIRECTORY_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MM_ID_BYTES_MAX 65535
#define MM_ID_IS_INT UINT32_C(0x80000000)
#define MM_NO_METADATA UINT32_C(0xFFFFFFFF)
#define MM_NO_ROW INT64_C(-1)
#define MM_ROWS_MAX UINT32_MAX /* a slot holds a row's number plus one */
#define MM_CHUNK_ROWS 16384
#define MM_SHELF_CHUNKS 512
#define MM_SHELVES 512 /* room for 2^32 rows */
#define MM_SHARDS 256
#define MM_SHARD_SLOTS_LEAST 16

enum { MM_NAME_NONE, MM_NAME_INT, MM_NAME_STR };

typedef struct {
    uint32_t size;
    uint8_t bytes[];
} mm_piece;

typedef struct {
    const uint8_t *bytes;
    uint32_t size;
    bool is_int; /* then 8 bytes, little-endian */
} mm_id;

typedef struct {
    uint64_t *slots; /* low half of the hash, then row + 1; 0: empty */
    uint64_t mask, used;
} mm_shard;

typedef struct {
    uint8_t kinds[MM_CHUNK_ROWS];
    uint64_t names[MM_CHUNK_ROWS];      /* the int, or the address of a piece */
    mm_piece *metadata[MM_CHUNK_ROWS]; /* NULL: none */
} mm_chunk;

typedef struct {
    mm_chunk **shelves[MM_SHELVES]; /* of chunks; NULL, shelf or chunk: no row of it has a name yet */
    uint64_t count;                 /* ids */
    uint64_t key[2];
    mm_shard shards[MM_SHARDS];
} mm_directory;

/* ---- rows */

/* The chunk of a row; NULL where no row of it has a name. */
static inline mm_chunk *mm_chunk_of(const mm_directory *self, int64_t row)
{
    const uint64_t number = (uint64_t)row / MM_CHUNK_ROWS; /* of a negative row: far beyond */
    mm_chunk *const *shelf = number < MM_SHELVES * MM_SHELF_CHUNKS ? self->shelves[number / MM_SHELF_CHUNKS] : NULL;
    return shelf != NULL ? shelf[number % MM_SHELF_CHUNKS] : NULL;
}

static inline int mm_kind_of(const mm_directory *self, int64_t row)
{
    const mm_chunk *chunk = mm_chunk_of(self, row);
    return chunk != NULL ? chunk->kinds[row % MM_CHUNK_ROWS] : MM_NAME_NONE;
}

/* The id of a row that has one. */
static inline mm_id mm_name(const mm_directory *self, int64_t row)
{
    const mm_chunk *chunk = mm_chunk_of(self, row);
    const uint64_t *name = &chunk->names[row % MM_CHUNK_ROWS];
    if (chunk->kinds[row % MM_CHUNK_ROWS] == MM_NAME_INT)
        return (mm_id){(const uint8_t *)name, 8, true};
    const mm_piece *piece = (const mm_piece *)(uintptr_t)*name;
    return (mm_id){piece->bytes, piece->size, false};
}

static inline const mm_piece *mm_metadata(const mm_directory *self, int64_t row)
{
    const mm_chunk *chunk = mm_chunk_of(self, row);
    return chunk != NULL ? chunk->metadata[row % MM_CHUNK_ROWS] : NULL;
}

static inline mm_piece *mm_new_piece(const uint8_t *bytes, uint32_t size)
{
    mm_piece *piece = malloc(sizeof *piece + size);
    if (piece != NULL) {
        piece->size = size;
        if (size != 0)
            memcpy(piece->bytes, bytes, size);
    }
    return piece;
}

/* Makes the chunk of a row. */
static bool mm_reserve_row(mm_directory *self, int64_t row)
{
    const uint64_t number = (uint64_t)row / MM_CHUNK_ROWS;
    mm_chunk ***shelf = &self->shelves[number / MM_SHELF_CHUNKS];
    if (*shelf == NULL && (*shelf = calloc(MM_SHELF_CHUNKS, sizeof **shelf)) == NULL)
        return false;
    mm_chunk **chunk = &(*shelf)[number % MM_SHELF_CHUNKS];
    return *chunk != NULL || (*chunk = calloc(1, sizeof **chunk)) != NULL;
}

static void mm_clear_row(mm_chunk *chunk, uint64_t at)
{
    if (chunk->kinds[at] == MM_NAME_STR)
        free((void *)(uintptr_t)chunk->names[at]);
    chunk->kinds[at] = MM_NAME_NONE;
    free(chunk->metadata[at]);
    chunk->metadata[at] = NULL;
}

/* ---- the hash */

static inline uint64_t mm_stir(uint64_t a, uint64_t b)
{
    const unsigned __int128 product = (unsigned __int128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t mm_hash(const mm_directory *self, const mm_id *id)
{
    const uint8_t *at = id->bytes;
    uint32_t left = id->size;
    uint64_t state = self->key[0] ^ ((uint64_t)id->size << 1 | id->is_int), word;
    for (; left > 8; left -= 8, at += 8) {
        memcpy(&word, at, 8);
        state = mm_stir(state ^ word, self->key[1]);
    }
    word = 0;
    memcpy(&word, at, left);
    return mm_stir(mm_stir(state ^ word, self->key[1]), self->key[0]);
}

static inline mm_shard *mm_shard_of(mm_directory *self, uint64_t hash) { return &self->shards[hash >> 56]; }

static inline bool mm_is_named(const mm_directory *self, int64_t row, const mm_id *id)
{
    if (mm_kind_of(self, row) != (id->is_int ? MM_NAME_INT : MM_NAME_STR))
        return false;
    const mm_id name = mm_name(self, row);
    return name.size == id->size && memcmp(name.bytes, id->bytes, id->size) == 0;
}

/* The slot of an id, or the empty one where it would stand; the shard has slots. */
static inline uint64_t mm_slot_of(const mm_directory *self, const mm_shard *shard, uint64_t hash, const mm_id *id)
{
    const uint64_t low = hash << 32;
    uint64_t at = hash & shard->mask;
    for (uint64_t slot; (slot = shard->slots[at]) != 0; at = (at + 1) & shard->mask)
        if ((slot ^ low) <= UINT32_MAX && mm_is_named(self, (int64_t)(uint32_t)slot - 1, id))
            break;
    return at;
}

static bool mm_grow_shard(mm_shard *shard)
{
    const uint64_t before = shard->slots == NULL ? 0 : shard->mask + 1;
    if (shard->used + 1 <= before - before / 8)
        return true;
    const uint64_t size = before == 0 ? MM_SHARD_SLOTS_LEAST : 2 * before;
    uint64_t *slots = calloc(size, sizeof *slots);
    if (slots == NULL)
        return false;
    for (uint64_t i = 0; i < before; i++) {
        uint64_t at = (shard->slots[i] >> 32) & (size - 1);
        if (shard->slots[i] == 0)
            continue;
        while (slots[at] != 0)
            at = (at + 1) & (size - 1);
        slots[at] = shard->slots[i];
    }
    free(shard->slots);
    shard->slots = slots;
    shard->mask = size - 1;
    return true;
}

/* Empties a slot and moves those behind it that may stand nearer to their place. */
static void mm_empty_slot(mm_shard *shard, uint64_t hole)
{
    uint64_t at = hole;
    for (uint64_t slot; (slot = shard->slots[at = (at + 1) & shard->mask]) != 0;) {
        const uint64_t home = (slot >> 32) & shard->mask;
        if (((at - home) & shard->mask) >= ((at - hole) & shard->mask)) {
            shard->slots[hole] = slot;
            hole = at;
        }
    }
    shard->slots[hole] = 0;
    shard->used--;
}

/* Has the memory read where an id stands, or would: what is asked for a few ids ahead is there when it is needed. */
static inline void mm_expect_id(const mm_directory *self, const mm_id *id)
{
    const uint64_t hash = mm_hash(self, id);
    const mm_shard *shard = &self->shards[hash >> 56];
    if (shard->slots != NULL)
        __builtin_prefetch(&shard->slots[hash & shard->mask], 1);
}

/* ---- what callers do; rows are below MM_ROWS_MAX */

/* The row of an id, or MM_NO_ROW. */
static inline int64_t mm_find_id(const mm_directory *self, const mm_id *id)
{
    const uint64_t hash = mm_hash(self, id);
    const mm_shard *shard = &self->shards[hash >> 56];
    if (shard->slots == NULL)
        return MM_NO_ROW;
    return (int64_t)(uint32_t)shard->slots[mm_slot_of(self, shard, hash, id)] - 1;
}

/* Takes an id out; the row keeps its name. Returns the row, or MM_NO_ROW. */
static int64_t mm_pop_id(mm_directory *self, const mm_id *id)
{
    const uint64_t hash = mm_hash(self, id);
    mm_shard *shard = mm_shard_of(self, hash);
    if (shard->slots == NULL)
        return MM_NO_ROW;
    const uint64_t at = mm_slot_of(self, shard, hash, id);
    if (shard->slots[at] == 0)
        return MM_NO_ROW;
    const int64_t row = (int64_t)(uint32_t)shard->slots[at] - 1;
    mm_empty_slot(shard, at);
    self->count--;
    return row;
}

/* Lets a row's name and metadata go, and the id, should it still stand there. */
static void mm_forget_row(mm_directory *self, int64_t row)
{
    if (mm_kind_of(self, row) == MM_NAME_NONE)
        return;
    const mm_id name = mm_name(self, row);
    if (mm_find_id(self, &name) == row)
        mm_pop_id(self, &name);
    mm_clear_row(mm_chunk_of(self, row), (uint64_t)row % MM_CHUNK_ROWS);
}

/* Lets an id stand in a row, with metadata or none (NULL); the row's earlier name is forgotten. The row in which the id
 * stood until then, or MM_NO_ROW, comes back in *before; that row keeps its name. False: no memory, nothing changed. */
static bool mm_put_id(mm_directory *self, const mm_id *id, int64_t row, const uint8_t *meta, uint32_t meta_bytes,
                      int64_t *before)
{
    const uint64_t hash = mm_hash(self, id);
    mm_shard *shard = mm_shard_of(self, hash);
    if (!mm_reserve_row(self, row) || !mm_grow_shard(shard))
        return false;
    mm_piece *name = NULL, *metadata = NULL;
    if ((!id->is_int && (name = mm_new_piece(id->bytes, id->size)) == NULL) ||
        (meta != NULL && (metadata = mm_new_piece(meta, meta_bytes)) == NULL)) {
        free(name);
        return false;
    }
    uint64_t number = (uint64_t)(uintptr_t)name;
    if (id->is_int)
        memcpy(&number, id->bytes, 8);
    mm_forget_row(self, row); /* may empty a slot, so before the slot is looked for */
    const uint64_t at = mm_slot_of(self, shard, hash, id);
    *before = (int64_t)(uint32_t)shard->slots[at] - 1;
    if (*before == MM_NO_ROW) {
        shard->used++;
        self->count++;
    }
    shard->slots[at] = hash << 32 | (uint64_t)(row + 1);
    mm_chunk *chunk = mm_chunk_of(self, row);
    const uint64_t place = (uint64_t)row % MM_CHUNK_ROWS;
    chunk->kinds[place] = id->is_int ? MM_NAME_INT : MM_NAME_STR;
    chunk->names[place] = number;
    chunk->metadata[place] = metadata;
    return true;
}

/* ---- blocks of rows that keep their names meanwhile; see format/frame.py */

/* The size of the block of the ids of rows; *nameless is the first one without, or `count`. */
static uint64_t mm_ids_bytes(const mm_directory *self, const int64_t *rows, uint64_t count, uint64_t *nameless)
{
    uint64_t size = 4 * count, i = 0;
    for (; i < count && mm_kind_of(self, rows[i]) != MM_NAME_NONE; i++)
        size += mm_name(self, rows[i]).size;
    *nameless = i;
    return size;
}

/* Writes that block. False: it is not as long as `size`, since somebody did not keep to that. */
static bool mm_write_ids(const mm_directory *self, const int64_t *rows, uint64_t count, uint8_t *block, uint64_t size)
{
    uint8_t *at = block + 4 * count, *const end = block + size;
    for (uint64_t i = 0; i < count; i++) {
        if (mm_kind_of(self, rows[i]) == MM_NAME_NONE)
            return false;
        const mm_id name = mm_name(self, rows[i]);
        const uint32_t tag = name.size | (name.is_int ? MM_ID_IS_INT : 0);
        if (name.size > (uint64_t)(end - at))
            return false;
        memcpy(block + 4 * i, &tag, 4);
        memcpy(at, name.bytes, name.size);
        at += name.size;
    }
    return at == end;
}

/* The size of the block of the metadata of rows; 0: none has any. */
static uint64_t mm_metadata_bytes(const mm_directory *self, const int64_t *rows, uint64_t count)
{
    uint64_t size = 0;
    bool any = false;
    for (uint64_t i = 0; i < count; i++) {
        const mm_piece *piece = mm_metadata(self, rows[i]);
        any |= piece != NULL;
        size += piece != NULL ? piece->size : 0;
    }
    return any ? 4 * count + size : 0;
}

/* Writes that block, unless it is empty. False as `mm_write_ids`. */
static bool mm_write_metadata(const mm_directory *self, const int64_t *rows, uint64_t count, uint8_t *block,
                              uint64_t size)
{
    if (size == 0)
        return true;
    uint8_t *at = block + 4 * count, *const end = block + size;
    for (uint64_t i = 0; i < count; i++) {
        const mm_piece *piece = mm_metadata(self, rows[i]);
        const uint32_t bytes = piece != NULL ? piece->size : MM_NO_METADATA;
        memcpy(block + 4 * i, &bytes, 4);
        if (piece == NULL)
            continue;
        if (piece->size > (uint64_t)(end - at))
            return false;
        memcpy(at, piece->bytes, piece->size);
        at += piece->size;
    }
    return at == end;
}

static void mm_free_chunk(mm_chunk *chunk)
{
    for (uint64_t at = 0; at < MM_CHUNK_ROWS; at++)
        mm_clear_row(chunk, at);
    free(chunk);
}

static void mm_free_directory(mm_directory *self)
{
    for (int shelf = 0; shelf < MM_SHELVES; shelf++) {
        if (self->shelves[shelf] == NULL)
            continue;
        for (int at = 0; at < MM_SHELF_CHUNKS; at++)
            if (self->shelves[shelf][at] != NULL)
                mm_free_chunk(self->shelves[shelf][at]);
        free(self->shelves[shelf]);
    }
    for (int i = 0; i < MM_SHARDS; i++)
        free(self->shards[i].slots);
}

#endif
