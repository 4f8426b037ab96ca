"""Kernels of the build: rows to their places, and whether numbers are whole."""

from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy

ctypedef fused real_t:
    float
    double


def place_rows(
    const uint8_t[::1] source not None,
    const int64_t[::1] source_start not None,
    const int64_t[::1] count not None,
    uint8_t[::1] out not None,
    const int64_t[::1] out_start not None,
    Py_ssize_t itemsize,
):
    """Copy row ``i``, ``count[i]`` items from ``source_start[i]``, to ``out_start[i]``; all three counted in items.

    Twin: ``out[o:o + n] = source[s:s + n]`` for each row. Checked by the caller: starts and counts are within the
    buffers.
    """
    cdef Py_ssize_t i, n = count.shape[0]
    if n == 0 or source.shape[0] == 0:
        return
    with nogil:
        for i in range(n):
            if count[i] > 0:
                memcpy(&out[out_start[i] * itemsize], &source[source_start[i] * itemsize], count[i] * itemsize)


def whole_range(const real_t[::1] values not None):
    """Return (whole, lowest, highest): are all values whole numbers that an int64 holds, and between which two.

    Twin: ``whole = (np.trunc(v) == v).all()``, with negative zero, NaN and magnitudes of 2**63 and above taken as not
    whole. An empty array is whole, with range (0, 0). The range means something only when ``whole`` is true.
    """
    cdef Py_ssize_t i, n = values.shape[0]
    cdef int64_t low = 0, high = 0, as_int
    cdef real_t value
    cdef bint whole = True
    cdef double limit = 9223372036854775808.0
    if n == 0:
        return True, 0, 0
    with nogil:
        for i in range(n):
            value = values[i]
            # Written so that NaN fails. The bits are compared too: -0.0 equals 0 but would come back without its sign.
            if not (value > -limit and value < limit):
                whole = False
                break
            as_int = <int64_t>value
            if <real_t>as_int != value or (as_int == 0 and 1 / value < 0):
                whole = False
                break
            if i == 0:
                low = high = as_int
            elif as_int < low:
                low = as_int
            elif as_int > high:
                high = as_int
    return whole, low, high
