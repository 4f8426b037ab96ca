"""Where the bytes are and how they become rows.

A load request names rows of several sources and the place of each in the finished batches. Whatever the format, a stored
array is a table of chunks; each chunk that the request touches is read and decoded once, and its pieces are copied
straight to where they belong. What that table cannot describe is read through zarr-python or h5py, behind the same
functions.
"""

from .cpus import available_cpus
from .errors import CorruptDataError, damage_named
from .frames import read_frame
from .opening import is_store, open_group
from .pool import BufferPool
from .reading.request import CSRBlock, Part, read_csr, read_dense
from .reading.scale import Scale
from .reading.totals import row_totals
from .sources import DenseSource, SparseSource, open_matrix

__all__ = [
    "BufferPool",
    "CSRBlock",
    "CorruptDataError",
    "DenseSource",
    "Part",
    "Scale",
    "SparseSource",
    "available_cpus",
    "damage_named",
    "is_store",
    "open_group",
    "open_matrix",
    "read_csr",
    "read_dense",
    "read_frame",
    "row_totals",
]
