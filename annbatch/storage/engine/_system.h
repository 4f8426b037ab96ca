/* The few calls to the operating system that the engine needs: positional reads and advice on them, file stamps, threads, a
 * clock, atomic counters.
 *
 * Positional reads and not memory maps: a file that is cut short while it is mapped kills the process with SIGBUS, while
 * a read reports it. Threads live for one call only, so nothing has to survive a fork and nothing is left behind.
 */
#ifndef ANNBATCH_SYSTEM_H
#define ANNBATCH_SYSTEM_H

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>

#include "_plan.h"

typedef void (*worker_fn)(void *context, int number);

#ifdef _WIN32
/* No positional vector reads here: files go through the fallback, and memory is copied by the calling thread. */
#define CAN_READ_FILES 0
struct iovec { void *iov_base; size_t iov_len; };
static int file_open(const char *path, stamp_t *stamp) { (void)path; (void)stamp; return -ENOSYS; }
static int file_exists(const char *path) { (void)path; return 0; }
static void file_close(int fd) { (void)fd; }
static int64_t file_read(int fd, char *to, int64_t n, int64_t at) { (void)fd; (void)to; (void)n; (void)at; return -ENOSYS; }
static int64_t file_read_pieces(int fd, struct iovec *to, int n, int64_t at) { (void)fd; (void)to; (void)n; (void)at; return -ENOSYS; }
static void file_advise(int fd, int64_t n, int64_t at) { (void)fd; (void)n; (void)at; }
static int64_t now_ns(void) { return 0; }
static void run_workers(worker_fn work, void *context, int n) { (void)n; work(context, 0); }
static int64_t next_number(int64_t *counter) { return (*counter)++; }
static int64_t raise_to(int64_t *mark, int64_t value) {
    int64_t before = *mark;
    if (before < value) *mark = value;
    return before;
}
#else
#define CAN_READ_FILES 1
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static int file_exists(const char *path) { return access(path, F_OK) == 0; }

/* Open for reading: a file descriptor, or minus errno; -EISDIR for all that is not a regular file. Such are not opened:
 * that alone may wait for ever (a pipe) or do something (a device). */
static int file_open(const char *path, stamp_t *stamp) {
    struct stat s;
    int fd;
    if (stat(path, &s) != 0) return -errno;
    if (!S_ISREG(s.st_mode)) return -EISDIR;
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) return -errno;
    if (fstat(fd, &s) != 0) {
        int error = errno;
        close(fd);
        return -error;
    }
    stamp->size = (int64_t)s.st_size;
#ifdef __APPLE__
    stamp->time_ns = (int64_t)s.st_mtimespec.tv_sec * 1000000000 + s.st_mtimespec.tv_nsec;
#else
    stamp->time_ns = (int64_t)s.st_mtim.tv_sec * 1000000000 + s.st_mtim.tv_nsec;
#endif
    stamp->inode = (int64_t)s.st_ino;
    if (!S_ISREG(s.st_mode)) {
        close(fd);
        return -EISDIR;
    }
    return fd;
}

static void file_close(int fd) { close(fd); }

/* Read n bytes: the number read, less than n only at the end of the file, or minus errno. */
static int64_t file_read(int fd, char *to, int64_t n, int64_t at) {
    int64_t done = 0;
    while (done < n) {
        ssize_t got = pread(fd, to + done, (size_t)(n - done), (off_t)(at + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return -errno;
        if (got == 0) break;
        done += got;
    }
    return done;
}

/* Fill n buffers from neighbouring bytes of the file; same result as file_read. The list is used up. */
static int64_t file_read_pieces(int fd, struct iovec *to, int n, int64_t at) {
    int64_t done = 0;
    while (n > 0) {
        ssize_t got = preadv(fd, to, n, (off_t)(at + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return -errno;
        if (got == 0) break;
        done += got;
        while (n > 0 && (size_t)got >= to->iov_len) {
            got -= (ssize_t)to->iov_len;
            to++;
            n--;
        }
        if (n > 0) {
            to->iov_base = (char *)to->iov_base + got;
            to->iov_len -= (size_t)got;
        }
    }
    return done;
}

/* Ask the system to begin to read what will be read soon. Advice only: whether it is taken changes nothing but the time. */
static void file_advise(int fd, int64_t n, int64_t at) {
#ifdef POSIX_FADV_WILLNEED
    posix_fadvise(fd, (off_t)at, (off_t)n, POSIX_FADV_WILLNEED);
#elif defined(F_RDADVISE)
    struct radvisory advice = {(off_t)at, (int)(n > INT32_MAX ? INT32_MAX : n)};
    fcntl(fd, F_RDADVISE, &advice);
#else
    (void)fd; (void)n; (void)at;
#endif
}

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

typedef struct { worker_fn work; void *context; int number; } start_t;

static void *start_worker(void *start) {
    ((start_t *)start)->work(((start_t *)start)->context, ((start_t *)start)->number);
    return NULL;
}

/* Run work(context, 0..n-1), number 0 in this thread, and wait for all. Threads that cannot be started are done without:
 * the workers share one queue of tasks. */
static void run_workers(worker_fn work, void *context, int n) {
    pthread_t *threads = n > 1 ? malloc(sizeof(pthread_t) * (size_t)n) : NULL;
    start_t *starts = n > 1 ? malloc(sizeof(start_t) * (size_t)n) : NULL;
    int started = 0;
    if (threads && starts)
        for (int i = 1; i < n; i++) {
            starts[started] = (start_t){work, context, i};
            if (pthread_create(&threads[started], NULL, start_worker, &starts[started]) != 0) break;
            started++;
        }
    work(context, 0);
    for (int i = 0; i < started; i++) pthread_join(threads[i], NULL);
    free(threads);
    free(starts);
}

static int64_t next_number(int64_t *counter) { return __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED); }

/* Raise a mark to a value, if it is lower: the mark as it was. */
static int64_t raise_to(int64_t *mark, int64_t value) {
    int64_t before = __atomic_load_n(mark, __ATOMIC_RELAXED);
    while (before < value && !__atomic_compare_exchange_n(mark, &before, value, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    return before;
}
#endif

#endif
