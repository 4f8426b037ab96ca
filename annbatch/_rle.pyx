"""Kernels behind the samplers: class runs, draws from them, permutations of chunks, shuffled batches.

Every kernel assumes checked input: the Python faces in `annbatch.samplers` check once, before any draw. Each has a
plain NumPy twin of the same name in `tests/reference.py`, which gives the same numbers from the same bit generator and
leaves it in the same state.

Two choices that shape this file:

* Bounded integers are drawn here (Lemire's method, https://doi.org/10.1145/3230636) and not through NumPy's C library:
  that needs nothing at link time and inlines into the loop. The stream is that of `numpy.random.Generator.integers`.
* A run table is a few flat arrays (see `group_runs`), so that drawing a chunk start is one binary search in the piece
  of a prefix sum that belongs to the class.
"""

from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint32_t, uint64_t
from numpy.random cimport bitgen_t

# Integer types of `pandas.Categorical.codes`.
ctypedef fused code_t:
    int8_t
    int16_t
    int32_t
    int64_t

# Types of the displacement table of `draw_chunks`, by number of chunks.
ctypedef fused displacement_t:
    uint32_t
    uint64_t


# ---------------------------------------------------------------------------------------------------------------------
# Random numbers

cdef bitgen_t* bitgen_of(object bit_generator) except NULL:
    """The C interface of a NumPy BitGenerator. Valid for as long as the caller holds `bit_generator`."""
    return <bitgen_t*> PyCapsule_GetPointer(bit_generator.capsule, "BitGenerator")


cdef inline uint64_t multiply_high(uint64_t a, uint64_t b) noexcept nogil:
    """Upper 64 bits of the 128-bit product, in 32-bit pieces because C has no portable 128-bit integer."""
    cdef uint64_t a_low = a & 0xFFFFFFFFULL, a_high = a >> 32
    cdef uint64_t b_low = b & 0xFFFFFFFFULL, b_high = b >> 32
    cdef uint64_t middle = a_high * b_low + ((a_low * b_low) >> 32)
    cdef uint64_t carry = a_low * b_high + (middle & 0xFFFFFFFFULL)
    return a_high * b_high + (middle >> 32) + (carry >> 32)


cdef inline uint64_t draw_below(bitgen_t* bits, uint64_t n) noexcept nogil:
    """Uniform integer in [0, n), n >= 1. Equals `Generator.integers(n)`; n == 1 draws nothing."""
    cdef uint64_t product64, threshold64, low64, raw64
    cdef uint32_t n32, low32, threshold32
    if n <= 1:
        return 0
    if n == 0x100000000ULL:
        return bits.next_uint32(bits.state)
    if n < 0x100000000ULL:
        n32 = <uint32_t> n
        product64 = <uint64_t> bits.next_uint32(bits.state) * n
        low32 = <uint32_t> product64
        if low32 < n32:
            # 2**32 mod n, in 32-bit arithmetic
            threshold32 = (<uint32_t> 0 - n32) % n32
            while low32 < threshold32:
                product64 = <uint64_t> bits.next_uint32(bits.state) * n
                low32 = <uint32_t> product64
        return product64 >> 32
    raw64 = bits.next_uint64(bits.state)
    low64 = raw64 * n
    if low64 < n:
        threshold64 = (<uint64_t> 0 - n) % n
        while low64 < threshold64:
            raw64 = bits.next_uint64(bits.state)
            low64 = raw64 * n
    return multiply_high(raw64, n)


def draw_integers(bit_generator, uint64_t n, int64_t[::1] out not None):
    """Fill `out` with uniform integers in [0, n). For tests: the door to `draw_below`."""
    cdef bitgen_t* bits = bitgen_of(bit_generator)
    cdef Py_ssize_t i
    with bit_generator.lock, nogil:
        for i in range(out.shape[0]):
            out[i] = <int64_t> draw_below(bits, n)


# ---------------------------------------------------------------------------------------------------------------------
# Runs of equal codes

cdef inline Py_ssize_t skip_equal(
    const code_t[::1] codes, Py_ssize_t position, Py_ssize_t stop, code_t current, Py_ssize_t lanes,
) noexcept nogil:
    """Go on from `position` in steps of `lanes` codes, as long as all of them are `current`."""
    cdef Py_ssize_t k
    cdef code_t differs
    while position + lanes <= stop:
        differs = 0
        # Without a branch, so that compilers turn it into vector instructions.
        for k in range(lanes):
            differs |= codes[position + k] ^ current
        if differs != 0:
            break
        position += lanes
    return position


