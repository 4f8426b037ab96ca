/* Files of our own as memory, without a file handle.
 *
 * Only for files that nobody cuts short (storage/shared_arrays.py): to touch what is gone would end the process.
 */
#ifndef ANNBATCH_MAPPING_H
#define ANNBATCH_MAPPING_H

#include <stddef.h>

#ifdef _WIN32
#define CAN_MAP_FILES 0
static void *map_file(int fd, size_t n, int own) { (void)fd; (void)n; (void)own; return NULL; }
static void unmap_file(void *start, size_t n) { (void)start; (void)n; }
#else
#define CAN_MAP_FILES 1
#include <sys/mman.h>

/* own: what is written stays in this process, which then has copies of these pages. */
static void *map_file(int fd, size_t n, int own) {
    void *start = mmap(NULL, n, own ? PROT_READ | PROT_WRITE : PROT_READ, own ? MAP_PRIVATE : MAP_SHARED, fd, 0);
    return start == MAP_FAILED ? NULL : start;
}

static void unmap_file(void *start, size_t n) { munmap(start, n); }
#endif

#endif
