"""Kernels behind the samplers: class runs, draws from them, the order of chunks, shuffled batches, requests.

Every kernel assumes checked input: the Python faces in `annbatch.samplers` check once, before any draw. Each has a
plain NumPy twin of the same name in `tests/reference/rle.py`, which gives the same numbers.

Three choices that shape this file:

* Random words come from Philox, a counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as
  1, 2, 3"), written out here so that it inlines. A stream is named by its counter (number of the load request, kind of
  draw) and costs nothing to make; `numpy.random.Philox` with that key and counter gives the same words.
* The order of chunks is computed, not stored: a keyed permutation (see `permute`).
* A run table is a few flat arrays (see `group_runs`), so that drawing a chunk start is one binary search in the piece
  of a prefix sum that belongs to the class.
"""

from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint32_t, uint64_t

cdef extern from *:
    """
    #if defined(__SIZEOF_INT128__)
    static inline uint64_t annbatch_multiply_high(uint64_t a, uint64_t b) {
        return (uint64_t) (((unsigned __int128) a * b) >> 64);
    }
    #else
    static inline uint64_t annbatch_multiply_high(uint64_t a, uint64_t b) {
        uint64_t a_low = a & 0xFFFFFFFFu, a_high = a >> 32, b_low = b & 0xFFFFFFFFu, b_high = b >> 32;
        uint64_t middle = a_high * b_low + ((a_low * b_low) >> 32);
        uint64_t carry = a_low * b_high + (middle & 0xFFFFFFFFu);
        return a_high * b_high + (middle >> 32) + (carry >> 32);
    }
    #endif
    """
    # Upper 64 bits of the 128-bit product.
    uint64_t multiply_high "annbatch_multiply_high"(uint64_t a, uint64_t b) noexcept nogil

# Integer types of `pandas.Categorical.codes`.
ctypedef fused code_t:
    int8_t
    int16_t
    int32_t
    int64_t

# Types of row numbers in a row index, by number of rows.
ctypedef fused row_t:
    uint32_t
    uint64_t

# Types of positions within a load request.
ctypedef fused position_t:
    int32_t
    int64_t


# ---------------------------------------------------------------------------------------------------------------------
# Random numbers

# One stream of random words: Philox4x64 with 10 rounds.
cdef struct WordStream:
    uint64_t key[2]
    uint64_t number
    uint64_t kind
    uint64_t block      # blocks made so far
    uint64_t words[4]   # the last block
    int n_used          # words of it that are gone


cdef inline void begin(WordStream* stream, const uint64_t[::1] key, uint64_t number, uint64_t kind) noexcept nogil:
    """Go to the start of a stream: the words of ``numpy.random.Philox(key=key, counter=[0, 0, number, kind])``."""
    stream.key[0] = key[0]
    stream.key[1] = key[1]
    stream.number = number
    stream.kind = kind
    stream.block = 0
    stream.n_used = 4


cdef void next_block(WordStream* stream) noexcept nogil:
    cdef uint64_t c0, c1 = 0, c2 = stream.number, c3 = stream.kind, k0 = stream.key[0], k1 = stream.key[1]
    cdef uint64_t high0, low0, high1, low1
    cdef int _round
    stream.block += 1  # NumPy counts before the first block, too
    c0 = stream.block
    for _round in range(10):
        high0 = multiply_high(0xD2E7470EE14C6C93ULL, c0)
        low0 = 0xD2E7470EE14C6C93ULL * c0
        high1 = multiply_high(0xCA5A826395121157ULL, c2)
        low1 = 0xCA5A826395121157ULL * c2
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0
        k0 += 0x9E3779B97F4A7C15ULL
        k1 += 0xBB67AE8584CAA73BULL
    stream.words[0] = c0
    stream.words[1] = c1
    stream.words[2] = c2
    stream.words[3] = c3
    stream.n_used = 0


cdef inline uint64_t next_word(WordStream* stream) noexcept nogil:
    if stream.n_used == 4:
        next_block(stream)
    stream.n_used += 1
    return stream.words[stream.n_used - 1]


cdef inline double next_double(WordStream* stream) noexcept nogil:
    """Uniform in [0, 1), a multiple of 2**-53."""
    return (next_word(stream) >> 11) * (1.0 / 9007199254740992.0)


