/* Compares every fold that this machine can run with the checksum computed bit by bit. Exit status 0: all agree.
 * Run by tests/kernel/test_crc32.py and tools/sanitize.sh. */
#include <stdio.h>
#include <stdlib.h>

#include "../../mmwal/kernel/crc32.h"

static int check(const char *name, mm_fold_fn fold)
{
    enum { SIZE_MAX_TESTED = 1100 };
    uint64_t random = 0x9E3779B97F4A7C15;
    for (size_t size = 0; size <= SIZE_MAX_TESTED; size++) {
        const size_t offset = size % 7;
        uint8_t *data = malloc(offset + size + 1); /* of exact size, so that the sanitizer sees a read beyond */
        if (data == NULL)
            return 1;
        for (size_t i = 0; i < offset + size; i++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            data[i] = (uint8_t)(random >> 56);
        }
        const uint32_t seed = (uint32_t)(random >> 20);
        const uint32_t expected = ~mm_crc_bitwise(~seed, data + offset, size);
        const uint32_t found = mm_crc32_by(fold, seed, data + offset, size);
        free(data);
        if (found != expected) {
            printf("%s: size %zu offset %zu seed %08x: %08x, expected %08x\n", name, size, offset, seed, found, expected);
            return 1;
        }
    }
    printf("%s: agrees\n", name);
    return 0;
}

int main(void)
{
    int failed = 0;
    mm_crc32_init();
    failed |= check("portable", mm_fold_portable);
#ifdef MMWAL_CRC_X86
    if (mm_fold_best() != mm_fold_portable)
        failed |= check("pclmul", mm_fold_128);
    if (mm_fold_best() == mm_fold_512)
        failed |= check("vpclmul", mm_fold_512);
#endif
    failed |= check("best", mm_fold_best());
    return failed;
}
