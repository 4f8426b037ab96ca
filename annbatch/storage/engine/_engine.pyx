"""The direct engine: worker threads that read, decode and place chunks without the GIL.

The work of a request is a list of jobs, one per stored array (see storage/reading/jobs.py). All their tasks form one
queue; each worker takes the next task, reads that chunk, decodes it, and copies the pieces while the chunk is still in
its cache. Where sparse rows are made dense, the queue holds stretches of rows instead: a worker has all tasks of a
stretch placed in its own scratch, which fits its cache, and writes the finished rows from there.

Once a read had to wait for the disk or the network, the reads of the tasks after it are announced to the system, which
then has many of them under way. Where files are in the page cache, that never happens.

Nothing here calls Python, except for codecs that only Python has. Workers share no memory that both write, but for a
few flags and counters: every piece and every dense row has its own destination, every worker its own scratch and error.
"""

import numpy as np

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.errno cimport ENOENT
from libc.stdint cimport int64_t, uint8_t, uint32_t, uintptr_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from ._plan cimport (
    CANNOT_READ, CHANGED, CHECKSUM, COLUMN, CUT_SHORT, DAMAGED, DENSIFY, FINE, LOSSY, MEMORY, PYTHON, WRONG_SIZE,
    densify_fn, extent_t, fetched_t, finish_piece, piece_t, place_piece, placing_t, scale_row, scaling_t, set_placing,
    set_scaling, stamp_t, stretch_t, task_t,
)

from ._plan import Failure

cdef extern from "_system.h" nogil:
    enum: CAN_READ_FILES
    cdef struct iovec:
        void *iov_base
        size_t iov_len
    ctypedef void (*worker_fn)(void *, int) noexcept nogil
    int file_open(const char *, stamp_t *)
    bint file_exists(const char *)
    void file_close(int)
    int64_t file_read(int, char *, int64_t, int64_t)
    int64_t file_read_pieces(int, iovec *, int, int64_t)
    void file_advise(int, int64_t, int64_t)
    int64_t now_ns()
    void run_workers(worker_fn, void *, int)
    int64_t next_number(int64_t *)
    int64_t raise_to(int64_t *, int64_t)

cdef extern from "_decode.h" nogil:
    enum:
        CODEC_BLOSC
        CODEC_ZSTD
        CODEC_ZLIB
        CODEC_GZIP
        CODEC_LZ4
        CODEC_LZ4_HDF5
        CODEC_LZF
        CODEC_SHUFFLE
        CODEC_CRC32C
        CODEC_FLETCHER32
        CODEC_PYTHON
        BAD_CHUNK
        BAD_CHECKSUM
        NO_MEMORY
    ctypedef struct scratch_t:
        pass
    int can_decode(int)
    void set_deflate(uintptr_t, uintptr_t, uintptr_t, uintptr_t)
    void make_crc_table()
    uint32_t crc32c_by(int, const char *, size_t)
    char *scratch_buffer(scratch_t *, int, size_t)
    void scratch_clear(scratch_t *)
    size_t scratch_bytes(const scratch_t *)
    int64_t decode_step(scratch_t *, int, int, const char *, size_t, char *, size_t, const piece_t *, int64_t, int)
    int64_t check_sum(int, const char *, size_t)

make_crc_table()

# Codec kinds, by the names that the chunk tables use.
CODECS = {
    "blosc": CODEC_BLOSC, "zstd": CODEC_ZSTD, "zlib": CODEC_ZLIB, "gzip": CODEC_GZIP, "lz4": CODEC_LZ4,
    "lz4_hdf5": CODEC_LZ4_HDF5, "lzf": CODEC_LZF, "shuffle": CODEC_SHUFFLE, "crc32c": CODEC_CRC32C,
    "fletcher32": CODEC_FLETCHER32, "python": CODEC_PYTHON,
}
can_read_files = bool(CAN_READ_FILES)

# Counters for tests and benchmarks: calls of the engine, chunks that it read from files, and reads that it announced.
counts = {"runs": 0, "chunks": 0, "announced": 0}
# A read that takes this long, and a nanosecond more per byte, had to wait for the disk or the network.
waiting_ns = 30_000