cdef inline uint64_t draw_below(WordStream* stream, uint64_t n) noexcept nogil:
    """Uniform integer in [0, n), n >= 1, from one word, hardly ever two: https://doi.org/10.1145/3230636."""
    cdef uint64_t word = next_word(stream), low = word * n, threshold
    if low < n:
        threshold = (<uint64_t> 0 - n) % n  # 2**64 mod n
        while low < threshold:
            word = next_word(stream)
            low = word * n
    return multiply_high(word, n)


def draw_integers(
    const uint64_t[::1] key not None, uint64_t number, uint64_t kind, uint64_t n, int64_t[::1] out not None,
):
    """Fill `out` with uniform integers in [0, n), n in [1, 2**63]."""
    cdef WordStream stream
    cdef Py_ssize_t i
    with nogil:
        begin(&stream, key, number, kind)
        for i in range(out.shape[0]):
            out[i] = <int64_t> draw_below(&stream, n)


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


def count_runs(const code_t[::1] codes not None, Py_ssize_t start, Py_ssize_t stop):
    """Count the runs of equal codes in `codes[start:stop]`. One pass at memory speed."""
    cdef Py_ssize_t i, block, n_runs = 1 if start < stop else 0
    cdef int n_here
    with nogil:
        i = start + 1
        while i < stop:
            block = min(i + 4096, stop)
            n_here = 0
            # Without a branch and with a small counter, so that compilers turn it into vector instructions.
            while i < block:
                n_here += codes[i] != codes[i - 1]
                i += 1
            n_runs += n_here
    return n_runs


def count_codes(const code_t[::1] codes not None, Py_ssize_t start, Py_ssize_t stop, int64_t[::1] counts not None):
    """Count every code in `codes[start:stop]`. Returns the first code that is not in [0, len(counts)), or 0."""
    cdef Py_ssize_t i, n_classes = counts.shape[0]
    cdef int64_t code, wrong = 0
    with nogil:
        counts[:] = 0
        for i in range(start, stop):
            code = <int64_t> codes[i]
            if code < 0 or code >= n_classes:
                wrong = code
                break
            counts[code] += 1
    return wrong


def index_rows(
    const code_t[::1] codes not None, Py_ssize_t start, Py_ssize_t stop, const int64_t[::1] class_offset not None,
    int64_t[::1] free not None, row_t[::1] rows not None,
):
    """Sort the rows of a window by class, ascending within a class: a counting sort, O(stop - start).

    The rows of class `c` go to ``rows[class_offset[c]:class_offset[c + 1]]``. `free` has one entry per class, for the
    kernel's own use. Codes are in [0, len(free)).
    """
    cdef Py_ssize_t i, c
    with nogil:
        for c in range(free.shape[0]):
            free[c] = class_offset[c]
        for i in range(start, stop):
            c = <Py_ssize_t> codes[i]
            rows[free[c]] = <row_t> i
            free[c] += 1


# ---------------------------------------------------------------------------------------------------------------------
# Draws

cdef inline Py_ssize_t draw_class(WordStream* stream, const double[::1] cumulative_weights) noexcept nogil:
    """Index of a class by its weight: the first whose cumulative weight exceeds a uniform number in [0, 1)."""
    cdef double uniform = next_double(stream)
    cdef Py_ssize_t low = 0, high = cumulative_weights.shape[0] - 1, middle
    while low < high:
        middle = (low + high) >> 1
        if uniform < cumulative_weights[middle]:
            high = middle
        else:
            low = middle + 1
    return low


def draw_groups(
    const uint64_t[::1] key not None, uint64_t number, uint64_t kind, const double[::1] cumulative_weights not None,
    const int64_t[::1] drawable not None, int64_t[::1] out not None,
):
    """Draw a class for each of `len(out)` groups of chunks. O(log classes) each.

    `drawable` holds the codes of the classes that may be drawn, `cumulative_weights` their weights, summed up, the last
    one exactly 1.
    """
    cdef WordStream stream
    cdef Py_ssize_t i
    with nogil:
        begin(&stream, key, number, kind)
        for i in range(out.shape[0]):
            out[i] = drawable[draw_class(&stream, cumulative_weights)]


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


