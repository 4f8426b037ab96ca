"""Batches on a torch device: counts travel as they are stored, and become what the user asked for over there.

What a batch needs crosses the bus in one buffer: values in their stored type, column numbers in 16 bits where that is enough,
row pointers, labels. Widening, scaling and filling dense rows are left to the device, where memory is fast.

All of it is put on a stream of its own by the thread that reads ahead (:class:`Streams`). Neither it nor the consumer waits for the
device: the stream that the consumer uses is told to wait for an event, and memory of a batch is not used again before that stream is
done with it. Only a staging buffer that is still being copied from is waited for, by the thread that reads ahead.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from annbatch.storage import CSRBlock, Scale

__all__ = ["HandOver", "OnDevice", "Reading", "Remainder", "Streams", "as_device"]

# Staging buffers that are filled in turn: one is filled while the ones before it are copied from.
_N_STAGING = 3
# Where an array begins in a staging buffer: a multiple of the size of every type, and of a GPU's memory transactions.
_ALIGNMENT = 64

# How torch sees the bytes of types that it can hold but hardly compute with, and what takes off the sign.
_UNSIGNED = {np.dtype(np.uint16): ("int16", "int32", 0xFFFF), np.dtype(np.uint32): ("int32", "int64", 0xFFFFFFFF)}
_COMPUTABLE = ["bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"]


@dataclass(frozen=True)
class Remainder:
    """What is left to be done with a matrix once its values are on the device.

    Attributes
    ----------
    dtype
        Of the result.
    scale
        What is done to values, or None.
    dense
        Whether CSR rows are filled into dense ones.
    """

    dtype: np.dtype[Any]
    scale: Scale | None = None
    dense: bool = False

    @property
    def needs_totals(self) -> bool:
        """Whether the total of each row is needed."""
        return self.scale is not None and self.scale.target_sum is not None


@dataclass(frozen=True)
class Reading:
    """How a matrix is read: as CSR or dense, in which dtype and scale, and what remains to be done.

    Attributes
    ----------
    as_csr, dtype, scale
        For storage.
    remainder
        For the device; None: what is read is handed out.
    """

    as_csr: bool
    dtype: np.dtype[Any]
    scale: Scale | None
    remainder: Remainder | None = None


# -- streams


class Streams(Protocol):
    """The order of work on a device.

    Made in the thread that starts a pass, used in the one that reads it, except for :meth:`hand_over`.
    """

    def working(self) -> AbstractContextManager[Any]:
        """Put what this thread does on the device on the loader's own stream."""

    def staging(self, n_bytes: int) -> Any:
        """Return new host memory (uint8 tensor) that the device can copy from while the host goes on."""

    def mark(self) -> Any:
        """Return an event after all that was put on the own stream so far."""

    def wait(self, event: Any) -> None:
        """Wait, on the host, for an event."""

    def hand_over(self, event: Any, tensors: list[Any]) -> None:
        """Let the stream that the calling thread uses wait for an event; keep the tensors' memory until that stream is done."""


class HostStreams:
    """Of a device that does everything at once, such as "cpu"."""

    def working(self) -> AbstractContextManager[Any]:
        """See the protocol."""
        return nullcontext()

    def staging(self, n_bytes: int) -> Any:
        """See the protocol."""
        import torch

        return torch.empty(n_bytes, dtype=torch.uint8)

    def mark(self) -> Any:
        """See the protocol."""
        return None

    def wait(self, event: Any) -> None:
        """See the protocol."""

    def hand_over(self, event: Any, tensors: list[Any]) -> None:
        """See the protocol."""


