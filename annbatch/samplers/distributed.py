"""Sharing a pass out among the ranks of a distributed job."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any, Literal, TypeGuard

import numpy as np

from annbatch._shared.args import as_bool, as_count, as_range, resolve_range
from annbatch._shared.requests import requested_rows
from annbatch._shared.workers import current_worker

from ._base import Sampler, move_by_seeds
from ._seekable import PassPart, SeekableSampler, Share
from ._state import PassNumbers, check_not_beyond
from ._streams import pass_entropy, rank_key, take_pass_seed
from ._unfit import UnfitSampler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from annbatch._shared.workers import Worker
    from annbatch.types import LoadRequest

    from ._state import Leg, SamplerPosition

__all__ = ["DistributedSampler"]


class DistributedSampler(Sampler):
    """Gives every rank its share of a pass.

    What a rank gets depends on the sampler:

    - One that visits rows (:class:`RandomSampler`, :class:`SequentialSampler`): all ranks share one pass, whose load requests are
      dealt out in turn. Together they visit every row once a pass, and each sees other rows in every pass. With
      ``reshuffle=False`` every rank keeps to a contiguous piece of the rows instead.
    - One that draws by class: all rows on every rank, since a piece may not hold every class, ``num_samples // world_size`` draws,
      and a stream of its own.
    - A sampler of your own: a contiguous piece of the rows, through its mask, which it must keep to.

    In DataLoader workers the share of a rank is dealt out once more, among them.

    Parameters
    ----------
    sampler
        The sampler to share out. A deep copy is made: neither is changed by the other afterwards. Its mask is kept: ranks
        share the masked range.
    dist_info
        Where rank and world size come from: "torch" (torch.distributed, with a process group), "jax" (after
        ``jax.distributed.initialize``), or a function that returns ``(rank, world_size)``. With "torch" and "jax" the ranks agree
        on one seed here, the one of rank 0, by a broadcast: every rank must construct its sampler. With a function they
        cannot: give the samplers of all ranks generators of the same seed.
    enforce_equal_batches
        Make every rank yield the same number of batches, as collective operations need. Rows that cannot be shared out evenly,
        fewer than there are ranks, are left out, others in every pass; with ``drop_last`` it is fewer than a batch for each rank.
    reshuffle
        Whether ranks see other rows in every pass. False: each keeps to its own piece, so that the page cache of its machine need
        only hold that.

    Raises
    ------
    TypeError
        When `sampler` is no Sampler, or `dist_info` is of the wrong kind.
    ValueError
        When rank or world size is out of range, `num_samples` is smaller than the world size, `sampler` is shared out
        already or holds a state that was loaded (load it into the DistributedSampler), or ranks that share a pass have neither a
        generator that was given nor a way to agree on one.
    RuntimeError
        When torch has no process group, or jax.distributed is not initialised.

    Examples
    --------
    >>> import numpy as np
    >>> from annbatch import DistributedSampler, RandomSampler
    >>> inner = RandomSampler(chunk_size=8, preload_nchunks=4, batch_size=16, rng=np.random.default_rng(0))
    >>> sampler = DistributedSampler(inner, dist_info=lambda: (1, 4))
    >>> sampler.n_batches(400)
    7

    Notes
    -----
    Ranks stay together as long as each starts the same passes. Where one of them may start more than the others, call
    :meth:`set_epoch` before every pass.

    The state of any rank fits every rank, as Lightning needs, which saves that of rank 0 alone. Ranks that share a pass may be
    of another number when they go on: the rest of the pass is dealt out anew (not in DataLoader workers).
    """

    rank_aware = True

    def __init__(
        self,
        sampler: Sampler,
        *,
        dist_info: Literal["torch", "jax"] | Callable[[], tuple[int, int]],
        enforce_equal_batches: bool = True,
        reshuffle: bool = True,
    ) -> None:
        if not isinstance(sampler, Sampler):
            msg = f"sampler must be an annbatch.abc.Sampler, got {type(sampler).__name__}"
            raise TypeError(msg)
        if isinstance(sampler, DistributedSampler):
            msg = "sampler must not be a DistributedSampler, which is shared out already; pass the sampler inside"
            raise ValueError(msg)
        if sampler._inner.resume is not None:
            msg = "sampler must not hold a state that was loaded; load the state of the DistributedSampler into that"
            raise ValueError(msg)
        self._enforce_equal_batches = as_bool("enforce_equal_batches", enforce_equal_batches)
        self._reshuffle = as_bool("reshuffle", reshuffle)
        self._rank, self._world_size = _rank_and_world_size(dist_info)
        num_samples = getattr(sampler, "num_samples", None)
        if num_samples is not None and num_samples < self._world_size:
            msg = f"num_samples must be at least world_size={self._world_size}, got {num_samples}"
            raise ValueError(msg)
        self._sampler = copy.deepcopy(sampler)
        # Of a sampler that is not ours the mask itself is moved to each pass's piece; this is the range that is shared.
        self._mask = sampler.mask
        self.worker_aware = sampler.worker_aware
        # One pass for all ranks, or a stream for each.
        self._sampler._inner.rank_key = () if self._shares_passes else rank_key(self._rank)
        self._agree_on_a_seed(dist_info)
        self._numbers = PassNumbers()

    def _agree_on_a_seed(self, dist_info: Any) -> None:
        inside = self._sampler
        if not inside.shuffle:
            return
        if isinstance(dist_info, str):
            seed = _of_rank_0(dist_info, take_pass_seed(inside._required_rng()) if self._rank == 0 else 0)
            inside.rng = np.random.default_rng(seed)
        elif self._shares_passes and self._world_size > 1 and (inside.rng is None or not inside._rng_given):
            msg = (
                "sampler must have an rng when dist_info is a function: the ranks share a pass, so the generators of all must have "
                "the same seed, such as rng=numpy.random.default_rng(seed)"
            )
            raise ValueError(msg)

    @property
    def _shares_passes(self) -> bool:
        """Whether the ranks deal one pass out among them."""
        inside = self._sampler
        return self._reshuffle and _is_ours(inside) and inside.shared_out_by == "rows"

    @property
    def rank(self) -> int:
        """Number of this process, in [0, world_size)."""
        return self._rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self._world_size

    @property
    def batch_size(self) -> int | None:
        """Rows per batch, on each rank."""
        return self._sampler.batch_size

    @property
    def shuffle(self) -> bool:
        """Whether the wrapped sampler shuffles."""
        return self._sampler.shuffle

    @property
    def rng(self) -> np.random.Generator | None:
        """Source of randomness of the wrapped sampler."""
        return self._sampler.rng

    @rng.setter
    def rng(self, rng: np.random.Generator | None) -> None:
        self._sampler.rng = rng
        self._inner.origin = None

    @property
    def mask(self) -> slice:
        """Rows that the ranks share, half open; see :attr:`annbatch.abc.Sampler.mask`."""
        return self._mask

    @mask.setter
    def mask(self, mask: slice | None) -> None:
        new = as_range(mask)
        if new != self._mask:
            self._refuse_while_open(new)
            # Class-based samplers check it against their classes.
            self._sampler.mask = new
            self._mask = new

    def validate(self, n_obs: int) -> None:
        """Check that the wrapped sampler fits data of `n_obs` rows, and that every rank gets some of them.

        Raises
        ------
        ValueError
            When it does not, or there are fewer rows than ranks.
        """
        self._part_of(n_obs).validate(n_obs)

    def n_batches(self, n_obs: int) -> int:
        """Count the batches that one pass yields on this rank.

        Parameters
        ----------
        n_obs
            Number of rows of the data, over all ranks.
        """
        return self._part_of(n_obs).n_batches(n_obs)

    def _sample(self, n_obs: int) -> Iterator[LoadRequest]:
        return self._sample_from(n_obs, 0, current_worker(), ())

    def _sample_from(
        self, n_obs: int, first_request: int, worker: Worker | None, legs: tuple[Leg, ...]
    ) -> Iterator[LoadRequest]:
        number = self._inner.n_passes
        if _is_ours(self._sampler):
            # Not the worker's seed of the epoch, which other ranks do not know: the number of the pass makes epochs differ.
            entropy = pass_entropy(take_pass_seed(self._required_rng()), None) if self.shuffle else ()
            part = self._part_of(n_obs, number)
            assert isinstance(part, SeekableSampler)
            return part._requests(n_obs, PassPart(entropy, first_request, worker, legs))
        self._sampler.mask = self._piece(n_obs, number)
        return _skipped(self._sampler.sample(n_obs), first_request, self._sampler.mask, n_obs)

    def _part_of(self, n_obs: int, number: int = 0) -> Sampler:
        """Copy the wrapped sampler, restricted to what this rank does; the copy draws from the same generator."""
        part = _copy(self._sampler)
        if not _is_ours(part):
            part.mask = self._piece(n_obs, number)
            return part
        share = Share(self._rank, self._world_size, self._enforce_equal_batches, number=number)
        if part.shared_out_by == "rows":
            self._check_rows(n_obs)
            if not self._reshuffle:
                part.mask = self._piece(n_obs)
                drawn = part._replacement or not self._covers(n_obs)
                part._num_samples = self._samples_of_rank() if drawn else None
                # Samples are dealt out evenly already, and may be more than a piece has rows.
                n_rows = self._n_rows_each(part, n_obs) if part._num_samples is None else None
                share = Share(number=number, n_rows=n_rows)
        part._share = share
        return part

    def _check_rows(self, n_obs: int) -> None:
        start, stop = self._shared_range(n_obs)
        if stop - start < self._world_size:
            msg = f"the data must have at least one row per rank, got {stop - start} rows for world_size {self._world_size}"
            raise ValueError(msg)

    # -- a piece for every rank

    def _piece(self, n_obs: int, number: int | None = None) -> slice:
        """Rows of this rank. With the `number` of a pass, those of that pass: without what must be left out of it.

        Pieces differ by a row. Where that makes a difference in batches, the longer ones leave out a row: at one end in one
        pass, at the other in the next.
        """
        self._check_rows(n_obs)
        start, stop = self._shared_range(n_obs)
        each, left_over = divmod(stop - start, self._world_size)
        first = start + self._rank * each + min(self._rank, left_over)
        last = first + each
        if self._rank >= left_over:
            return slice(first, last)
        if number is None or not self._enforce_equal_batches or self._same_count(first, each, n_obs):
            return slice(first, last + 1)
        return slice(first + number % 2, last + number % 2)

    def _n_rows_each(self, part: SeekableSampler, n_obs: int) -> int | None:
        """Rows of a piece that every rank can do, where there must be as many batches on each."""
        if not self._enforce_equal_batches:
            return None
        start, stop = self._shared_range(n_obs)
        each = (stop - start) // self._world_size
        # A longer piece may do its last row as long as that does not make another batch.
        n_batches = each // part.batch_size if part.drop_last else -(-each // part.batch_size)
        return n_batches * part.batch_size

    def _covers(self, n_obs: int) -> bool:
        """Whether a pass visits every row of the range that is shared."""
        num_samples = getattr(self._sampler, "num_samples", None)
        start, stop = self._shared_range(n_obs)
        return num_samples is None or num_samples >= stop - start

    def _samples_of_rank(self) -> int | None:
        num_samples: int | None = getattr(self._sampler, "num_samples", None)
        if num_samples is None:
            return None
        each, left_over = divmod(num_samples, self._world_size)
        return each + (self._rank < left_over and not self._enforce_equal_batches)

    def _shared_range(self, n_obs: int) -> tuple[int, int]:
        start, stop = resolve_range(self._mask, n_obs)
        num_samples = getattr(self._sampler, "num_samples", None)
        if isinstance(self._sampler, SeekableSampler) and not self._sampler.shuffle and num_samples is not None:
            # In order, the samples are the first rows of the range.
            self._sampler.validate(n_obs)
            stop = start + num_samples
        return start, stop

    def _same_count(self, first: int, each: int, n_obs: int) -> bool:
        """Whether pieces of `each` and of `each + 1` rows give the same number of batches."""
        probe = _copy(self._sampler)
        counts = []
        for n_rows in (each, each + 1):
            probe.mask = slice(first, first + n_rows)
            counts.append(probe.n_batches(n_obs))
        return counts[0] == counts[1]

    # -- which pass, which state

    def _next_number(self, worker: Worker | None) -> int:
        return self._numbers.next(worker)

    def _note_number(self, worker: Worker | None, number: int) -> None:
        self._numbers.set(worker, number)

    def _move_rng(self, number: int) -> None:
        if _is_ours(self._sampler):
            move_by_seeds(self, number)
        else:
            super()._move_rng(number)

    @property
    def _n_ranks(self) -> int:
        return self._world_size

    def _adopted(self, position: SamplerPosition) -> SamplerPosition:
        theirs, ours = position.world_size, self._world_size
        if theirs == ours:
            return position
        if position.n_obs is None:
            # Between two passes.
            return dataclasses.replace(position, world_size=ours)
        if not self._shares_passes or position.worker is not None:
            if position.request == 0:
                return dataclasses.replace(position, world_size=ours, continued=True)
            raise ValueError(self._cannot_continue(theirs))
        leg = (theirs, position.request, 0)
        return dataclasses.replace(position, world_size=ours, legs=(*position.legs, leg), request=0, continued=True)

    def _batches_to_skip(self, n_done: int) -> int:
        resume = self._inner.resume
        if resume is None or not resume.continued:
            return n_done
        if not self._shares_passes or resume.worker is not None:
            if n_done:
                raise ValueError(self._cannot_continue(None))
            return 0
        # Ranks are in step, so each of the others had done as many batches of its request.
        *before, (world_size, n_requests, _) = resume.legs
        resume.legs = (*before, (world_size, n_requests, n_done))
        resume.continued = False
        return 0

    def _cannot_continue(self, theirs: int | None) -> str:
        why = "in DataLoader workers" if self._shares_passes else "by ranks that do not share a pass"
        was = "another world_size" if theirs is None else f"world_size={theirs}"
        return (
            f"state was taken {why} with {was}, in the middle of a pass that cannot be finished with "
            f"world_size={self._world_size}"
        )

    def _config(self) -> dict[str, Any]:
        # Not the rank, and not the world size: a state of one rank fits the others.
        return {
            "type": type(self).__qualname__,
            "enforce_equal_batches": self._enforce_equal_batches,
            "reshuffle": self._reshuffle,
            "sampler": {**self._sampler._config(), "mask": [self._mask.start, self._mask.stop]},
        }

    def _required_rng(self) -> np.random.Generator:
        return self._sampler._required_rng()

    def _unstarted_copy(self, number: int, *, same_rows: bool) -> Sampler:
        inside = self._sampler._unstarted_copy(number, same_rows=same_rows)
        if isinstance(inside, UnfitSampler):
            return inside
        copied = super()._unstarted_copy(number, same_rows=same_rows)
        assert isinstance(copied, DistributedSampler)
        copied._sampler = inside
        copied._numbers = PassNumbers()
        return copied

    def _restore_rng(self, rng: np.random.Generator) -> None:
        self._sampler._restore_rng(rng)

    def __copy__(self) -> Self:
        # Two that count their own passes must not draw from one generator.
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__getstate__())
        twin._sampler = copy.deepcopy(self._sampler)
        twin._numbers = copy.copy(self._numbers)
        return twin

    def __repr__(self) -> str:
        return f"DistributedSampler({self._sampler!r}, rank={self._rank}, world_size={self._world_size})"


def _is_ours(sampler: Sampler) -> TypeGuard[SeekableSampler]:
    return isinstance(sampler, SeekableSampler) and sampler.can_seek


def _copy(sampler: Sampler) -> Sampler:
    """A copy whose mask can be moved without moving the original's, and that draws from the same generator."""
    if _is_ours(sampler):
        return copy.copy(sampler)
    # Whatever a sampler that is not ours holds and forwards to, only the generator may be shared.
    rng = sampler.rng
    return copy.deepcopy(sampler, {id(rng): rng})