cdef enum:
    MAX_CODECS = 8
    MAX_DIMS = 8
    MAX_PATH = 4096
    # Pieces that one vector read fills; the least that POSIX allows is 16, Linux and macOS take 1,024.
    MAX_VECTOR = 256
    # Bytes that it fills at most where rows are scaled next: they shall still be in the cache.
    MAX_SCALED_READ = 1 << 18
    # Scratch that a worker may keep for later calls.
    MAX_IDLE_SCRATCH = 1 << 26
    # Length of a chunk that is not stored, where places are uint32: as in storage/chunks/tables.py.
    ABSENT = 0xFFFFFFFF
    # Tasks whose reads are announced to the system while the one before them waits.
    N_ANNOUNCED = 64

# How a task can end besides FINE.
FAILURES = {
    CANNOT_READ: "cannot_read", CUT_SHORT: "cut_short", CHANGED: "changed", DAMAGED: "damaged", CHECKSUM: "checksum",
    WRONG_SIZE: "wrong_size", COLUMN: "column", LOSSY: "lossy", MEMORY: "memory", PYTHON: "python",
}


def crc32c(const uint8_t[::1] data not None, int way=0):
    """Return the CRC-32C checksum of bytes, as int.

    ``way`` is for tests: 0 the fastest, 1 not by 512 bits, 2 by tables.
    """
    cdef const char *start = <const char *>&data[0] if data.shape[0] else NULL
    return crc32c_by(way, start, <size_t>data.shape[0])


def decodes(kind):
    """Say whether a codec, by its name in ``CODECS``, is decoded in compiled code."""
    return bool(can_decode(CODECS[kind]))


def decode(str kind not None, const uint8_t[::1] source not None, int64_t capacity):
    """Decode bytes by one codec of compiled code that needs no parameter; room is taken for ``capacity`` bytes.

    Returns
    -------
    The decoded bytes, or None: they are damaged, or more.
    """
    cdef Scratch worker
    cdef const char *start
    cdef size_t n = <size_t>source.shape[0]
    cdef int code = CODECS[kind]
    cdef int64_t size = NO_MEMORY
    cdef char *target
    if not n:
        return None
    start = <const char *>&source[0]
    try:
        worker = idle_scratch.pop()
    except IndexError:
        worker = Scratch()
    with nogil:
        target = scratch_buffer(&worker.scratch, 1, <size_t>max(capacity, 1))
        if target != NULL:
            size = decode_step(&worker.scratch, code, 0, start, n, target, <size_t>capacity, NULL, 0, 1)
    if size == NO_MEMORY:
        raise MemoryError
    found = None if size < 0 else PyBytes_FromStringAndSize(target, size)
    if scratch_bytes(&worker.scratch) <= MAX_IDLE_SCRATCH:
        idle_scratch.append(worker)
    return found


def use_libdeflate(uintptr_t create, uintptr_t destroy, uintptr_t zlib, uintptr_t gzip):
    """Use libdeflate, given the addresses of its four functions, from the first chunk that is decoded on."""
    set_deflate(create, destroy, zlib, gzip)


cdef class Scratch:
    """What one worker keeps from call to call."""

    cdef scratch_t scratch

    def __dealloc__(self):
        scratch_clear(&self.scratch)


# Scratch that no worker uses now. Taken and returned under the GIL; never more than there were workers at one time.
cdef list idle_scratch = []

# A ChunkTable of storage/chunks/tables.py.
cdef struct table_t:
    const char *memory
    const uint32_t *place  # of each chunk offset and length; NULL: in wide_place, or a chunk is a whole file
    const int64_t *wide_place
    const uint32_t *mask
    const stamp_t *stamp
    int64_t n_files
    int64_t chunk_bytes
    int itemsize
    int n_codecs
    int codec[MAX_CODECS]
    int parameter[MAX_CODECS]
    PyObject *decoder[MAX_CODECS]
    char fill[16]
    const char *root
    const char *document
    int n_dims
    int64_t grid[MAX_DIMS]
    int64_t chunk_grid[MAX_DIMS]
    int64_t per_file[MAX_DIMS]  # chunks of a file along each axis; 0 in the first: a file for each chunk
    char separator
    const char *key_prefix

# Pieces of one stored array: an EngineJob, and how far the workers are with it.
cdef struct job_t:
    table_t table
    placing_t placing
    const task_t *task
    const piece_t *piece
    const fetched_t *fetched  # one per task; NULL: the bytes are in the files of the table
    int64_t n_tasks
    int64_t n_announced  # tasks before this one need no announcement
    int64_t first_number

# Rows of a CSR matrix that become dense: an EngineDenseJob.
cdef struct dense_job_t:
    int values  # number of the job that brings them
    int columns
    const stretch_t *stretch
    const extent_t *extent
    const int64_t *address
    int64_t row_bytes
    int64_t first_number
    densify_fn densify
    double *total  # NULL: rows are neither added up nor scaled
    scaling_t scaling

