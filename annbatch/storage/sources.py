"""A matrix as rows: what the loaders open, and what a load request reads from."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import h5py
import zarr

from .chunks.arrays import MemoryArray, StoredArray, stored_array
from .errors import CorruptDataError, damage_named
from .local_hdf5 import LocalDataset
from .local_zarr import LocalArray
from .row_pointers import RowPointers

if TYPE_CHECKING:
    import numpy as np

__all__ = ["DenseSource", "MatrixSource", "SparseSource", "open_matrix", "public_type"]

_CSR_KEYS = ("data", "indices", "indptr")


class MatrixSource:
    """A matrix whose rows can be read.

    Attributes
    ----------
    shape, dtype
        As stored.
    is_sparse
        True for CSR.
    location
        File and array, for error texts.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    is_sparse: bool
    location: str

    @property
    def n_obs(self) -> int:
        """Number of rows."""
        return self.shape[0]

    @property
    def is_direct(self) -> bool:
        """True when all of it is read by the compiled engine, False when zarr-python or h5py is asked."""
        raise NotImplementedError

    @property
    def is_far(self) -> bool:
        """True when rows come through a network."""
        raise NotImplementedError

    def close(self) -> None:
        """Close what is open. A later read opens it again."""
        raise NotImplementedError

    def __repr__(self) -> str:
        kind = "CSR" if self.is_sparse else "dense"
        way = "direct" if self.is_direct else "fallback"
        return f"<{kind} {'x'.join(map(str, self.shape))} {self.dtype}, {way}: {self.location}>"


class SparseSource(MatrixSource):
    """A CSR matrix: three one-dimensional arrays."""

    is_sparse = True

    def __init__(
        self, data: StoredArray, indices: StoredArray, indptr: StoredArray, shape: tuple[int, ...], location: str
    ) -> None:
        self.data, self.indices = data, indices
        self.shape, self.dtype, self.location = shape, data.dtype, location
        self._stored_indptr = indptr
        self._row_pointers: RowPointers | None = None
        self._check_shapes()

    @property
    def indices_dtype(self) -> np.dtype:
        """Dtype of the stored column numbers."""
        return self.indices.dtype

    @property
    def is_direct(self) -> bool:
        """See the base class."""
        return self.data.is_direct and self.indices.is_direct

    @property
    def is_far(self) -> bool:
        """See the base class."""
        return self.data.is_far or self.indices.is_far

    @property
    def row_pointers(self) -> RowPointers:
        """Where the values of each row lie; read at first use and checked.

        Raises
        ------
        CorruptDataError
            The stored row pointer does not start at 0, decreases, or leads beyond the stored values.
        """
        if self._row_pointers is None:
            self._stored_indptr.check_claim()
            self._row_pointers = RowPointers.shared(self._stored_indptr, self.data.shape[0])
        return self._row_pointers

    def close(self) -> None:
        """See the base class."""
        for array in (self.data, self.indices, self._stored_indptr):
            array.close()

    def __getstate__(self) -> dict[str, Any]:
        # Another process maps them from their file, or reads them again: that is quicker than sending them.
        memory = isinstance(self._stored_indptr, MemoryArray)
        return self.__dict__ if memory else {**self.__dict__, "_row_pointers": None}

    def _check_shapes(self) -> None:
        _check_numbers(self.data)
        for array in (self.data, self.indices, self._stored_indptr):
            if len(array.shape) != 1:
                msg = f"{array.location} must be one-dimensional, got shape {array.shape}"
                raise CorruptDataError(msg)
        for array in (self.indices, self._stored_indptr):
            if array.dtype.kind not in "iu":
                msg = f"{array.location} must hold integers, got {array.dtype}"
                raise CorruptDataError(msg)
        if len(self.shape) != 2 or min(self.shape) < 0:
            msg = f"{self.location}: shape must be two numbers >= 0, got {self.shape}"
            raise CorruptDataError(msg)
        if self.data.shape != self.indices.shape:
            msg = f"{self.data.location} has {self.data.shape[0]} values, but indices has {self.indices.shape[0]}"
            raise CorruptDataError(msg)
        if self._stored_indptr.shape[0] != self.shape[0] + 1:
            msg = (
                f"{self._stored_indptr.location} must have n_obs + 1 = {self.shape[0] + 1} entries, "
                f"got {self._stored_indptr.shape[0]}"
            )
            raise CorruptDataError(msg)


class DenseSource(MatrixSource):
    """A dense array whose first axis are the rows."""

    is_sparse = False

    def __init__(self, array: StoredArray) -> None:
        if not array.shape:
            msg = f"{array.location} must have at least one dimension, got a scalar"
            raise ValueError(msg)
        _check_numbers(array)
        self.array = array
        self.shape, self.dtype, self.location = array.shape, array.dtype, array.location

    @property
    def is_direct(self) -> bool:
        """See the base class."""
        return self.array.is_direct

    @property
    def is_far(self) -> bool:
        """See the base class."""
        return self.array.is_far

    def close(self) -> None:
        """See the base class."""
        self.array.close()