def _skipped(requests: Iterator[LoadRequest], first_request: int, mask: slice, n_obs: int) -> Iterator[LoadRequest]:
    """Leave the first requests out, and check that the others keep to the mask."""
    number = -1
    try:
        for number, request in enumerate(requests):
            rows = requested_rows(request["requests"], n_obs)
            if len(rows) and (rows.min() < mask.start or rows.max() >= mask.stop):
                msg = (
                    f"a sampler that is shared out must keep to its mask, {mask}, but asked for rows {rows.min()} to "
                    f"{rows.max()}; look at self.mask in its _sample"
                )
                raise ValueError(msg)
            if number >= first_request:
                yield request
        check_not_beyond(first_request, number + 1)
    finally:
        if hasattr(requests, "close"):
            requests.close()


def _rank_and_world_size(dist_info: Any) -> tuple[int, int]:
    if not (callable(dist_info) or isinstance(dist_info, str)):
        msg = f"dist_info must be 'torch', 'jax' or a function that returns (rank, world_size), got {dist_info!r}"
        raise TypeError(msg)
    if dist_info == "torch":
        import torch.distributed

        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            msg = (
                "dist_info='torch' needs an initialised process group; call torch.distributed.init_process_group first"
            )
            raise RuntimeError(msg)
        info = torch.distributed.get_rank(), torch.distributed.get_world_size()
    elif dist_info == "jax":
        import jax

        if not _jax_is_initialised(jax):
            msg = "dist_info='jax' needs jax.distributed; call jax.distributed.initialize first"
            raise RuntimeError(msg)
        info = jax.process_index(), jax.process_count()
    elif callable(dist_info):
        info = dist_info()
    else:
        msg = f"dist_info must be 'torch', 'jax' or a function that returns (rank, world_size), got {dist_info!r}"
        raise ValueError(msg)
    if not isinstance(info, (tuple, list)) or len(info) != 2:
        msg = f"dist_info must return (rank, world_size), got {info!r}"
        raise TypeError(msg)
    rank = as_count("rank", info[0], minimum=0)
    world_size = as_count("world_size", info[1])
    if rank >= world_size:
        msg = f"rank must be < world_size, got rank {rank} and world_size {world_size}"
        raise ValueError(msg)
    return rank, world_size


def _jax_is_initialised(jax: Any) -> bool:
    if hasattr(jax.distributed, "is_initialized"):
        return bool(jax.distributed.is_initialized())
    # jax before 0.5 has no word for it.
    return jax.process_count() > 1 or jax._src.distributed.global_state.client is not None


def _of_rank_0(dist_info: str, seed: int) -> int:
    """Return the seed of rank 0, on every rank."""
    if dist_info == "torch":
        import torch.distributed

        seeds = [seed]
        torch.distributed.broadcast_object_list(seeds, src=0)
        return seeds[0]
    from jax.experimental import multihost_utils

    # In halves, since jax has no 64-bit integers by default.
    halves = multihost_utils.broadcast_one_to_all(np.array([seed >> 32, seed & 0xFFFFFFFF], dtype=np.uint32))
    return (int(halves[0]) << 32) | int(halves[1])
