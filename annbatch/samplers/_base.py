"""The base class of all samplers, and what a user extends to write a new one."""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch._rle import shuffle_segments
from annbatch._shared.args import as_count, as_generator, as_range
from annbatch._shared.requests import requested_rows
from annbatch._shared.workers import current_worker

from ._state import Inner, Pass, Position, difference
from ._streams import generator_from_state, generator_state, pass_entropy, pass_stream, request_stream, take_pass_seed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from annbatch._shared.workers import Worker
    from annbatch.types import LoadRequest

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
            Each with ``splits``. It has a ``close`` method, which ends the pass early. Threads may share it.

        Raises
        ------
        ValueError
            When the configuration does not fit `n_obs`, or a restored state belongs to data of another size.
        NotImplementedError
            In one of several torch DataLoader workers, when the sampler is not :attr:`worker_aware`.
        """
        n_obs = as_count("n_obs", n_obs, minimum=0)
        self.validate(n_obs)
        inner = self._inner
        worker = self._checked_worker()
        rng = self._required_rng() if self.shuffle else self.rng
        before = None if rng is None else generator_state(rng)
        first_request = 0
        if inner.resume is not None:
            inner.resume.check_fits(n_obs, worker, config=self._config(), rng=before)
            first_request = inner.resume.request
            inner.worker = inner.resume.worker
        if worker is not None and inner.worker is not None and worker.place == inner.worker.place:
            worker = inner.worker
        position = Position(inner.n_passes, first_request, n_obs, before, worker)
        try:
            requests = self._sample_from(n_obs, first_request, worker)
        except BaseException:
            # As if it had not been tried: the next try draws the same pass.
            if rng is not None and before is not None:
                rng.bit_generator.state = generator_from_state(before).bit_generator.state
            raise
        inner.resume = None
        inner.n_passes += 1
        inner.position = position
        open_pass = Pass(requests, position)
        inner.open_passes.add(open_pass)
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
        inner = self._inner
        position = inner.position
        if position is None or position.finished:
            rng = self._required_rng() if self.shuffle else self.rng
            position = inner.resume or Position(inner.n_passes, rng=None if rng is None else generator_state(rng))
        return {"version": _STATE_VERSION, "sampler": self._config(), **position.as_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken: the next :meth:`sample` continues that pass, bit for bit.

        The sampler gets a generator of its own, so one that the caller shares with other code is not moved.

        Raises
        ------
        TypeError
            When the state is not a dict.
        ValueError
            When the state has another version, belongs to a sampler with other arguments or other classes, or is damaged.
        """
        if not isinstance(state, dict):
            msg = f"state must be a dict made by state_dict, got {type(state).__name__}"
            raise TypeError(msg)
        if state.get("version") != _STATE_VERSION:
            msg = f"state must have version {_STATE_VERSION}, got {state.get('version')!r}"
            raise ValueError(msg)
        ours, theirs = self._config(), state.get("sampler")
        if theirs != ours:
            msg = f"state belongs to another sampler: {difference(ours, theirs)}"
            raise ValueError(msg)
        position = Position.from_dict(state)
        position.config = ours
        if position.rng is not None:
            self._restore_rng(generator_from_state(position.rng))
        elif self.shuffle:
            msg = "state must hold the generator of a sampler that shuffles, got rng=None"
            raise ValueError(msg)
        inner = self._inner
        inner.n_passes = position.number
        inner.position = None
        inner.resume = position

    # -- hooks for the samplers of this package -----------------------------------------------------------------------

    def _sample_from(self, n_obs: int, first_request: int, worker: Worker | None) -> Iterator[LoadRequest]:
        """Start a pass at load request `first_request` (of this `worker`, when there is one).

        This default makes all requests and drops the first ones. Samplers of this package seek instead.
        """
        entropy: tuple[int, ...] = ()
        rng = self._required_rng() if self.shuffle else self.rng
        if rng is not None and (self.shuffle or worker is not None):
            entropy = pass_entropy(take_pass_seed(rng), worker)
            if worker is not None or self._inner.rank_key:
                # Every epoch's workers begin with the same copy of the sampler, and every rank may have been given the same
                # seed: what `_sample` draws must differ all the same.
                self._restore_rng(np.random.Generator(pass_stream(entropy, self._inner.rank_key)))
        return self._with_splits(self._sample(n_obs), n_obs, first_request, entropy)

    def _with_splits(
        self, requests: Iterator[LoadRequest], n_obs: int, first_request: int, entropy: tuple[int, ...]
    ) -> Iterator[LoadRequest]:
        try:
            for number, request in enumerate(requests):
                if number < first_request:
                    continue
                if request.get("splits") is None:
                    request = {**request, "splits": self._default_splits(request, n_obs, entropy, number)}
                yield request
        finally:
            # A generator would be closed by the garbage collector too, but not at once on every Python.
            if hasattr(requests, "close"):
                requests.close()

    def _default_splits(
        self, request: LoadRequest, n_obs: int, entropy: tuple[int, ...], number: int
    ) -> list[np.ndarray]:
        if self.batch_size is None:
            msg = "batch_size must not be None when load requests carry no splits"
            raise ValueError(msg)
        n_rows = len(requested_rows(request["requests"], n_obs))
        positions = np.arange(n_rows)
        if self.shuffle and n_rows:
            shuffle_segments(request_stream(entropy, self._inner.rank_key, number), n_rows, positions)
        return [positions[first : first + self.batch_size] for first in range(0, n_rows, self.batch_size)]

    def _config(self) -> dict[str, Any]:
        """Arguments that a state must agree with, as plain data."""
        return {
            "type": type(self).__qualname__,
            "batch_size": None if self.batch_size is None else int(self.batch_size),
            "shuffle": bool(self.shuffle),
            "mask": [self.mask.start, self.mask.stop],
        }

    def _required_rng(self) -> np.random.Generator:
        """The generator; a sampler that was given none gets one with a fresh seed, and keeps it."""
        if self.rng is not None:
            return self.rng
        inner = self._inner
        if inner.own_rng is None:
            worker = current_worker()
            # The workers of an epoch must agree on the pass that they share.
            inner.own_rng = np.random.default_rng(None if worker is None else worker.epoch_seed)
        return inner.own_rng

    def _unstarted_copy(self, number: int) -> Self:
        """Return a sampler with the same arguments that has begun no pass, visits all rows, and draws from a stream of its own.

        Parameters
        ----------
        number
            Of the copy: copies with different numbers draw from different streams. The generator of this sampler is not moved.
        """
        copied = copy.copy(self) if getattr(self, "can_seek", False) else copy.deepcopy(self)
        object.__setattr__(copied, "_annbatch_inner", Inner(rank_key=self._inner.rank_key))
        if copied.mask != slice(0, None):
            copied.mask = slice(0, None)
        if self.rng is not None:
            entropy = copy.deepcopy(self.rng).integers(0, 2**32, size=8).tolist()
            copied._restore_rng(np.random.default_rng([number, *entropy]))
        return copied

    def _restore_rng(self, rng: np.random.Generator) -> None:
        if self.rng is None:
            self._inner.own_rng = rng
        else:
            self.rng = rng

    def _checked_worker(self) -> Worker | None:
        worker = current_worker()
        if worker is not None and worker.count > 1 and not self.worker_aware:
            msg = (
                f"{type(self).__name__} cannot share a pass out among several DataLoader workers, got "
                f"num_workers={worker.count}; use num_workers=0 (the loader reads ahead in threads by itself) or 1, or, in a "
                "sampler of your own that yields only the worker's part, set worker_aware = True"
            )
            raise NotImplementedError(msg)
        return worker

    def _refuse_while_open(self, new: slice) -> None:
        if any(not open_pass.closed for open_pass in self._inner.open_passes):
            msg = f"mask must not change while a pass is open: it is {self.mask}, got {new}; finish or close the pass first"
            raise RuntimeError(msg)

    @property
    def _inner(self) -> Inner:
        """What the base class keeps; made on first use, under a name that no subclass has, past a frozen ``__setattr__``."""
        inner: Inner | None = self.__dict__.get("_annbatch_inner")
        if inner is None:
            inner = Inner()
            object.__setattr__(self, "_annbatch_inner", inner)
        return inner

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_annbatch_inner": copy.copy(self._inner)}