def open_matrix(elem: Any, *, direct: bool = True) -> SparseSource | DenseSource:
    """Open a matrix to read rows from.

    Parameters
    ----------
    elem
        ``anndata.abc.CSRDataset`` (Zarr or HDF5), ``zarr.Array``, ``h5py.Dataset``, a ``zarr.Group`` or ``h5py.Group`` that
        holds an encoded CSR matrix, ``scipy.sparse.csr_matrix`` or ``csr_array``, ``numpy.ndarray``.
    direct
        False: read through zarr-python or h5py even where the compiled engine could read.

    Returns
    -------
    A :class:`SparseSource` or :class:`DenseSource`. It can be pickled and survives a fork; arrays in memory travel with it,
    files are opened again by their path. Nothing but shapes and dtypes is read here.

    Raises
    ------
    TypeError
        A CSC matrix, or something that is no matrix.
    CorruptDataError
        The parts of a CSR matrix contradict each other.

    Examples
    --------
    >>> import numpy as np
    >>> from annbatch import storage
    >>> storage.open_matrix(np.zeros((3, 2), "float32")).shape
    (3, 2)
    """
    import scipy.sparse as sp

    if sp.issparse(elem):
        return _in_memory(elem, direct=direct)
    group = _encoded_group(elem)
    if group is None:
        array = stored_array(elem)
        array.direct = direct
        return DenseSource(array)
    location = _group_location(group)
    shape = _csr_shape(group, location)
    with damage_named(location):
        missing = [key for key in _CSR_KEYS if key not in group]
    if missing:
        msg = f"{location} holds no CSR matrix: {', '.join(missing)} missing"
        raise CorruptDataError(msg)
    with damage_named(location):
        arrays = {key: stored_array(group[key]) for key in _CSR_KEYS}
    return _sparse_source(arrays, shape, location, direct=direct)


def public_type(elem: Any) -> type:
    """Return the type of a matrix by which its library knows it."""
    if isinstance(elem, LocalDataset):
        known: type = h5py.Dataset
        return known
    return zarr.Array if isinstance(elem, LocalArray) else type(elem)


def _in_memory(matrix: Any, *, direct: bool) -> SparseSource:
    if matrix.format != "csr":
        raise TypeError(_not_csr(f"a scipy {matrix.format} matrix", matrix.format))
    arrays = {key: stored_array(getattr(matrix, key), f"matrix in memory :: {key}") for key in _CSR_KEYS}
    return _sparse_source(arrays, matrix.shape, "matrix in memory", direct=direct)


def _sparse_source(
    arrays: dict[str, StoredArray], shape: tuple[int, ...], location: str, *, direct: bool
) -> SparseSource:
    for array in arrays.values():
        array.direct = direct
    return SparseSource(arrays["data"], arrays["indices"], arrays["indptr"], shape, location)


def _encoded_group(elem: Any) -> Any:
    """Return the group that holds an encoded sparse matrix, or None for anything else."""
    if type(elem).__module__.partition(".")[0] == "anndata" and hasattr(elem, "group"):
        return elem.group
    return elem if isinstance(elem, h5py.Group | zarr.Group) else None


def _csr_shape(group: Any, location: str) -> tuple[int, ...]:
    with damage_named(location):
        attrs = dict(group.attrs)
    # AnnData 0.7 and later, and the names before that.
    kind = attrs.get("encoding-type", attrs.get("h5sparse_format"))
    kind = kind.decode() if isinstance(kind, bytes) else kind
    if kind in ("csc_matrix", "csc"):
        raise TypeError(_not_csr(location, "csc"))
    if kind not in ("csr_matrix", "csr"):
        msg = f"{location} must be an encoded csr_matrix, got a group of encoding-type {kind!r}"
        raise TypeError(msg)
    shape = attrs.get("shape", attrs.get("h5sparse_shape"))
    if shape is None:
        msg = f"{location} has no shape attribute"
        raise CorruptDataError(msg)
    try:
        return tuple(operator.index(n) for n in shape)
    except TypeError:
        msg = f"{location}: shape must be whole numbers, got {shape}"
        raise CorruptDataError(msg) from None


def _check_numbers(array: StoredArray) -> None:
    if array.dtype.kind not in "biufc":
        msg = f"{array.location} must hold numbers, got {array.dtype}"
        raise TypeError(msg)


def _not_csr(what: str, kind: str) -> str:
    return (
        f"{what} must be stored by rows (CSR), got {kind}; convert it first, "
        "e.g. adata.X = adata.X.tocsr() and write the file again"
    )


def _group_location(group: Any) -> str:
    if hasattr(group, "file"):
        return f"{group.file.filename} :: {group.name}"
    root = getattr(group.store, "root", group.store)
    return f"{root} :: {group.path or '/'}"