class CudaStreams:
    """Of a CUDA (or ROCm) device."""

    def __init__(self, device: Any) -> None:
        import torch

        cuda: Any = torch.cuda
        self._device = device
        self._stream = cuda.Stream(device)

    def working(self) -> AbstractContextManager[Any]:
        """See the protocol."""
        import torch

        return torch.cuda.stream(self._stream)

    def staging(self, n_bytes: int) -> Any:
        """See the protocol."""
        import torch

        return torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True)

    def mark(self) -> Any:
        """See the protocol."""
        return self._stream.record_event()

    def wait(self, event: Any) -> None:
        """See the protocol."""
        event.synchronize()

    def hand_over(self, event: Any, tensors: list[Any]) -> None:
        """See the protocol."""
        import torch

        consumers = torch.cuda.current_stream(self._device)
        consumers.wait_event(event)
        for tensor in tensors:
            tensor.record_stream(consumers)


def streams_of(device: Any) -> Streams:
    """Streams of a torch device."""
    return CudaStreams(device) if device.type == "cuda" else HostStreams()


def as_device(device: Any) -> Any:
    """Return a torch device that exists here, with its number.

    Raises
    ------
    TypeError, ValueError
        When it is no device, or there is none like it.
    """
    import torch

    try:
        found = torch.device(device)
        if found.type == "cuda":
            # The current device is set per thread, so it is looked up here, where the user has chosen it.
            found = torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)
        torch.empty(0, device=found)
    except TypeError:
        msg = f"device must be a torch device, such as 'cuda', got {device!r} ({type(device).__name__})"
        raise TypeError(msg) from None
    except (RuntimeError, AssertionError) as error:
        msg = f"device must be a torch device of this machine, got {device!r}: {str(error).splitlines()[0]}"
        raise ValueError(msg) from error
    return found


# -- a batch


@dataclass(frozen=True)
class HandOver:
    """A batch that the device may still be working on; :meth:`take` is for the thread that consumes it."""

    batch: Any
    tensors: list[Any]
    event: Any
    streams: Streams

    def take(self) -> Any:
        """Order the consumer's work after the batch's, and hand the batch out."""
        self.streams.hand_over(self.event, self.tensors)
        return self.batch


class _Pending:
    """A place in a batch whose content is made once the bytes are on the device."""

    def __init__(self, make: Callable[[list[Any]], Any]) -> None:
        self.make = make