cdef struct failure_t:
    int kind
    int job
    int64_t chunk
    int64_t number
    int64_t detail

cdef struct call_t:
    job_t *job
    int n_jobs
    dense_job_t *dense
    int n_dense
    int64_t n_in_queue
    int64_t next_number
    int64_t waiting_ns
    int64_t n_announced
    bint waits  # reads have to wait, so it pays to announce them
    bint stop
    failure_t *failure
    PyObject **scratch
    PyObject *error

# The one file that a worker has open.
cdef struct chunk_file_t:
    int fd
    int job
    int64_t number
    int64_t size


cdef inline bint has_places(const table_t *table) noexcept nogil:
    """Whether it is known where in a file a chunk is; else it is the whole file."""
    return table.place != NULL or table.wide_place != NULL


cdef inline int64_t chunk_offset(const table_t *table, int64_t chunk) noexcept nogil:
    if table.place != NULL:
        return table.place[2 * chunk]
    return table.wide_place[2 * chunk]


cdef inline int64_t chunk_length(const table_t *table, int64_t chunk) noexcept nogil:
    """Bytes of a stored chunk; -1: it is not stored."""
    cdef uint32_t n
    if table.place != NULL:
        n = table.place[2 * chunk + 1]
        return -1 if n == ABSENT else n
    return table.wide_place[2 * chunk + 1]


cdef inline int64_t file_of(const table_t *table, int64_t chunk) noexcept nogil:
    """Number of the file that holds a chunk."""
    cdef int64_t number = 0, stride = 1
    cdef int d
    if table.n_files == 1:
        return 0
    if not table.per_file[0]:
        return chunk
    if table.n_dims == 1:
        return chunk // table.per_file[0]
    for d in range(table.n_dims - 1, -1, -1):
        number += chunk % table.chunk_grid[d] // table.per_file[d] * stride
        stride *= table.grid[d]
        chunk = chunk // table.chunk_grid[d]
    return number


cdef void file_path(const table_t *table, int64_t number, char *path) noexcept nogil:
    """Write the path of a file: the root alone, or root/prefix followed by its position in the grid."""
    cdef int64_t position[MAX_DIMS]
    cdef int d, n
    n = snprintf(path, MAX_PATH, "%s", table.root)
    if not table.n_dims or n >= MAX_PATH:
        return
    for d in range(table.n_dims - 1, -1, -1):
        position[d] = number % table.grid[d]
        number = number // table.grid[d]
    n += snprintf(path + n, MAX_PATH - n, "%s", table.key_prefix)
    for d in range(table.n_dims):
        if n >= MAX_PATH:
            return
        if d:
            n += snprintf(path + n, MAX_PATH - n, "%c%lld", <int>table.separator, <long long>position[d])
        else:
            n += snprintf(path + n, MAX_PATH - n, "%lld", <long long>position[d])


cdef int open_chunk_file(const table_t *table, int job, int64_t number, chunk_file_t *opened,
                         int64_t *detail) noexcept nogil:
    """Have the file of a chunk open; the one open before is closed. -1 when the array lacks it.

    When the whole array is gone (moved, unmounted), its chunks are not fill values but lost.
    """
    cdef char path[MAX_PATH]
    cdef stamp_t stamp = [0, 0, 0]
    cdef const stamp_t *expected
    cdef int fd
    if opened.fd >= 0:
        if opened.job == job and opened.number == number:
            return FINE
        file_close(opened.fd)
        opened.fd = -1
    file_path(table, number, path)
    fd = file_open(path, &stamp)
    if fd < 0:
        if fd == -ENOENT:
            return -1 if table.stamp == NULL and file_exists(table.document) else CHANGED
        detail[0] = -fd
        return CANNOT_READ
    if table.stamp != NULL:
        expected = table.stamp + number
        if stamp.size != expected.size or stamp.time_ns != expected.time_ns or stamp.inode != expected.inode:
            file_close(fd)
            return CHANGED
    opened.fd, opened.job, opened.number, opened.size = fd, job, number, stamp.size
    return FINE


