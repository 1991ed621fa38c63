/* Copying into a mapped file.
 *
 *   - No store may reach over the end of a page. On a full copy-on-write file system (btrfs) making one page writable
 *     can write-protect its neighbour; an instruction that needs both at once then faults for ever. The wide stores that
 *     libc's copy ends with do reach over, so every page is a copy of its own.
 */
#ifndef MMWAL_COPY_H
#define MMWAL_COPY_H

#include <stdint.h>
#include <string.h>

#define MM_PAGE_BYTES 4096

/* Copies `size` bytes; returns the place after them. */
static inline uint8_t *mm_copy(uint8_t *to, const void *from, uint64_t size)
{
    const uint8_t *next = from;
    uint64_t room = MM_PAGE_BYTES - ((uintptr_t)to & (MM_PAGE_BYTES - 1));
    for (; size > room; size -= room, next += room, to += room, room = MM_PAGE_BYTES)
        memmove(to, next, (size_t)room);
    if (size != 0)
        memmove(to, next, (size_t)size);
    return to + size;
}

#endif