def draw_run_chunks(
    const uint64_t[::1] key not None, uint64_t number, uint64_t kind, const int64_t[::1] groups not None,
    Py_ssize_t group_chunks, const int64_t[::1] class_offset not None, const int64_t[::1] grouped_start not None,
    const int64_t[::1] cumulative_starts not None, int64_t[::1] starts not None,
):
    """Draw the first row of `len(starts)` chunks; `groups` holds the class of every `group_chunks` of them.

    The start is uniform among all chunk starts of the class. O(log runs) a chunk.
    """
    cdef WordStream stream
    cdef Py_ssize_t n_chunks = starts.shape[0], i = 0, group = 0, group_stop, code, first_run, n_runs
    cdef int64_t base, n_starts
    with nogil:
        begin(&stream, key, number, kind)
        while i < n_chunks:
            code = groups[group]
            group += 1
            first_run = class_offset[code]
            n_runs = class_offset[code + 1] - first_run
            base = cumulative_starts[first_run]
            n_starts = cumulative_starts[first_run + n_runs] - base
            group_stop = i + group_chunks if i + group_chunks < n_chunks else n_chunks
            while i < group_stop:
                starts[i] = start_at(
                    grouped_start, cumulative_starts, first_run, n_runs,
                    base + <int64_t> draw_below(&stream, <uint64_t> n_starts),
                )
                i += 1


def draw_index_rows(
    const uint64_t[::1] key not None, uint64_t number, uint64_t kind, const int64_t[::1] groups not None,
    Py_ssize_t group_chunks, const int64_t[::1] first not None, const int64_t[::1] n_rows not None,
    const row_t[::1] rows not None, int64_t[::1] starts not None,
):
    """`draw_run_chunks` for chunks of one row: class `c` has the rows ``rows[first[c]:first[c] + n_rows[c]]``."""
    cdef WordStream stream
    cdef Py_ssize_t n_chunks = starts.shape[0], i = 0, group = 0, group_stop, code
    with nogil:
        begin(&stream, key, number, kind)
        while i < n_chunks:
            code = groups[group]
            group += 1
            group_stop = i + group_chunks if i + group_chunks < n_chunks else n_chunks
            while i < group_stop:
                starts[i] = <int64_t> rows[first[code] + <int64_t> draw_below(&stream, <uint64_t> n_rows[code])]
                i += 1


# ---------------------------------------------------------------------------------------------------------------------
# The order of chunks

# Indices that are worked on together.
cdef enum:
    BLOCK = 64


cdef inline uint32_t mixed(uint32_t value, uint32_t key0, uint32_t key1) noexcept nogil:
    """Hash of 32 bits under a key of 64. Only shifts and 32-bit products, so that compilers turn it into vectors."""
    value = (value ^ key0) * <uint32_t> 0x85EBCA6BU
    value = ((value ^ (value >> 15)) ^ key1) * <uint32_t> 0xC2B2AE35U
    return value ^ (value >> 16)


cdef inline void permute_block(
    const uint64_t* keys, Py_ssize_t n_rounds, uint32_t n_left, uint32_t n_right, uint32_t* left, uint32_t* right,
    Py_ssize_t n,
) noexcept nogil:
    cdef Py_ssize_t j, i
    cdef uint32_t key0, key1, total
    for j in range(0, n_rounds, 2):
        key0 = <uint32_t> keys[j]
        key1 = <uint32_t> (keys[j] >> 32)
        for i in range(n):
            # Both are < 2**31, so the sum fits.
            total = left[i] + <uint32_t> ((<uint64_t> mixed(right[i], key0, key1) * n_left) >> 32)
            left[i] = total - n_left if total >= n_left else total
        key0 = <uint32_t> keys[j + 1]
        key1 = <uint32_t> (keys[j + 1] >> 32)
        for i in range(n):
            total = right[i] + <uint32_t> ((<uint64_t> mixed(left[i], key0, key1) * n_right) >> 32)
            right[i] = total - n_right if total >= n_right else total


