"""Where the bytes are and how they become rows.

A load request names rows of several sources and the place of each in the finished batches. Whatever the format, a stored
array is a table of chunks; each chunk that the request touches is read and decoded once, and its pieces are copied
straight to where they belong. What that table cannot describe is read through zarr-python or h5py, behind the same
functions.
"""

from .chunks.described import storage_of
from .cpus import available_cpus
from .errors import CorruptDataError, damage_named
from .far.cache import tell_untold
from .far.fetch import Cancel
from .far.fetch import counts as far_counts
from .far.handed import StoredObject, as_places
from .far.needs import Needs
from .far.opening import far_groups, fetched_ahead, find_datasets, is_far_place, is_url
from .far.options import FarOptions
from .frames import read_frame
from .opening import home_of, is_store, open_datasets, open_group, open_groups
from .pool import BufferPool
from .reading.request import CSRBlock, Part, read_csr, read_dense
from .reading.scale import Scale
from .reading.totals import row_totals
from .shared_arrays import packed_state, reduced, shared, unpacked_state
from .sources import DenseSource, SparseSource, open_matrix, public_type

__all__ = [
    "BufferPool",
    "CSRBlock",
    "Cancel",
    "CorruptDataError",
    "DenseSource",
    "FarOptions",
    "Needs",
    "Part",
    "Scale",
    "SparseSource",
    "StoredObject",
    "as_places",
    "available_cpus",
    "damage_named",
    "far_counts",
    "far_groups",
    "fetched_ahead",
    "find_datasets",
    "home_of",
    "is_far_place",
    "is_store",
    "is_url",
    "open_datasets",
    "open_group",
    "open_groups",
    "open_matrix",
    "packed_state",
    "public_type",
    "read_csr",
    "read_dense",
    "read_frame",
    "reduced",
    "row_totals",
    "shared",
    "storage_of",
    "tell_untold",
    "unpacked_state",
]