cdef int decode_in_python(PyObject *decoder, const char *source, int64_t n, char *target, int64_t capacity,
                          int64_t *done, PyObject **error) noexcept with gil:
    """Let a Python function decode ``n`` bytes, to at most ``capacity``."""
    cdef const uint8_t[::1] decoded
    try:
        result = (<object>decoder)(memoryview(<const uint8_t[:n]>(<const uint8_t *>source)).cast("B"), capacity)
        decoded = np.ascontiguousarray(result).reshape(-1).view(np.uint8) if not isinstance(result, bytes) else result
        if decoded.shape[0] > capacity:
            return WRONG_SIZE
        if decoded.shape[0]:
            memcpy(target, &decoded[0], <size_t>decoded.shape[0])
        done[0] = decoded.shape[0]
        return FINE
    except BaseException as problem:
        if error[0] == NULL:
            kept_errors[<uintptr_t>error] = problem
            error[0] = <PyObject *>problem
        return PYTHON


# Exceptions of Python decoders, by the call they happened in, until the engine's face raises them.
cdef dict kept_errors = {}


cdef int decode_chunk(const job_t *job, const task_t *task, const char *source, int64_t n, scratch_t *scratch,
                      const char **decoded, PyObject **error) noexcept nogil:
    """Decode ``n`` bytes, in scratch buffer 0 or in none; the result is in one of the others, or where it was."""
    cdef const table_t *table = &job.table
    cdef int step, at = 0, kind, status
    cdef int64_t size, capacity = table.chunk_bytes + 64
    cdef char *target
    cdef const piece_t *pieces
    for step in range(table.n_codecs - 1, -1, -1):
        if table.mask != NULL and table.mask[task.chunk] >> step & 1:
            continue
        kind = table.codec[step]
        if kind == CODEC_CRC32C or kind == CODEC_FLETCHER32:
            size = check_sum(kind, source, <size_t>n)
        else:
            at = 1 - at
            target = scratch_buffer(scratch, at, <size_t>capacity)
            if target == NULL:
                return MEMORY
            if kind == CODEC_PYTHON:
                status = decode_in_python(table.decoder[step], source, n, target, capacity, &size, error)
                if status != FINE:
                    return status
            else:
                # Only the first encoding step sees items where the pieces say they are.
                pieces = job.piece + task.first_piece if step == 0 else NULL
                size = decode_step(
                    scratch, kind, table.parameter[step], source, <size_t>n, target, <size_t>capacity, pieces,
                    task.stop_piece - task.first_piece, table.itemsize
                )
            source = target
        if size < 0:
            return CHECKSUM if size == BAD_CHECKSUM else MEMORY if size == NO_MEMORY else DAMAGED
        n = size
    decoded[0] = source
    return FINE if n == table.chunk_bytes else WRONG_SIZE


cdef int place_filled(const job_t *job, const task_t *task, uintptr_t base, scratch_t *scratch) noexcept nogil:
    """Place the pieces of a chunk that is not stored: they have the fill value."""
    cdef int64_t p, i, longest = 0
    cdef int itemsize = job.table.itemsize, status
    cdef char *items
    for p in range(task.first_piece, task.stop_piece):
        longest = max(longest, job.piece[p].n)
    items = scratch_buffer(scratch, 0, <size_t>(longest * itemsize))
    if items == NULL:
        return MEMORY
    for i in range(longest):
        memcpy(items + i * itemsize, job.table.fill, <size_t>itemsize)
    for p in range(task.first_piece, task.stop_piece):
        status = place_piece(&job.placing, items, &job.piece[p], base)
        if status != FINE:
            return status
    return FINE


cdef void announce(call_t *call, job_t *job, int64_t t, const chunk_file_t *opened) noexcept nogil:
    """Tell the system which reads of the open file come after task ``t``.

    A few threads that wait for one read each leave a disk or a network mostly idle. What is announced is read
    meanwhile.
    """
    cdef const table_t *table = &job.table
    cdef const task_t *task
    cdef int64_t last = min(job.n_tasks, t + 1 + N_ANNOUNCED), stop = t + 1, k, at, p, low, high
    if table.n_files > 1 and not table.per_file[0]:
        return  # a file for each chunk: opening it costs as much as reading it
    while stop < last and file_of(table, job.task[stop].chunk) == opened.number:
        stop += 1
    for k in range(max(raise_to(&job.n_announced, stop), t + 1), stop):
        task = job.task + k
        at = chunk_offset(table, task.chunk) if has_places(table) else 0
        if table.n_codecs:
            if has_places(table) and chunk_length(table, task.chunk) > 0:
                file_advise(opened.fd, chunk_length(table, task.chunk), at)
                next_number(&call.n_announced)
        else:
            p = task.first_piece
            while p < task.stop_piece:
                low = high = job.piece[p].source
                while p < task.stop_piece and job.piece[p].source == high:
                    high += job.piece[p].n
                    p += 1
                file_advise(opened.fd, (high - low) * table.itemsize, at + low * table.itemsize)
                next_number(&call.n_announced)