def permute(
    const uint64_t[::1] keys not None, uint64_t n, uint64_t n_left, uint64_t n_right, uint64_t first,
    int64_t[::1] out not None,
):
    """Compute the numbers at the places ``first, first + 1, ...`` of a keyed permutation of [0, n). O(len(out)).

    A generalized Feistel cipher with cycle walking (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"): a
    number is a pair in [0, n_left) x [0, n_right), with n <= n_left * n_right and both <= 2**31; every round adds a
    hash of one half to the other half, modulo its size, which can be undone, so each round is a permutation; a result
    that is not below n goes through again. With halves near the square root of n that is one number in sqrt(n).

    One key per round, an even number of them.
    """
    cdef uint32_t[BLOCK] left, right
    cdef uint32_t own_left, own_right
    cdef uint64_t value
    cdef Py_ssize_t done = 0, n_out = out.shape[0], n_here, i
    with nogil:
        if n_out:
            own_left = <uint32_t> (first // n_right)
            own_right = <uint32_t> (first % n_right)
        while done < n_out:
            n_here = n_out - done if n_out - done < BLOCK else BLOCK
            for i in range(n_here):
                left[i] = own_left
                right[i] = own_right
                own_right += 1
                if own_right == n_right:
                    own_right = 0
                    own_left += 1
            if n_here == BLOCK:
                permute_block(&keys[0], keys.shape[0], <uint32_t> n_left, <uint32_t> n_right, left, right, BLOCK)
            else:
                permute_block(&keys[0], keys.shape[0], <uint32_t> n_left, <uint32_t> n_right, left, right, n_here)
            for i in range(n_here):
                value = left[i] * n_right + right[i]
                while value >= n:
                    permute_block(
                        &keys[0], keys.shape[0], <uint32_t> n_left, <uint32_t> n_right, &left[i], &right[i], 1
                    )
                    value = left[i] * n_right + right[i]
                out[done + i] = <int64_t> value
            done += n_here


# ---------------------------------------------------------------------------------------------------------------------
# Shuffled positions

cdef inline int draws_per_word(Py_ssize_t n) noexcept nogil:
    """Bounded integers below `n`, `n - 1`, ... that one word gives, so that it is hardly ever thrown away."""
    if n <= 16:
        return 15
    if n <= 32:
        return 11
    if n <= 64:
        return 9
    if n <= 128:
        return 8
    if n <= 256:
        return 7
    if n <= 512:
        return 6
    if n <= 2048:
        return 5
    if n <= 16384:
        return 4
    if n <= 524288:
        return 3
    if n <= 1073741824:
        return 2
    return 1


cdef inline void shuffle(WordStream* stream, position_t* values, Py_ssize_t n) noexcept nogil:
    """Fisher-Yates, with several bounded integers from each word.

    Brackett-Rozinsky and Lemire 2024, "Batched ranged random integer generation": the upper half of word x bound is
    the integer, the lower half the word for the next one; what is left at the end tells whether the word is thrown
    away.
    """
    cdef Py_ssize_t left = n
    cdef Py_ssize_t[15] drawn
    cdef uint64_t rest, product, threshold
    cdef int n_draws, k
    cdef position_t held
    while left > 1:
        n_draws = draws_per_word(left)
        if n_draws > left - 1:
            n_draws = <int> (left - 1)
        rest = next_word(stream)
        product = 1
        for k in range(n_draws):
            drawn[k] = <Py_ssize_t> multiply_high(rest, <uint64_t> (left - k))
            rest = rest * <uint64_t> (left - k)
            product *= <uint64_t> (left - k)
        if rest < product:
            threshold = (<uint64_t> 0 - product) % product  # 2**64 mod product
            while rest < threshold:
                rest = next_word(stream)
                for k in range(n_draws):
                    drawn[k] = <Py_ssize_t> multiply_high(rest, <uint64_t> (left - k))
                    rest = rest * <uint64_t> (left - k)
        for k in range(n_draws):
            left -= 1
            held = values[left]
            values[left] = values[drawn[k]]
            values[drawn[k]] = held


def shuffle_segments(
    const uint64_t[::1] key not None, uint64_t number, uint64_t kind, Py_ssize_t segment, position_t[::1] out not None,
):
    """Fill `out` with 0, 1, 2, ... and shuffle every `segment` neighbours among themselves.

    The last segment may be short. O(len(out)).
    """
    cdef WordStream stream
    cdef Py_ssize_t n = out.shape[0], first = 0, i
    with nogil:
        begin(&stream, key, number, kind)
        for i in range(n):
            out[i] = <position_t> i
        while first < n:
            shuffle(&stream, &out[first], segment if segment < n - first else n - first)
            first += segment


# ---------------------------------------------------------------------------------------------------------------------
# Requests

def chunk_slices(const int64_t[::1] starts not None, int64_t chunk_size, int64_t skip, int64_t n_rows):
    """Slices of `n_rows` rows in all, from chunks of `chunk_size` rows that begin at `starts`.

    The first chunk lacks its first `skip` rows, the last one is cut at its end. In C, because it is most of what a load
    request costs.
    """
    cdef list slices = []
    cdef int64_t start, stop
    cdef Py_ssize_t i
    for i in range(starts.shape[0]):
        start = starts[i] + (skip if i == 0 else 0)
        stop = min(starts[i] + chunk_size, start + n_rows)
        n_rows -= stop - start
        slices.append(slice(start, stop))
    return slices
