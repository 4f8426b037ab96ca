"""The base class of all samplers, and what a user extends to write a new one."""

from __future__ import annotations

import dataclasses
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ._checks import as_generator, as_range
from ._random import generator_from_state, generator_state, request_stream, take_pass_seed
from ._rle import shuffle_segments
from ._workers import Worker, current_worker

if TYPE_CHECKING:
    from .types import LoadRequest

__all__ = ["Sampler"]

_STATE_VERSION = 1


class Sampler(ABC):
    """Decides which rows are read and how they are cut into batches. Never touches data.

    To write a sampler, implement :attr:`batch_size`, :attr:`shuffle`, :meth:`n_batches` and :meth:`_sample`. The base class
    adds validation, splits for requests that carry none, saving and restoring of the position, and protection of the mask
    while a pass is open.

    Examples
    --------
    A sampler that visits every second row:

    >>> import numpy as np
    >>> from annbatch.abc import Sampler
    >>> class EverySecond(Sampler):
    ...     batch_size = 4
    ...     shuffle = False
    ...
    ...     def n_batches(self, n_obs):
    ...         return -(-len(range(0, n_obs, 2)) // self.batch_size)
    ...
    ...     def _sample(self, n_obs):
    ...         yield {"requests": np.arange(0, n_obs, 2)}
    >>> [split.tolist() for request in EverySecond().sample(13) for split in request["splits"]]
    [[0, 1, 2, 3], [4, 5, 6]]

    Notes
    -----
    A state restores the generator as it was when the pass began and draws the pass again. A sampler of your own can
    therefore be resumed when all its randomness comes from :attr:`rng`.
    """

    #: Whether the sampler yields only this worker's part of a pass in each of several torch DataLoader workers. One that does
    #: not is refused there, since every worker would yield all of it.
    worker_aware: bool = False

    # Defaults live on the class, so that a subclass need not call super().__init__().
    _mask: slice = slice(0, None)
    _rng: np.random.Generator | None = None
    _n_passes: int = 0
    _position: _Position | None = None
    _resume: _Position | None = None

    @property
    @abstractmethod
    def batch_size(self) -> int | None:
        """Rows per batch; used when a request carries no splits."""

    @property
    @abstractmethod
    def shuffle(self) -> bool:
        """Whether rows are shuffled; used when a request carries no splits."""

    @abstractmethod
    def n_batches(self, n_obs: int) -> int:
        """Count the batches that one pass over data of `n_obs` rows yields."""

    @abstractmethod
    def _sample(self, n_obs: int) -> Iterator[LoadRequest]:
        """Yield the load requests of one pass over data of `n_obs` rows."""

    def validate(self, n_obs: int) -> None:  # noqa: B027 (a sampler that fits any data has nothing to check)
        """Raise ValueError when the configuration does not fit data of `n_obs` rows."""

    def n_iters(self, n_obs: int) -> int:
        """Count the batches of a pass; deprecated, use :meth:`n_batches`."""
        warnings.warn("n_iters is deprecated, use n_batches", FutureWarning, stacklevel=2)
        return self.n_batches(n_obs)

    @property
    def mask(self) -> slice:
        """Rows to sample from, half open: ``slice(start, stop)``; ``slice(0, None)`` means all.

        Raises
        ------
        TypeError
            When set to something else than a slice of integers.
        ValueError
            When set to a slice with a step, a negative number, or no rows.
        RuntimeError
            When set to other rows while a pass is open: the rest of that pass would not fit.
        """
        return self._mask

    @mask.setter
    def mask(self, mask: slice | None) -> None:
        new = as_range(mask)
        if new != self._mask:
            self._refuse_while_open(new)
            self._mask = new

    @property
    def rng(self) -> np.random.Generator | None:
        """Source of randomness. A pass takes one seed from it when it starts."""
        return self._rng

    @rng.setter
    def rng(self, rng: np.random.Generator | None) -> None:
        self._rng = None if rng is None else as_generator(rng)

    def sample(self, n_obs: int) -> Iterator[LoadRequest]:
        """Start a pass over data of `n_obs` rows.

        Everything that can be wrong is checked, and the seed of the pass is taken, before this returns; requests are made
        as they are asked for.

        Parameters
        ----------
        n_obs
            Number of rows of the data.

        Returns
        -------
        Iterator of LoadRequest
            Each with ``splits``. It has a ``close`` method, which ends the pass early.

        Raises
        ------
        ValueError
            When the configuration does not fit `n_obs`, or a restored state belongs to data of another size.
        NotImplementedError
            In one of several torch DataLoader workers, when the sampler is not :attr:`worker_aware`.
        """
        self.validate(n_obs)
        worker, first_request = current_worker(), 0
        if worker is not None and worker.count > 1 and not self.worker_aware:
            msg = (
                f"{type(self).__name__} cannot share a pass out among several DataLoader workers, got "
                f"num_workers={worker.count}; use num_workers=0 (the loader reads ahead in threads by itself) or 1, or, in a "
                "sampler of your own that yields only the worker's part, set worker_aware = True"
            )
            raise NotImplementedError(msg)
        if self._resume is not None:
            worker, first_request = self._resume.fit(n_obs, worker), self._resume.request
        rng = self._required_rng() if self.shuffle else self.rng
        position = _Position(
            number=self._n_passes,
            request=first_request,
            n_obs=n_obs,
            rng=None if rng is None else generator_state(rng),
            worker=worker,
        )
        requests = self._sample_from(n_obs, first_request, worker)
        # Only a pass that could be started counts, and uses up the state it was resumed from.
        self._resume = None
        self._n_passes += 1
        self._position = position
        open_pass = _Pass(requests, position)
        self.__dict__.setdefault("_open_passes", weakref.WeakSet()).add(open_pass)
        return open_pass

    def state_dict(self) -> dict[str, Any]:
        """Describe where the last pass stands.

        Returns
        -------
        dict
            Plain data that survives JSON: the number of the pass, how many load requests it has handed out, the generator's
            state at its start, and the arguments of the sampler. When the last pass is finished (its iterator has raised
            StopIteration) the state describes the start of the next one.
        """
        position = self._position
        if position is None or position.finished:
            position = self._resume or _Position(
                number=self._n_passes, rng=None if self.rng is None else generator_state(self.rng)
            )
        return {"version": _STATE_VERSION, "sampler": self._config(), **position.as_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken: the next :meth:`sample` continues that pass, bit for bit.

        The sampler gets a generator of its own, so one that the caller shares with other code is not moved.

        Raises
        ------
        ValueError
            When the state has another version, or belongs to a sampler with other arguments or other classes.
        """
        if not isinstance(state, dict):
            msg = f"state must be a dict made by state_dict, got {type(state).__name__}"
            raise TypeError(msg)
        if state.get("version") != _STATE_VERSION:
            msg = f"state must have version {_STATE_VERSION}, got {state.get('version')!r}"
            raise ValueError(msg)
        ours, theirs = self._config(), state.get("sampler")
        if theirs != ours:
            msg = f"state belongs to another sampler: {_difference(ours, theirs)}"
            raise ValueError(msg)
        position = _Position.from_dict(state)
        rng = None if position.rng is None else generator_from_state(position.rng)
        self._rng_restored(rng)
        self._n_passes = position.number
        self._position = None
        self._resume = position

    # -- hooks for the samplers of this package -----------------------------------------------------------------------

    def _sample_from(self, n_obs: int, first_request: int, worker: Worker | None) -> Iterator[LoadRequest]:
        """Start a pass at load request `first_request` (of this `worker`, when there is one).

        This default makes all requests and drops the first ones. Samplers of this package seek instead.
        """
        seed = take_pass_seed(self._required_rng()) if self.shuffle else 0
        return self._with_splits(self._sample(n_obs), n_obs, first_request, seed)

    def _with_splits(
        self, requests: Iterator[LoadRequest], n_obs: int, first_request: int, seed: int
    ) -> Iterator[LoadRequest]:
        try:
            for number, request in enumerate(requests):
                if number < first_request:
                    continue
                if request.get("splits") is None:
                    request = {**request, "splits": self._default_splits(request, n_obs, seed, number)}
                yield request
        finally:
            # A generator would be closed by the garbage collector too, but not at once on every Python.
            if hasattr(requests, "close"):
                requests.close()

    def _default_splits(self, request: LoadRequest, n_obs: int, seed: int, number: int) -> list[np.ndarray]:
        if self.batch_size is None:
            msg = "batch_size must not be None when load requests carry no splits"
            raise ValueError(msg)
        rows = request["requests"]
        if isinstance(rows, np.ndarray) and rows.dtype != object:
            n_rows = len(rows)
        else:
            n_rows = sum(len(range(*part.indices(n_obs))) for part in rows)
        positions = np.empty(n_rows, dtype=np.int64)
        segment = max(n_rows, 1) if self.shuffle else 1
        shuffle_segments(request_stream((seed,), (number,)), segment, positions)
        return [positions[first : first + self.batch_size] for first in range(0, n_rows, self.batch_size)]

    def _required_rng(self) -> np.random.Generator:
        """The generator; a sampler that was given none gets one with a fresh seed, and keeps it."""
        if self.rng is None:
            worker = current_worker()
            # The workers of an epoch must agree on the pass that they share.
            self.rng = np.random.default_rng(None if worker is None else worker.epoch_seed)
        assert self.rng is not None
        return self.rng

    def _config(self) -> dict[str, Any]:
        """Arguments that a state must agree with, as plain data."""
        return {
            "type": type(self).__qualname__,
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "mask": [self.mask.start, self.mask.stop],
        }

    def _rng_restored(self, rng: np.random.Generator | None) -> None:
        self._rng = rng

    def _refuse_while_open(self, new: slice) -> None:
        if any(not open_pass.closed for open_pass in self.__dict__.get("_open_passes", ())):
            msg = f"mask must not change while a pass is open: it is {self.mask}, got {new}; finish or close the pass first"
            raise RuntimeError(msg)

    def __getstate__(self) -> dict[str, Any]:
        # A copy has no open pass, and must not see its position move with the original's.
        state = {key: value for key, value in self.__dict__.items() if key != "_open_passes"}
        if self._position is not None:
            state["_position"] = dataclasses.replace(self._position)
        return state


@dataclasses.dataclass(slots=True)
class _Position:
    """Where a pass stands."""

    number: int
    request: int = 0
    n_obs: int | None = None
    rng: dict[str, Any] | None = None
    worker: Worker | None = None
    finished: bool = False

    def as_dict(self) -> dict[str, Any]:
        worker = None if self.worker is None else dataclasses.asdict(self.worker)
        return {"pass": self.number, "request": self.request, "n_obs": self.n_obs, "rng": self.rng, "worker": worker}

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> _Position:
        try:
            worker = None if state["worker"] is None else Worker(**state["worker"])
            return cls(int(state["pass"]), int(state["request"]), state["n_obs"], state["rng"], worker)
        except (KeyError, TypeError, ValueError) as error:
            msg = f"state must be a dict made by state_dict, but {type(error).__name__}: {error}"
            raise ValueError(msg) from error

    def fit(self, n_obs: int, worker: Worker | None) -> Worker | None:
        """Return the worker to continue as; ValueError when the pass was begun on other data or by another worker."""
        if self.n_obs is not None and self.n_obs != n_obs:
            msg = f"state belongs to other data: it was taken with n_obs={self.n_obs}, this data has n_obs={n_obs}"
            raise ValueError(msg)
        ours = None if worker is None else (worker.id, worker.count)
        theirs = None if self.worker is None else (self.worker.id, self.worker.count)
        if self.request > 0 and ours != theirs:
            msg = (
                f"state belongs to another set of DataLoader workers: it was taken with (worker, workers)={theirs}, "
                f"here it is {ours}"
            )
            raise ValueError(msg)
        return self.worker if ours == theirs else worker


class _Pass(Iterator["LoadRequest"]):
    """The requests of one pass; counts what was handed out."""

    def __init__(self, requests: Iterator[LoadRequest], position: _Position) -> None:
        self._requests = requests
        self._position = position
        self.closed = False

    def __next__(self) -> LoadRequest:
        if self.closed:
            raise StopIteration
        try:
            request = next(self._requests)
        except StopIteration:
            self.closed = self._position.finished = True
            raise
        except BaseException:
            self.closed = True
            raise
        self._position.request += 1
        return request

    def close(self) -> None:
        """End the pass: nothing more is yielded, and the sampler's mask may change again."""
        self.closed = True
        if hasattr(self._requests, "close"):
            self._requests.close()


def _difference(ours: dict[str, Any], theirs: Any) -> str:
    if not isinstance(theirs, dict):
        return f"expected {ours}, got {theirs!r}"
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    here = ", ".join(f"{key}={ours.get(key)!r}" for key in keys)
    there = ", ".join(f"{key}={theirs.get(key)!r}" for key in keys)
    return f"here {here}; in the state {there}"