cdef int64_t read_bytes(call_t *call, int fd, char *to, int64_t n, int64_t at) noexcept nogil:
    """Read as ``file_read`` does, and note whether that had to wait."""
    cdef int64_t start = 0 if call.waits else now_ns(), got = file_read(fd, to, n, at)
    if not call.waits and now_ns() - start >= call.waiting_ns + n:
        call.waits = True
    return got


cdef int64_t read_pieces(call_t *call, int fd, iovec *to, int n_pieces, int64_t n, int64_t at) noexcept nogil:
    """Read as ``file_read_pieces`` does, and note whether that had to wait."""
    cdef int64_t start = 0 if call.waits else now_ns(), got = file_read_pieces(fd, to, n_pieces, at)
    if not call.waits and now_ns() - start >= call.waiting_ns + n:
        call.waits = True
    return got


cdef int read_plain(call_t *call, const job_t *job, const task_t *task, uintptr_t base, int64_t at, int64_t n,
                    int fd, scratch_t *scratch, int64_t *detail) noexcept nogil:
    """Read the pieces of a chunk that is stored as it is; pieces that are only copied go straight to their address."""
    cdef iovec vector[MAX_VECTOR]
    cdef const placing_t *placing = &job.placing
    cdef int itemsize = job.table.itemsize, status, k
    cdef int64_t p = task.first_piece, q, got, low, high, wanted
    cdef bint copies = (
        not placing.is_column_number and placing.columns == NULL and placing.source_type == placing.target_type
    )
    cdef const piece_t *piece
    cdef char *items
    while p < task.stop_piece:
        # Neighbouring pieces: one system call.
        q, k = p, 0
        low = high = job.piece[p].source
        while q < task.stop_piece and k < MAX_VECTOR and job.piece[q].source == high:
            if k and placing.row != NULL and (high - low + job.piece[q].n) * itemsize > MAX_SCALED_READ:
                break
            piece = job.piece + q
            vector[k].iov_base = <void *>(base + <uintptr_t>piece.address)
            vector[k].iov_len = <size_t>(piece.n * itemsize)
            high += piece.n
            q += 1
            k += 1
        wanted = (high - low) * itemsize
        if high * itemsize > n:
            return CUT_SHORT
        if copies:
            got = read_pieces(call, fd, vector, k, wanted, at + low * itemsize)
        else:
            items = scratch_buffer(scratch, 0, <size_t>wanted)
            if items == NULL:
                return MEMORY
            got = read_bytes(call, fd, items, wanted, at + low * itemsize)
        if got < 0:
            detail[0] = -got
            return CANNOT_READ
        if got != wanted:
            return CUT_SHORT
        for k in range(<int>(q - p)):
            piece = job.piece + p + k
            if copies:
                if placing.row == NULL:
                    break
                finish_piece(placing, piece, base)
            else:
                status = place_piece(placing, items + (piece.source - low) * itemsize, piece, base)
                if status != FINE:
                    return status
        p = q
    return FINE