cdef Py_ssize_t find_runs_(
    const code_t[::1] codes, Py_ssize_t start, Py_ssize_t stop, int64_t[::1] run_start, int64_t[::1] run_code,
    Py_ssize_t* n_found,
) noexcept nogil:
    cdef Py_ssize_t capacity = run_start.shape[0], position = start
    cdef code_t current
    n_found[0] = 0
    while position < stop and n_found[0] < capacity:
        current = codes[position]
        run_start[n_found[0]] = position
        run_code[n_found[0]] = current
        n_found[0] += 1
        position += 1
        # Runs are long: steps of 64 bytes through them, then of 8 bytes, then of one code to their end.
        position = skip_equal(codes, position, stop, current, 64 // sizeof(code_t))
        position = skip_equal(codes, position, stop, current, 8 // sizeof(code_t))
        position = skip_equal(codes, position, stop, current, 1)
    return position


def find_runs(
    const code_t[::1] codes not None, Py_ssize_t start, Py_ssize_t stop, int64_t[::1] run_start not None,
    int64_t[::1] run_code not None,
):
    """Find the runs of equal codes in `codes[start:stop]`, until the window or the output ends.

    Writes first position and code of each run. Returns the number of runs written and the position to go on from
    (`stop` when the window is done). One pass over the codes, O(stop - start).
    """
    cdef Py_ssize_t n_found = 0, position = start
    if start < stop:
        with nogil:
            position = find_runs_(codes, start, stop, run_start, run_code, &n_found)
    return n_found, position


def group_runs(
    const int64_t[::1] run_start not None, const int64_t[::1] run_code not None, int64_t stop, int64_t chunk_size,
    int64_t[::1] class_offset not None, int64_t[::1] grouped_start not None,
    int64_t[::1] cumulative_starts not None, int64_t[::1] class_rows not None, int64_t[::1] class_short_runs not None,
):
    """Sort the runs of a window by class and count what can be drawn from them. O(runs + classes).

    `run_start` holds the first row of every run, ascending; a run ends where the next one starts, the last one at
    `stop`. Codes are in [0, n_classes).

    Outputs, for the class `c` and its runs `class_offset[c]:class_offset[c + 1]`, in row order:

    grouped_start       first row of each run
    cumulative_starts   chunk starts in all runs before this one (one entry more than runs); a run of `L` rows has
                        `L - chunk_size + 1` of them, a run shorter than a chunk has none
    class_rows          rows of the class
    class_short_runs    runs shorter than a chunk
    """
    cdef Py_ssize_t n_runs = run_start.shape[0], n_classes = class_rows.shape[0], r, c, slot
    cdef int64_t length, total
    with nogil:
        class_offset[:] = 0
        class_rows[:] = 0
        class_short_runs[:] = 0
        for r in range(n_runs):
            class_offset[run_code[r] + 1] += 1
        for c in range(n_classes):
            class_offset[c + 1] += class_offset[c]
        # While the runs are dealt out, class_offset[c] is the next free slot of class c; afterwards it is the end.
        for r in range(n_runs):
            c = run_code[r]
            length = (run_start[r + 1] if r + 1 < n_runs else stop) - run_start[r]
            slot = class_offset[c]
            class_offset[c] += 1
            grouped_start[slot] = run_start[r]
            class_rows[c] += length
            if length < chunk_size:
                class_short_runs[c] += 1
                cumulative_starts[slot + 1] = 0
            else:
                cumulative_starts[slot + 1] = length - chunk_size + 1
        for c in range(n_classes, 0, -1):
            class_offset[c] = class_offset[c - 1]
        class_offset[0] = 0
        total = 0
        cumulative_starts[0] = 0
        for r in range(n_runs):
            total += cumulative_starts[r + 1]
            cumulative_starts[r + 1] = total


# ---------------------------------------------------------------------------------------------------------------------
# Draws

cdef inline Py_ssize_t draw_class(
    bitgen_t* bits, const double[::1] cumulative_weights
) noexcept nogil:
    """Index of a class by its weight: the first whose cumulative weight exceeds a uniform number in [0, 1)."""
    cdef double uniform = bits.next_double(bits.state)
    cdef Py_ssize_t low = 0, high = cumulative_weights.shape[0] - 1, middle
    while low < high:
        middle = (low + high) >> 1
        if uniform < cumulative_weights[middle]:
            high = middle
        else:
            low = middle + 1
    return low


cdef inline int64_t start_at(
    const int64_t[::1] grouped_start, const int64_t[::1] cumulative_starts, Py_ssize_t first_run, Py_ssize_t n_runs,
    int64_t target,
) noexcept nogil:
    """Row of chunk start number `target`, counted over all runs: binary search in [first_run, first_run + n_runs)."""
    cdef Py_ssize_t run = first_run, half
    # Halves the range without a branch on the data, which could not be predicted: the last run that starts <= target.
    while n_runs > 1:
        half = n_runs >> 1
        run = run + half if cumulative_starts[run + half] <= target else run
        n_runs -= half
    return grouped_start[run] + (target - cumulative_starts[run])


def draw_class_chunks(
    bit_generator, const double[::1] cumulative_weights not None, const int64_t[::1] drawable not None,
    const int64_t[::1] class_offset not None, const int64_t[::1] grouped_start not None,
    const int64_t[::1] cumulative_starts not None, Py_ssize_t group_chunks, int64_t[::1] starts not None,
):
    """Draw the first row of `len(starts)` chunks: one class per group of `group_chunks`, one chunk start per chunk.

    `drawable` holds the codes of the classes that may be drawn, `cumulative_weights` their weights, summed up, the last
    one exactly 1. The start is uniform among all chunk starts of the class. O(log classes) a group, O(log runs) a
    chunk.
    """
    cdef bitgen_t* bits = bitgen_of(bit_generator)
    cdef Py_ssize_t n_chunks = starts.shape[0], i = 0, group_stop, code, first_run, n_runs
    cdef int64_t base, n_starts
    with bit_generator.lock, nogil:
        while i < n_chunks:
            code = drawable[draw_class(bits, cumulative_weights)]
            first_run = class_offset[code]
            n_runs = class_offset[code + 1] - first_run
            base = cumulative_starts[first_run]
            n_starts = cumulative_starts[first_run + n_runs] - base
            group_stop = i + group_chunks if i + group_chunks < n_chunks else n_chunks
            while i < group_stop:
                starts[i] = start_at(
                    grouped_start, cumulative_starts, first_run, n_runs,
                    base + <int64_t> draw_below(bits, <uint64_t> n_starts),
                )
                i += 1


def draw_chunks(
    bit_generator, displacement_t[::1] displaced not None, Py_ssize_t n_drawn, int64_t[::1] out not None,
):
    """Draw the next `len(out)` chunks of a random permutation of `len(displaced)` chunks, `n_drawn` of which are gone.

    A Fisher-Yates shuffle that is only run as far as it is needed. `displaced[i]` holds `i XOR (chunk at position i)`,
    so a table of zeros is the identity: it costs no time to make (the operating system hands out zeroed pages on first
    touch), whatever the number of chunks. O(len(out)).
    """
    cdef bitgen_t* bits = bitgen_of(bit_generator)
    cdef Py_ssize_t n_chunks = displaced.shape[0], k
    cdef displacement_t here, there, chunk
    with bit_generator.lock, nogil:
        for k in range(out.shape[0]):
            here = <displacement_t> (n_drawn + k)
            there = here + <displacement_t> draw_below(bits, <uint64_t> (n_chunks - n_drawn - k))
            chunk = displaced[there] ^ there
            displaced[there] = displaced[here] ^ here ^ there
            out[k] = <int64_t> chunk


def shuffle_segments(bit_generator, Py_ssize_t segment, int64_t[::1] out not None):
    """Fill `out` with 0, 1, 2, ... and shuffle every `segment` neighbours among themselves.

    The last segment may be short. O(len(out)).
    """
    cdef bitgen_t* bits = bitgen_of(bit_generator)
    cdef Py_ssize_t n = out.shape[0], first = 0, last, i, j
    cdef int64_t held
    with bit_generator.lock, nogil:
        for i in range(n):
            out[i] = i
        while first < n:
            last = first + segment - 1 if first + segment < n else n - 1
            for i in range(last, first, -1):
                j = first + <Py_ssize_t> draw_below(bits, <uint64_t> (i - first + 1))
                held = out[i]
                out[i] = out[j]
                out[j] = held
            first = last + 1


def code_dtype_names():
    """Names of the C types in `code_t` with their sizes in bytes. For tests: they must be what NumPy means by them."""
    return {"int8": sizeof(int8_t), "int16": sizeof(int16_t), "int32": sizeof(int32_t), "int64": sizeof(int64_t)}
