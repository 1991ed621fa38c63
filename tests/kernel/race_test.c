/* Many threads on one log, over the kernel's own functions, without Python: made for the thread sanitizer.
 *
 *   appenders  reserve, write, settle; now and then one stops between reserve and write until others have gone far on
 *   keeper     attaches segments ahead of the cursor, detaches those behind `published`
 *   syncer     moves `durable` up to `published`
 *   reader     follows commit words alone, from the start, and looks at every byte of every frame
 *   watcher    checks that everything below `published` is whole, and that `published` never goes back
 *
 * The segments hold the frames of an earlier life, under other salts. Exit status 0: every check held.
 */
#define MM_PAUSE() pause_here()
static void pause_here(void);

#include "../../mmwal/kernel/cursor.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>

enum { APPENDERS = 6, APPENDS = 400, SEGMENTS = 220, SEGMENT_BYTES = MM_SEGMENT_BYTES_MIN, PAYLOAD_MAX = 700 };

static _Alignas(64) uint8_t memory[SEGMENTS][SEGMENT_BYTES];
static _Alignas(64) uint8_t block[MM_BLOCK_BYTES];
static const mm_cursor log_cursor = {block, SEGMENT_BYTES};
static uint64_t ends[APPENDERS][APPENDS];
static int finished; /* appenders; atomic */
static int pauses;   /* atomic */
static _Thread_local int pause_next;
static _Thread_local uint64_t seed;