cdef int run_task(call_t *call, int number, int64_t t, uintptr_t base, chunk_file_t *opened, scratch_t *scratch,
                  int64_t *detail) noexcept nogil:
    """Read, decode and place one chunk: task ``t`` of a job."""
    cdef job_t *job = call.job + number
    cdef const table_t *table = &job.table
    cdef const task_t *task = job.task + t
    cdef int64_t chunk = task.chunk, p, n, at = 0, got, file_number
    cdef const char *decoded = NULL
    cdef char *buffer
    cdef int status
    if table.memory != NULL:
        decoded = table.memory + chunk * table.chunk_bytes
    elif job.fetched != NULL:
        n = job.fetched[t].n_bytes
        if n < 0:
            return place_filled(job, task, base, scratch)
        decoded = <const char *><uintptr_t>job.fetched[t].address
        if table.n_codecs:
            status = decode_chunk(job, task, decoded, n, scratch, &decoded, &call.error)
            if status != FINE:
                return status
        elif n < (task.high - task.low) * table.itemsize:
            return CUT_SHORT
        else:
            decoded -= task.low * table.itemsize
    else:
        if has_places(table) and chunk_length(table, chunk) < 0:
            return place_filled(job, task, base, scratch)
        file_number = file_of(table, chunk)
        status = open_chunk_file(table, number, file_number, opened, detail)
        if status == -1:
            return place_filled(job, task, base, scratch)
        if status != FINE:
            return status
        n = opened.size
        if has_places(table):
            at, n = chunk_offset(table, chunk), chunk_length(table, chunk)
        if at < 0 or n > opened.size - at:
            return CUT_SHORT
        if call.waits:
            announce(call, job, t, opened)
        if not table.n_codecs:
            return read_plain(call, job, task, base, at, n, opened.fd, scratch, detail)
        buffer = scratch_buffer(scratch, 0, <size_t>max(n, 1))
        if buffer == NULL:
            return MEMORY
        got = read_bytes(call, opened.fd, buffer, n, at)
        if got < 0:
            detail[0] = -got
            return CANNOT_READ
        if got != n:
            return CUT_SHORT
        status = decode_chunk(job, task, buffer, n, scratch, &decoded, &call.error)
        if status != FINE:
            return status
    for p in range(task.first_piece, task.stop_piece):
        status = place_piece(&job.placing, decoded + job.piece[p].source * table.itemsize, &job.piece[p], base)
        if status != FINE:
            return status
    return FINE


cdef void fail(call_t *call, failure_t *failure, int kind, int job, int64_t chunk, int64_t number) noexcept nogil:
    """Note how a worker failed, and let all of them stop."""
    failure.kind, failure.job, failure.chunk, failure.number = kind, job, chunk, number
    call.stop = True


cdef void place_tasks(void *context, int worker) noexcept nogil:
    """Take tasks from the queue until it is empty or a worker failed."""
    cdef call_t *call = <call_t *>context
    cdef scratch_t *scratch = &(<Scratch>call.scratch[worker]).scratch
    cdef failure_t *failure = call.failure + worker
    cdef chunk_file_t opened
    cdef int64_t number, t
    cdef int i = 0, status
    opened.fd = -1
    while not call.stop:
        number = next_number(&call.next_number)
        if number >= call.n_in_queue:
            break
        while i + 1 < call.n_jobs and call.job[i + 1].first_number <= number:
            i += 1
        t = number - call.job[i].first_number
        status = run_task(call, i, t, 0, &opened, scratch, &failure.detail)
        if status != FINE:
            fail(call, failure, status, i, call.job[i].task[t].chunk, number)
    if opened.fd >= 0:
        file_close(opened.fd)


cdef bint stage(call_t *call, int job, int64_t first, int64_t stop, char *base, chunk_file_t *opened,
                scratch_t *scratch, failure_t *failure, int64_t number) noexcept nogil:
    """Place the tasks first <= task < stop of a job in scratch memory; False when one failed."""
    cdef int64_t t
    cdef int status
    for t in range(first, stop):
        status = run_task(call, job, t, <uintptr_t>base, opened, scratch, &failure.detail)
        if status != FINE:
            fail(call, failure, status, job, call.job[job].task[t].chunk, number)
            return False
    return True


cdef void densify_stretches(void *context, int worker) noexcept nogil:
    """Take stretches of rows from the queue and make them dense, until it is empty or a worker failed."""
    cdef call_t *call = <call_t *>context
    cdef scratch_t *scratch = &(<Scratch>call.scratch[worker]).scratch
    cdef failure_t *failure = call.failure + worker
    cdef chunk_file_t value_file, column_file
    cdef dense_job_t *dense
    cdef const stretch_t *stretch
    cdef const extent_t *extent
    cdef int64_t number, r
    cdef int i = 0, value_size, column_size
    cdef char *values
    cdef char *columns
    cdef char *row
    value_file.fd = column_file.fd = -1
    while not call.stop:
        number = next_number(&call.next_number)
        if number >= call.n_in_queue:
            break
        while i + 1 < call.n_dense and call.dense[i + 1].first_number <= number:
            i += 1
        dense = call.dense + i
        stretch = dense.stretch + (number - dense.first_number)
        value_size = call.job[dense.values].placing.target_size
        column_size = call.job[dense.columns].placing.target_size
        values = scratch_buffer(scratch, 3, <size_t>(stretch.n_values * value_size + 1))
        columns = scratch_buffer(scratch, 4, <size_t>(stretch.n_values * column_size + 1))
        if values == NULL or columns == NULL:
            fail(call, failure, MEMORY, dense.values, 0, number)
            break
        if not (
            stage(call, dense.values, stretch.first_value_task, stretch.stop_value_task, values, &value_file, scratch,
                  failure, number)
            and stage(call, dense.columns, stretch.first_column_task, stretch.stop_column_task, columns, &column_file,
                      scratch, failure, number)
        ):
            break
        for r in range(stretch.first_row, stretch.stop_row):
            row = <char *><uintptr_t>dense.address[r]
            memset(row, 0, <size_t>dense.row_bytes)
            extent = dense.extent + r
            if dense.total != NULL:
                # A row that is wanted again has the same values.
                if (
                    r > stretch.first_row and extent.first_value == dense.extent[r - 1].first_value
                    and extent.n_values == dense.extent[r - 1].n_values
                ):
                    dense.total[r] = dense.total[r - 1]
                else:
                    dense.total[r] = scale_row(
                        &dense.scaling, values + extent.first_value * value_size, extent.n_values
                    )
            dense.densify(
                values + extent.first_value * value_size, columns + extent.first_value * column_size, extent.n_values,
                row
            )
    if value_file.fd >= 0:
        file_close(value_file.fd)
    if column_file.fd >= 0:
        file_close(column_file.fd)


