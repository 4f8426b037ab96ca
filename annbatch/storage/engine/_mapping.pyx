"""A file of our own as memory.

Unlike Python's ``mmap``, which keeps a file handle for each map, this keeps none: thousands may be there at a time.
"""

from cpython.buffer cimport PyBuffer_FillInfo

cdef extern from "_mapping.h" nogil:
    enum: CAN_MAP_FILES
    void *map_file(int, size_t, int)
    void unmap_file(void *, size_t)

can_map_files = bool(CAN_MAP_FILES)


cdef class FileMap:
    """The first ``n_bytes`` of an open file, which may be closed afterwards, as a buffer.

    It is read-only, or ``writable``: what is written is then seen by this process alone, and does not reach the file.
    Raises OSError when the system does not map it. The file must have so many bytes as long as the map is there.
    """

    cdef void *start
    cdef size_t n_bytes
    cdef bint writable

    def __cinit__(self, int handle, size_t n_bytes, bint writable=False):
        self.start = map_file(handle, n_bytes, writable) if n_bytes else NULL
        self.writable = writable
        self.n_bytes = n_bytes
        if self.start == NULL:
            raise OSError("the file cannot be mapped")

    def __dealloc__(self):
        if self.start != NULL:
            unmap_file(self.start, self.n_bytes)

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.start, <Py_ssize_t>self.n_bytes, not self.writable, flags)