class OnDevice:
    """Makes batches on a device.

    Parameters
    ----------
    device
        A torch device.
    """

    def __init__(self, device: Any) -> None:
        self.device = device
        self.streams = streams_of(device)
        self._freight: list[np.ndarray] = []
        # Staging memory, and the event after which it may be written to.
        self._staging: list[tuple[Any, Any]] = []

    def reading(self, dtypes: list[np.dtype[Any]], *, is_sparse: bool, dense: bool, wanted: Remainder) -> Reading:
        """How to read a matrix whose sources have these dtypes, so that few bytes travel and no value is cut."""
        stored = np.result_type(*dtypes)
        can_wait = stored == wanted.dtype or (
            (wanted.scale is not None or np.can_cast(stored, wanted.dtype, "safe")) and _computes(stored)
        )
        if not can_wait or wanted.dtype.name not in _COMPUTABLE:
            # What the device cannot do, or what must be checked value by value, is done while rows are read.
            return Reading(is_sparse and not dense, wanted.dtype, wanted.scale, Remainder(wanted.dtype))
        return Reading(is_sparse, stored, None, Remainder(wanted.dtype, wanted.scale, dense=is_sparse and dense))

    # -- parts of a batch

    def small(self, array: np.ndarray) -> _Pending:
        """Row numbers, labels and covariates."""
        slot = self._add(array)
        return _Pending(lambda arrived: arrived[slot])

    def matrix(self, block: CSRBlock | np.ndarray, remainder: Remainder, totals: np.ndarray | None) -> _Pending:
        """X, a layer or an entry of obsm."""
        factor = None
        if remainder.needs_totals:
            assert totals is not None
            assert remainder.scale is not None
            assert remainder.scale.target_sum is not None
            whole = totals.astype(np.float64)
            per_row = np.where(whole == 0, 1, remainder.scale.target_sum / np.where(whole == 0, 1, whole))
            factor = self._add(per_row, np.dtype(np.float32))
        if isinstance(block, np.ndarray):
            slot = self._add(block)
            return _Pending(lambda arrived: _dense_rows(arrived[slot], remainder, _at(arrived, factor)))
        n_rows, n_var = block.shape
        narrow = np.uint16 if n_var <= 1 << 16 else np.uint32 if n_var <= 1 << 32 else block.indices.dtype
        slots = self._add(block.data), self._add(block.indices, np.dtype(narrow)), self._add(block.indptr)

        def make(arrived: list[Any]) -> Any:
            values, columns, starts = (arrived[slot] for slot in slots)
            return _sparse_rows(values, columns, starts, (n_rows, n_var), remainder, _at(arrived, factor))

        return _Pending(make)

    def _add(self, array: np.ndarray, dtype: np.dtype[Any] | None = None) -> int:
        if dtype is not None and dtype != array.dtype:
            array = array.astype(dtype)
        self._freight.append(array)
        return len(self._freight) - 1

    # -- a whole batch

    def finish(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Send what the batch needs, and make its parts."""
        freight, self._freight = self._freight, []
        arrived = self._send(freight)
        return _filled(batch, arrived)  # type: ignore[no-any-return]

    def handed_over(self, batch: Any) -> HandOver:
        """Wrap what is handed out, after all that was done to it."""
        tensors: list[Any] = []
        _collect(batch, tensors, set())
        return HandOver(batch, tensors, self.streams.mark(), self.streams)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Put what is done meanwhile on the loader's own stream."""
        with self.streams.working():
            yield

    def _send(self, arrays: list[np.ndarray]) -> list[Any]:
        """Copy arrays to the device, through one staging buffer."""
        import torch

        starts = []
        n_bytes = 0
        for array in arrays:
            starts.append(n_bytes)
            n_bytes += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
        if not n_bytes:
            return [_viewed(torch.empty(0, dtype=torch.uint8, device=self.device), array) for array in arrays]
        staging = self._free_staging(n_bytes)
        host = staging.numpy()
        for start, array in zip(starts, arrays, strict=True):
            part = host[start : start + array.nbytes]
            np.copyto(part.view(array.dtype).reshape(array.shape), array)
        # Always a copy, also where the device is the host: the staging buffer is used again.
        there = torch.empty(n_bytes, dtype=torch.uint8, device=self.device)
        there.copy_(staging[:n_bytes], non_blocking=True)
        self._staging.append((staging, self.streams.mark()))
        return [
            _viewed(there[start : start + array.nbytes], array) for start, array in zip(starts, arrays, strict=True)
        ]

    def _free_staging(self, n_bytes: int) -> Any:
        if len(self._staging) < _N_STAGING:
            return self.streams.staging(_rounded(n_bytes))
        staging, event = self._staging.pop(0)
        self.streams.wait(event)
        return staging if len(staging) >= n_bytes else self.streams.staging(_rounded(n_bytes))


def _rounded(n_bytes: int) -> int:
    # A quarter more than is needed now: the next batch is of about the same size.
    return 1 << 12 if n_bytes < 1 << 12 else n_bytes + n_bytes // 4


def _at(arrived: list[Any], slot: int | None) -> Any:
    return None if slot is None else arrived[slot]


# -- on the device


@cache
def _torch_dtype(dtype: np.dtype[Any]) -> Any:
    import torch

    return torch.from_numpy(np.empty(0, dtype)).dtype


def _computes(dtype: np.dtype[Any]) -> bool:
    return dtype.name in _COMPUTABLE or dtype in _UNSIGNED


def _viewed(part: Any, array: np.ndarray) -> Any:
    """Return bytes as what they are: a tensor, or an unsigned one under the name that torch computes with."""
    return _Bytes(part, array.dtype, array.shape)


class _Bytes:
    """Numbers that have arrived, in their type on the bus."""

    def __init__(self, part: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.part, self.dtype, self.shape = part, dtype, shape

    def tensor(self) -> Any:
        """The numbers in that type."""
        return self.part.view(_torch_dtype(self.dtype)).reshape(self.shape)

    def widened(self, dtype: Any) -> Any:
        """The numbers in a type that holds them all."""
        import torch

        target = _torch_dtype(np.dtype(dtype))
        if self.dtype not in _UNSIGNED or target == _torch_dtype(self.dtype):
            return self.tensor().to(target)
        signed, wide, mask = _UNSIGNED[self.dtype]
        numbers = self.part.view(getattr(torch, signed)).reshape(self.shape).to(getattr(torch, wide))
        return numbers.bitwise_and_(mask).to(target)


def _scaled(values: Any, remainder: Remainder, factor: Any) -> Any:
    """Values after scaling; `factor` is per value."""
    if factor is not None:
        values = values * factor.to(values.dtype)
    if remainder.scale is not None and remainder.scale.log1p:
        values = values.log1p()
    return values


def _dense_rows(rows: _Bytes, remainder: Remainder, factor: _Bytes | None) -> Any:
    values = rows.widened(remainder.dtype)
    per_row = None if factor is None else factor.tensor().reshape(-1, *([1] * (values.ndim - 1)))
    return values if remainder.scale is None else _scaled(values, remainder, per_row)


def _sparse_rows(
    data: _Bytes, columns: _Bytes, starts: _Bytes, shape: tuple[int, int], remainder: Remainder, factor: _Bytes | None
) -> Any:
    import torch

    n_rows, n_var = shape
    n_values = data.shape[0]
    values, crow = data.widened(remainder.dtype), starts.tensor()
    row = None
    if factor is not None or remainder.dense:
        # The number of values is given, so that the host does not wait to learn it.
        numbers = torch.arange(n_rows, device=crow.device)
        row = torch.repeat_interleave(numbers, (crow[1:] - crow[:-1]).to(torch.int64), output_size=n_values)
    if remainder.scale is not None:
        values = _scaled(values, remainder, None if factor is None else factor.tensor()[row])
    if not remainder.dense:
        return torch.sparse_csr_tensor(crow, columns.widened(starts.dtype), values, size=shape, check_invariants=False)
    assert row is not None
    out = torch.zeros(n_rows * n_var, dtype=values.dtype, device=values.device)
    place = row.mul_(n_var).add_(columns.widened(np.int64))
    if values.dtype == torch.bool:
        out[place[values]] = True
    else:
        out.scatter_add_(0, place, values)  # repeated columns of a row add up
    return out.reshape(n_rows, n_var)


def _filled(part: Any, arrived: list[Any]) -> Any:
    if isinstance(part, dict):
        return {key: _filled(value, arrived) for key, value in part.items()}
    if not isinstance(part, _Pending):
        return part
    made = part.make(arrived)
    return made.tensor() if isinstance(made, _Bytes) else made


def _collect(part: Any, tensors: list[Any], seen: set[int]) -> None:
    """Find all tensors in what a batch was made into, the parts of sparse ones instead of them."""
    import torch

    if id(part) in seen:
        return
    seen.add(id(part))
    if isinstance(part, torch.Tensor):
        if part.layout == torch.sparse_csr:
            tensors += [part.crow_indices(), part.col_indices(), part.values()]
        elif part.layout == torch.sparse_coo:
            tensors += [part._indices(), part._values()]  # noqa: SLF001 (what may be asked of one that is not coalesced)
        else:
            tensors.append(part)
    elif isinstance(part, dict):
        for value in part.values():
            _collect(value, tensors, seen)
    elif isinstance(part, (list, tuple, set)):
        for value in part:
            _collect(value, tensors, seen)
    elif type(part).__module__.partition(".")[0] not in ("pandas", "numpy", "scipy", "builtins") and hasattr(
        part, "__dict__"
    ):
        _collect(vars(part), tensors, seen)