cdef object set_table(table_t *table, object chunk_table):
    """Point at the arrays of a chunk table (storage/chunks/tables.py); returns what must stay alive."""
    cdef const int64_t[:, ::1] wide
    cdef const uint32_t[:, ::1] narrow
    cdef const stamp_t[::1] stamps
    cdef const uint32_t[::1] uint32s
    cdef const uint8_t[::1] bytes_
    cdef bytes fill = chunk_table.fill
    table.chunk_bytes = chunk_table.chunk_bytes
    table.itemsize = chunk_table.itemsize
    if chunk_table.memory is not None:
        bytes_ = chunk_table.memory
        table.memory = <const char *>&bytes_[0] if bytes_.shape[0] else <const char *>1
        return chunk_table
    places = chunk_table.chunk_places  # may be replaced by a wider one meanwhile
    if places is not None and places.dtype == np.uint32:
        narrow = places
        table.place = &narrow[0, 0]
    elif places is not None:
        wide = places
        table.wide_place = &wide[0, 0]
    if chunk_table.stamp is not None:
        stamps = chunk_table.stamp
        table.stamp = &stamps[0]
    if chunk_table.mask is not None:
        uint32s = chunk_table.mask
        table.mask = &uint32s[0]
    table.n_files = chunk_table.n_files
    table.n_codecs = len(chunk_table.codecs)
    for i, (kind, parameter) in enumerate(chunk_table.codecs):
        table.codec[i] = CODECS[kind]
        if kind == "python":
            table.decoder[i] = <PyObject *>parameter
        else:
            table.parameter[i] = parameter
    memset(table.fill, 0, 16)
    memcpy(table.fill, PyBytes_AS_STRING(fill), <size_t>min(16, PyBytes_GET_SIZE(fill)))
    table.root = PyBytes_AS_STRING(chunk_table.root)
    table.document = PyBytes_AS_STRING(chunk_table.document)
    table.key_prefix = PyBytes_AS_STRING(chunk_table.key_prefix)
    table.separator = chunk_table.separator[0]
    table.n_dims = len(chunk_table.file_grid)
    for i, length in enumerate(chunk_table.file_grid):
        table.grid[i], table.chunk_grid[i] = length, chunk_table.grid[i]
        table.per_file[i] = chunk_table.per_file[i] if chunk_table.per_file else 0
    return chunk_table, places