#define CHECK(condition)                                                         \
    do {                                                                         \
        if (!(condition)) {                                                      \
            fprintf(stderr, "line %d: %s does not hold\n", __LINE__, #condition); \
            exit(3);                                                             \
        }                                                                        \
    } while (0)

static uint64_t next_random(void)
{
    seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return seed >> 33;
}

static uint64_t salt_of(uint64_t number) { return mm_commit_word(99, number, 0) ^ 0xABCDEF; }

static int all_finished(void) { return __atomic_load_n(&finished, __ATOMIC_RELAXED) == APPENDERS; }

/* The paused appender waits until two segments' worth has been reserved behind it, or it is the last one working. */
static void pause_here(void)
{
    if (!pause_next)
        return;
    pause_next = 0;
    const uint64_t mine = __atomic_load_n(mm_word(&log_cursor, MM_RESERVED), __ATOMIC_RELAXED);
    for (int patience = 0; patience < 500; patience++) {
        const uint64_t now = __atomic_load_n(mm_word(&log_cursor, MM_RESERVED), __ATOMIC_RELAXED);
        if (now > mine + 2 * SEGMENT_BYTES || __atomic_load_n(&finished, __ATOMIC_RELAXED) >= APPENDERS - 1)
            break;
        sched_yield();
    }
    __atomic_fetch_add(&pauses, 1, __ATOMIC_RELAXED);
}

static void *append_all(void *argument)
{
    const uint64_t me = (uint64_t)(uintptr_t)argument;
    uint8_t payload[PAYLOAD_MAX];
    seed = me + 1;
    for (uint64_t step = 0; step < APPENDS; step++) {
        const mm_entry entry = {
            .kind = 32,
            .rows = (uint32_t)step,
            .txn = me + 1,
            .vector = payload,
            .vector_bytes = next_random() % PAYLOAD_MAX,
        };
        memset(payload, (int)(me * 31 + step) & 0xFF, sizeof payload);
        const uint64_t length = mm_entry_length(&entry);
        mm_claim claim;
        int code;
        while ((code = mm_reserve(&log_cursor, length, &claim)) == MM_NOT_READY)
            sched_yield();
        CHECK(code == 0);
        pause_next = next_random() % 50 == 0;
        mm_write(&log_cursor, &claim, &entry);
        const uint64_t end = claim.frame.lsn + length;
        int64_t result = mm_settle(&log_cursor, end);
        CHECK(result == (int64_t)end || result == -(int64_t)end);
        if (result < 0)
            while (mm_advance(&log_cursor) < end)
                sched_yield();
        CHECK(mm_load(&log_cursor, MM_PUBLISHED) >= end); /* what is acknowledged cannot be cut off */
        ends[me][step] = end;
    }
    __atomic_fetch_add(&finished, 1, __ATOMIC_RELAXED);
    return NULL;
}

static void *keep(void *unused)
{
    uint64_t oldest = 0, ahead = 0;
    while (!all_finished()) {
        const uint64_t published = mm_load(&log_cursor, MM_PUBLISHED);
        while (oldest < ahead && mm_data_end(&log_cursor, oldest) < published)
            mm_detach(&log_cursor, oldest++);
        if (ahead < SEGMENTS && ahead - oldest < 5) {
            mm_attach(&log_cursor, ahead, memory[ahead], salt_of(ahead));
            ahead++;
        }
        sched_yield();
    }
    return unused;
}

static void *sync_all(void *unused)
{
    while (!all_finished()) {
        const uint64_t published = mm_load(&log_cursor, MM_PUBLISHED);
        __atomic_store_n(mm_word(&log_cursor, MM_DURABLE), published, __ATOMIC_RELEASE);
        sched_yield();
    }
    return unused;
}

/* Checks every frame of a segment up to `end`; returns where the frames stop. */
static uint64_t read_segment(uint64_t number, uint64_t end, uint64_t *frames)
{
    static _Thread_local mm_header headers[SEGMENT_BYTES / 64];
    const uint64_t base = number * SEGMENT_BYTES;
    const mm_scanned found = mm_scan(memory[number], base, salt_of(number), base + MM_DATA_OFFSET, end,
                                     (uint8_t *)headers, SEGMENT_BYTES / 64, true);
    CHECK(found.reason == MM_SCAN_END || found.reason == MM_SCAN_NO_FRAME); /* visible means whole */
    for (uint64_t i = 0; i < found.count; i++) {
        const mm_header *header = &headers[i];
        CHECK(header->durable_lsn <= header->start_lsn);
        if (header->kind == MM_KIND_PAD)
            continue;
        const uint8_t expected = (uint8_t)((header->txn - 1) * 31 + header->rows);
        const uint8_t *payload = memory[number] + (header->start_lsn - base) + 64;
        for (uint32_t byte = 0; byte < header->vector_bytes; byte++)
            CHECK(payload[byte] == expected);
        if (frames != NULL)
            ++*frames;
    }
    return found.stop;
}

/* Never looks at a word of the block: what orders it are the commit words alone. */
static void *read_on(void *unused)
{
    uint64_t number = 0;
    while (!all_finished() && number < SEGMENTS) {
        const uint64_t end = mm_data_end(&log_cursor, number);
        if (read_segment(number, end, NULL) == end)
            number++; /* else there is an unfinished frame, or the end */
        else
            sched_yield();
    }
    return unused;
}

static void *watch(void *unused)
{
    uint64_t before = 0;
    while (!all_finished()) {
        const uint64_t published = mm_load(&log_cursor, MM_PUBLISHED);
        CHECK(published >= before);
        CHECK(published <= mm_load(&log_cursor, MM_RESERVED));
        for (uint64_t number = before / SEGMENT_BYTES; number <= published / SEGMENT_BYTES; number++) {
            const uint64_t data_end = mm_data_end(&log_cursor, number);
            const uint64_t end = published < data_end ? published : data_end;
            if (end > mm_data_start(&log_cursor, number))
                CHECK(read_segment(number, end, NULL) == end);
        }
        before = published;
        sched_yield();
    }
    return unused;
}

/* Frames of an earlier life: valid for another salt at every place where one could begin. */
static void fill_with_earlier_life(void)
{
    for (uint64_t number = 0; number < SEGMENTS; number++)
        for (uint64_t at = 0; at < SEGMENT_BYTES; at += 64) {
            const uint64_t lsn = number * SEGMENT_BYTES + at, salt = salt_of(number) ^ 1;
            mm_header header = {.commit = mm_commit_word(salt, lsn, 64), .kind = 32, .start_lsn = lsn};
            header.frame_crc = mm_frame_crc(&header, memory[number] + at, sizeof header, salt);
            memcpy(memory[number] + at, &header, sizeof header);
        }
}

static void check_the_whole_log(void)
{
    uint64_t frames = 0, number = 0;
    const uint64_t published = mm_advance(&log_cursor);
    CHECK(published == mm_load(&log_cursor, MM_RESERVED));
    for (; number < published / SEGMENT_BYTES; number++)
        CHECK(read_segment(number, mm_data_end(&log_cursor, number), &frames) == mm_data_end(&log_cursor, number));
    CHECK(read_segment(number, published, &frames) == published);
    CHECK(frames == APPENDERS * APPENDS);
    for (int appender = 0; appender < APPENDERS; appender++)
        for (int step = 1; step < APPENDS; step++)
            CHECK(ends[appender][step] > ends[appender][step - 1]);
    printf("%d appends by %d threads over %d segments, %d pauses: whole\n", APPENDERS * APPENDS, APPENDERS,
           (int)number + 1, pauses);
}

int main(void)
{
    void *(*const others[])(void *) = {keep, sync_all, read_on, watch};
    enum { OTHERS = sizeof others / sizeof *others };
    pthread_t threads[APPENDERS + OTHERS];
    mm_crc32_init();
    fill_with_earlier_life();
    for (size_t word = MM_RESERVED; word <= MM_DURABLE; word += 64)
        *mm_word(&log_cursor, word) = mm_data_start(&log_cursor, 0);
    for (int i = 0; i < OTHERS; i++)
        CHECK(pthread_create(&threads[APPENDERS + i], NULL, others[i], NULL) == 0);
    for (int i = 0; i < APPENDERS; i++)
        CHECK(pthread_create(&threads[i], NULL, append_all, (void *)(uintptr_t)i) == 0);
    for (int i = 0; i < APPENDERS + OTHERS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    check_the_whole_log();
    return 0;
}
