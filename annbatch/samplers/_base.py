"""The base class of all samplers, and what a user extends to write a new one."""

from __future__ import annotations

import copy
import sys
import warnings
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch._shared.args import as_count, as_generator, as_range, levels_to_user
from annbatch._shared.requests import requested_rows
from annbatch._shared.workers import current_worker

from ._state import Inner, PassOpenError, SamplerPass, SamplerPosition, check_not_beyond, difference
from ._streams import (
    Draw,
    PassStreams,
    generator_at,
    generator_from_state,
    generator_state,
    pass_entropy,
    skip_pass_seeds,
    take_pass_seed,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from annbatch._shared.workers import Worker
    from annbatch.types import LoadRequest

    from ._state import Leg

__all__ = ["Sampler", "move_by_seeds"]

_STATE_VERSION = 2

# Spawn keys of the generators that samplers of others get, beside those of ranks (see `rank_key`).
_OF_A_PASS, _OF_A_NUMBER = 0, 3

_ranks_were_warned_of = False


class _Itself:
    """``sampler.sampler`` is the sampler: Lightning looks there for ``set_epoch``. A subclass may keep something else there."""

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else instance


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

    #: Whether the sampler yields only this rank's part of a pass in a job of several processes. One that does not brings up
    #: a warning there, since every rank reads all of it; DistributedSampler shares it out.
    rank_aware: bool = False

    sampler = _Itself()

    # Defaults live on the class, so that a subclass need not call super().__init__().
    _mask: slice = slice(0, None)
    _rng: np.random.Generator | None = None
    # Whether the generator was given, or made by the sampler with a fresh seed.
    _rng_given: bool = True

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
        ValueError, RuntimeError
            One error that is both, when set to other rows while a pass is open: the rest of that pass would not fit.
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
        self._rng_given = True
        self._inner.origin = None

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
        worker = self._checked_worker()
        self._warn_of_ranks(worker)
        inner = self._inner
        if inner.resume is None:
            self._go_to(self._next_number(worker))
        requests, position = self._begin(n_obs, worker)
        open_pass = SamplerPass(requests, position)
        inner.open_passes.add(open_pass)
        epoch, inner.epoch = inner.epoch, None
        if epoch is not None:
            self._set_epoch_of(open_pass, epoch)
        return open_pass

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass the one with number `epoch`, counted from 0.

        Passes that follow each other have the numbers 0, 1, 2, ... anyway, so this changes nothing where it is called before
        every epoch, as torch and Lightning do. It goes back to the order of an earlier epoch, or on to that of a later one. A
        pass that was started, but not asked for anything yet, becomes the one with that number. One whose state was loaded is
        finished first, if anything of it is left, and then counts as the one with that number.

        Parameters
        ----------
        epoch
            Number of the pass, at least 0.

        Raises
        ------
        TypeError, ValueError
            When `epoch` is no integer, or negative; also when it is before the pass of a state that was loaded and the generator is of a
            kind that cannot go back (neither PCG64 nor PCG64DXSM).

        Notes
        -----
        A sampler of your own draws as much as it likes in a pass, so nobody can tell where its generator would stand: it gets
        another one for a pass that is not the next one, derived from its own and `epoch`.
        """
        epoch = as_count("epoch", epoch, minimum=0)
        inner = self._inner
        for started in list(inner.open_passes):
            if started.position is inner.position and started.untouched:
                self._set_epoch_of(started, epoch)
                return
        if inner.resume is not None and inner.resume.resumed:
            # Whether anything is left of it shows when the pass goes on.
            inner.epoch = epoch
            return
        number = max(epoch - inner.ahead, 0)
        self._go_to(number)
        self._note_number(current_worker(), number)

    def _set_epoch_of(self, started: SamplerPass, epoch: int) -> None:
        """Make a pass that is untouched the one of `epoch`, unless it is the rest of one whose state was loaded."""
        inner, position = self._inner, started.position
        number = max(epoch - inner.ahead, 0)
        if position.number == number:
            return
        if position.resumed and not started.at_end():
            inner.ahead = position.ahead = epoch - position.number
            return
        assert position.n_obs is not None
        self._go_to(number)
        started.exchange(*self._begin(position.n_obs, current_worker()))

    def state_dict(self) -> dict[str, Any]:
        """Describe where the last pass stands.

        Returns
        -------
        dict
            Plain data that survives JSON: the number of the pass, how many load requests it has handed out, the generator's
            state at its start, and the arguments of the sampler. When the last pass is finished (its iterator has raised
            StopIteration) the state describes the start of the next one; in a DataLoader worker, its end: the worker has
            nothing more to do in a pass that others may go on with.
        """
        inner = self._inner
        position = inner.position
        if position is None or (position.finished and position.worker is None):
            rng = self._required_rng() if self.shuffle else self.rng
            state = None if rng is None else generator_state(rng)
            fresh = SamplerPosition(inner.n_passes, rng=state, world_size=self._n_ranks, ahead=inner.ahead)
            position = inner.resume or fresh
        return self._state_at(position)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken: the next :meth:`sample` continues that pass, bit for bit.

        The sampler gets a generator of its own, so one that the caller shares with other code is not moved.

        Raises
        ------
        TypeError
            When the state is not a dict.
        ValueError
            When the state was made by another version, belongs to a sampler with other arguments or other classes, or is
            damaged.
        """
        if not isinstance(state, dict):
            msg = f"state must be a dict made by state_dict, got {type(state).__name__}"
            raise TypeError(msg)
        version = state.get("version")
        if version == 1:
            msg = (
                f"state must have version {_STATE_VERSION}, got 1: it was made by annbatch 0.4, whose order of rows this version "
                "does not draw any more; finish the pass with annbatch 0.4, or start it anew"
            )
            raise ValueError(msg)
        if version != _STATE_VERSION:
            msg = f"state must have version {_STATE_VERSION}, got {version!r}"
            raise ValueError(msg)
        ours, theirs = self._config(), state.get("sampler")
        if theirs != ours:
            msg = f"state belongs to another sampler: {difference(ours, theirs)}"
            raise ValueError(msg)
        position = self._adopted(SamplerPosition.from_dict(state))
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
        inner.epoch = None
        inner.ahead = position.ahead
        inner.origin = None if position.rng is None else (position.number, position.rng)
        self._note_number(current_worker(), position.number)

    # -- hooks for the samplers of this package -----------------------------------------------------------------------

    def _sample_from(
        self, n_obs: int, first_request: int, worker: Worker | None, legs: tuple[Leg, ...]
    ) -> Iterator[LoadRequest]:
        """Start a pass at load request `first_request` (of this `worker`, when there is one), behind its `legs`.

        This default makes all requests and drops the first ones. Samplers of this package seek instead.
        """
        entropy: tuple[int, ...] = ()
        rng = self._required_rng() if self.shuffle else self.rng
        if rng is not None and (self.shuffle or worker is not None):
            entropy = pass_entropy(take_pass_seed(rng), worker)
            if worker is not None or self._inner.rank_key:
                # Every epoch's workers begin with the same copy of the sampler, and every rank may have been given the same
                # seed: what `_sample` draws must differ all the same.
                self._restore_rng(generator_at(entropy, (*self._inner.rank_key, _OF_A_PASS)))
        streams = PassStreams(entropy, self._inner.rank_key)
        return self._with_splits(self._sample(n_obs), n_obs, first_request, streams)

    def _move_rng(self, number: int) -> None:
        """Bring the generator to where pass `number` begins; samplers of this package know where that is."""
        _, state = self._inner.origin or (0, generator_state(self._required_rng()))
        entropy = generator_from_state(state).integers(2**64, dtype=np.uint64, size=2)
        self._restore_rng(generator_at(tuple(entropy.tolist()), (*self._inner.rank_key, _OF_A_NUMBER, number)))

    def _next_number(self, worker: Worker | None) -> int:
        """Return the number of the pass that comes next."""
        return self._inner.n_passes

    def _note_number(self, worker: Worker | None, number: int) -> None:  # noqa: B027 (most have nobody to tell)
        """Tell other processes, if they share passes, which pass comes next."""

    @property
    def _n_ranks(self) -> int:
        """Ranks that share a pass."""
        return 1

    def _adopted(self, position: SamplerPosition) -> SamplerPosition:
        """Translate a position that another number of ranks was at; ValueError where that cannot be."""
        if position.world_size != self._n_ranks or position.legs:
            msg = f"state must belong to {self._n_ranks} ranks, got {position.world_size}"
            raise ValueError(msg)
        return position

    def _batches_to_skip(self, n_done: int) -> int:
        """Take note that `n_done` batches of the load request that comes next are done; return how many of them it will have.

        Called after a state was loaded, by who hands out batches.
        """
        return n_done

    def _begin(self, n_obs: int, worker: Worker | None) -> tuple[Iterator[LoadRequest], SamplerPosition]:
        """Start the next pass, or continue the one whose state was loaded."""
        inner = self._inner
        rng = self._required_rng() if self.shuffle else self.rng
        before = None if rng is None else generator_state(rng)
        first_request = 0
        legs: tuple[Leg, ...] = ()
        if inner.resume is not None:
            inner.resume.check_fits(n_obs, worker, config=self._config(), rng=before)
            first_request, legs = inner.resume.request, inner.resume.legs
            inner.worker = inner.resume.worker
        if worker is not None and inner.worker is not None and worker.place == inner.worker.place:
            worker = inner.worker
        number = inner.n_passes
        resumed = inner.resume is not None and inner.resume.resumed
        position = SamplerPosition(
            number, first_request, n_obs, before, worker, self._n_ranks, legs, ahead=inner.ahead, resumed=resumed
        )
        try:
            requests = self._sample_from(n_obs, first_request, worker, legs)
        except BaseException:
            # As if it had not been tried: the next try draws the same pass.
            if rng is not None and before is not None:
                rng.bit_generator.state = generator_from_state(before).bit_generator.state
            raise
        if inner.origin is None and before is not None:
            inner.origin = number, before
        inner.resume = None
        inner.n_passes = number + 1
        inner.position = position
        self._note_number(worker, number + 1)
        return requests, position

    def _go_to(self, number: int) -> None:
        """Make pass `number` the next one. A position that was loaded and belongs to that pass is kept."""
        inner = self._inner
        if number == inner.n_passes:
            return
        if self.shuffle or self.rng is not None:
            if inner.origin is None:
                inner.origin = inner.n_passes, generator_state(self._required_rng())
            self._move_rng(number)
        inner.n_passes = number
        inner.position = inner.resume = None

    def _state_at(self, position: SamplerPosition) -> dict[str, Any]:
        """Describe a position in a pass of this sampler; see :meth:`state_dict`."""
        return {"version": _STATE_VERSION, "sampler": self._config(), **position.as_dict()}

    def _with_splits(
        self, requests: Iterator[LoadRequest], n_obs: int, first_request: int, streams: PassStreams
    ) -> Iterator[LoadRequest]:
        number = -1
        try:
            for number, request in enumerate(requests):
                if number < first_request:
                    continue
                if request.get("splits") is None:
                    request = {**request, "splits": self._default_splits(request, n_obs, streams, number)}
                yield request
            check_not_beyond(first_request, number + 1)
        finally:
            # A generator would be closed by the garbage collector too, but not at once on every Python.
            if hasattr(requests, "close"):
                requests.close()

    def _default_splits(self, request: LoadRequest, n_obs: int, streams: PassStreams, number: int) -> list[np.ndarray]:
        batch_size = self.batch_size
        if batch_size is None or self.shuffle is None:
            name = "batch_size" if batch_size is None else "shuffle"
            msg = f"{name} must not be None when load requests carry no splits"
            raise ValueError(msg)
        n_rows = len(requested_rows(request["requests"], n_obs))
        positions = streams.shuffled(Draw.POSITIONS, number, n_rows, n_rows) if self.shuffle else np.arange(n_rows)
        return [positions[first : first + batch_size] for first in range(0, n_rows, batch_size)]

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

    def _unstarted_copy(self, number: int, *, same_rows: bool) -> Sampler:
        """Return a sampler with the same arguments that has begun no pass, visits all rows, and draws from a stream of its own.

        Parameters
        ----------
        number
            Of the copy: copies with different numbers draw from different streams. The generator of this sampler is not moved.
        same_rows
            Whether it is for the rows that this sampler is for. A sampler that knows something of each row fits no others.
        """
        copied = copy.copy(self) if getattr(self, "can_seek", False) else copy.deepcopy(self)
        object.__setattr__(copied, "_annbatch_inner", Inner(rank_key=self._inner.rank_key))
        if copied.mask != slice(0, None):
            copied.mask = slice(0, None)
        if self.rng is not None:
            entropy = copy.deepcopy(self.rng).integers(0, 2**32, size=8).tolist()
            copied._restore_rng(np.random.default_rng([number, *entropy]))
            # Who was given none has one of its own, of which other ranks know nothing.
            object.__setattr__(copied, "_rng_given", self._rng_given)
        return copied

    def _restore_rng(self, rng: np.random.Generator) -> None:
        """Exchange the generator for one that stands elsewhere in the same stream of passes."""
        origin = self._inner.origin
        if self.rng is None:
            self._inner.own_rng = rng
        else:
            self.rng = rng
        self._inner.origin = origin

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
            raise PassOpenError(msg)

    def _warn_of_ranks(self, worker: Worker | None) -> None:
        """Warn, once, when every rank of a job reads all of a pass."""
        global _ranks_were_warned_of
        dist = sys.modules.get("torch.distributed")
        if _ranks_were_warned_of or self.rank_aware or self._inner.rank_key or (worker is not None and worker.id):
            return
        if dist is None or not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return
        _ranks_were_warned_of = True
        warnings.warn(
            f"each of the {dist.get_world_size()} ranks of this job reads all rows that {type(self).__name__} asks for; to share "
            'them out, wrap it: DistributedSampler(sampler, dist_info="torch")',
            UserWarning,
            stacklevel=levels_to_user(),
        )

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


def move_by_seeds(sampler: Sampler, number: int) -> None:
    """Bring the generator to where pass `number` begins, for samplers that take one seed a pass and nothing more."""
    if not sampler.shuffle:
        return
    inner = sampler._inner
    if skip_pass_seeds(sampler._required_rng(), number - inner.n_passes):
        return
    first, state = inner.origin or (inner.n_passes, None)
    if state is None or number < first:
        msg = f"epoch must be >= {first}, got {number}: before that is nothing known of the generator, which cannot go back"
        raise ValueError(msg)
    rng = generator_from_state(state)
    skip_pass_seeds(rng, number - first)
    sampler._restore_rng(rng)