cdef class _Call:
    """One call of the engine: what its workers share, and what must stay alive until they are done."""

    cdef call_t state
    cdef list keep, scratch

    def __cinit__(self, list jobs):
        cdef int i
        cdef job_t *job
        cdef const task_t[::1] tasks
        cdef const piece_t[::1] pieces
        cdef const fetched_t[::1] fetched
        self.keep, self.scratch = [jobs], []
        self.state.n_jobs = len(jobs)
        self.state.job = <job_t *>calloc(max(1, len(jobs)), sizeof(job_t))
        if self.state.job == NULL:
            raise MemoryError
        for i, described in enumerate(jobs):
            job = self.state.job + i
            set_placing(&job.placing, described.placing)
            tasks, pieces = described.plan.tasks, described.plan.pieces
            job.n_tasks = tasks.shape[0]
            if not job.n_tasks:
                continue
            job.task, job.piece = &tasks[0], &pieces[0]
            if described.fetched is not None:
                fetched = described.fetched
                job.fetched = &fetched[0]
            self.keep.append(set_table(&job.table, described.table))
            counts["chunks"] += job.n_tasks if job.table.memory == NULL else 0

    def __dealloc__(self):
        kept_errors.pop(<uintptr_t>&self.state.error, None)
        free(self.state.job)
        free(self.state.dense)
        free(self.state.failure)
        free(self.state.scratch)

    cdef object go(self, worker_fn work, int num_threads):
        """Let workers empty the queue; return the first failure as the functions below do."""
        cdef int i, n_workers = <int>max(1, min(num_threads, self.state.n_in_queue))
        cdef failure_t *first = NULL
        self.state.failure = <failure_t *>calloc(n_workers, sizeof(failure_t))
        self.state.scratch = <PyObject **>calloc(n_workers, sizeof(PyObject *))
        if self.state.failure == NULL or self.state.scratch == NULL:
            raise MemoryError
        for i in range(n_workers):
            try:
                self.scratch.append(idle_scratch.pop())
            except IndexError:
                self.scratch.append(Scratch())
            self.state.scratch[i] = <PyObject *>self.scratch[i]
        self.state.waiting_ns = waiting_ns
        with nogil:
            run_workers(work, &self.state, n_workers)
        counts["runs"] += 1
        counts["announced"] += self.state.n_announced
        for worker in self.scratch:
            # Stores with huge chunks exist; memory for them is not worth keeping.
            if scratch_bytes(&(<Scratch>worker).scratch) <= MAX_IDLE_SCRATCH:
                idle_scratch.append(worker)
        for i in range(n_workers):
            if self.state.failure[i].kind != FINE and (first == NULL or self.state.failure[i].number < first.number):
                first = self.state.failure + i
        if first == NULL:
            return None
        detail = first.detail
        if first.kind == PYTHON:
            detail = kept_errors.pop(<uintptr_t>&self.state.error, None)
        return Failure(first.job, first.chunk, FAILURES[first.kind], detail)


def run(list jobs not None, int num_threads):
    """Read and place everything in ``jobs``.

    Parameters
    ----------
    jobs
        List of ``EngineJob``.
    num_threads
        Most threads to use, this one included.

    Returns
    -------
    None, or the ``Failure`` of the first task that failed. Every destination may then have been written or not.
    """
    cdef _Call call = _Call(jobs)
    cdef int i
    for i in range(call.state.n_jobs):
        call.state.job[i].first_number = call.state.n_in_queue
        call.state.n_in_queue += call.state.job[i].n_tasks
    return call.go(place_tasks, num_threads) if call.state.n_in_queue else None


def run_dense(list jobs not None, list dense_jobs not None, int num_threads):
    """Read sparse rows and write them as dense ones.

    Repeated columns of a row add up, those renumbered to -1 are left out.

    Parameters
    ----------
    jobs
        List of ``EngineJob``: what brings values and column numbers.
    dense_jobs
        List of ``EngineDenseJob``.
    num_threads
        Most threads to use, this one included.

    Returns
    -------
    As :func:`run`.
    """
    cdef _Call call = _Call(jobs)
    cdef int i
    cdef dense_job_t *dense
    cdef const stretch_t[::1] stretches
    cdef const extent_t[::1] extents
    cdef const int64_t[::1] addresses
    cdef double[::1] totals
    call.state.n_dense = len(dense_jobs)
    call.state.dense = <dense_job_t *>calloc(max(1, len(dense_jobs)), sizeof(dense_job_t))
    if call.state.dense == NULL:
        raise MemoryError
    for i, described in enumerate(dense_jobs):
        dense = call.state.dense + i
        dense.values, dense.columns, dense.row_bytes = described.values, described.columns, described.row_bytes
        is_wide = call.state.job[dense.columns].placing.target_size == 8
        dense.densify = DENSIFY[<int>is_wide][<int>described.value_type]
        dense.first_number = call.state.n_in_queue
        stretches, extents, addresses = described.stretches, described.extents, described.address
        if stretches.shape[0]:
            dense.stretch, dense.extent, dense.address = &stretches[0], &extents[0], &addresses[0]
            call.state.n_in_queue += stretches.shape[0]
            if described.totals is not None:
                totals = described.totals
                dense.total = &totals[0]
                set_scaling(&dense.scaling, described.scaling, described.value_type)
    return call.go(densify_stretches, num_threads) if call.state.n_in_queue else None
