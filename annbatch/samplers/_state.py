"""What a sampler's base class keeps between passes: where a pass stands, which passes are open, what to resume."""

from __future__ import annotations

import dataclasses
import threading
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from annbatch._shared.args import as_count
from annbatch._shared.workers import Worker

if TYPE_CHECKING:
    import numpy as np

    from annbatch.types import LoadRequest

__all__ = [
    "Inner",
    "Leg",
    "PassNumbers",
    "PassOpenError",
    "SamplerPass",
    "SamplerPosition",
    "check_not_beyond",
    "difference",
]

# A part of a pass that was done by another number of ranks: (ranks, load requests that each of them did, batches that each of
# them did of the next one).
Leg = tuple[int, int, int]


class PassOpenError(ValueError, RuntimeError):
    """What was asked for does not go while a pass is open."""


@dataclasses.dataclass(slots=True)
class SamplerPosition:
    """Where a pass stands.

    Attributes
    ----------
    number
        Passes started before this one.
    request
        Load requests handed out (by this rank and worker).
    n_obs
        Rows of the data, or None before a pass was started.
    rng
        State of the generator before the pass took its seed; None when the sampler has none.
    worker
        The DataLoader worker that the pass runs in.
    world_size
        Ranks that share the pass.
    legs
        What other numbers of ranks did of the pass before that.
    finished
        Whether the last request was asked for and there was none.
    config
        Arguments of the sampler when the state was loaded.
    ahead
        By how much the numbers that ``set_epoch`` gets are ahead of ours.
    resumed
        Whether it was loaded, and not at the start of a pass.
    continued
        Whether another number of ranks had come here: what they did of the next load request is still to be said.
    """

    number: int
    request: int = 0
    n_obs: int | None = None
    rng: dict[str, Any] | None = None
    worker: Worker | None = None
    world_size: int = 1
    legs: tuple[Leg, ...] = ()
    finished: bool = False
    config: dict[str, Any] | None = None
    ahead: int = 0
    resumed: bool = False
    continued: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain data that survives JSON."""
        worker = None if self.worker is None else dataclasses.asdict(self.worker)
        return {
            "pass": self.number,
            "request": self.request,
            "n_obs": self.n_obs,
            "rng": self.rng,
            "worker": worker,
            "world_size": self.world_size,
            "legs": [list(leg) for leg in self.legs],
            "ahead": self.ahead,
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> SamplerPosition:
        """Read what :meth:`as_dict` made; ValueError when it was damaged."""
        try:
            worker = None if state["worker"] is None else Worker(**state["worker"])
            number, request = (as_count(key, state[key], minimum=0) for key in ("pass", "request"))
            n_obs = None if state["n_obs"] is None else as_count("n_obs", state["n_obs"], minimum=0)
            world_size = as_count("world_size", state["world_size"])
            legs = tuple(
                (
                    as_count("ranks", ranks),
                    as_count("requests", requests, minimum=0),
                    as_count("batches", batches, minimum=0),
                )
                for ranks, requests, batches in state["legs"]
            )
            # Numbers of epochs begin at 0, so those that belong to passes of before are behind by no more than that.
            ahead = as_count("ahead", state["ahead"], minimum=-number)
        except (KeyError, TypeError, ValueError) as error:
            msg = f"state must be a dict made by state_dict, but {type(error).__name__}: {error}"
            raise ValueError(msg) from error
        if n_obs is None and (request or legs):
            msg = f"state must be a dict made by state_dict, got request={request} and legs={legs} of a pass without n_obs"
            raise ValueError(msg)
        if state.get("rng") is not None and not isinstance(state["rng"], dict):
            msg = f"state must be a dict made by state_dict, got rng={state['rng']!r}"
            raise ValueError(msg)
        rng = state.get("rng")
        return cls(number, request, n_obs, rng, worker, world_size, legs, ahead=ahead, resumed=n_obs is not None)

    def check_fits(
        self, n_obs: int, worker: Worker | None, *, config: dict[str, Any], rng: dict[str, Any] | None
    ) -> None:
        """Raise ValueError when what is here now is not what the state was taken from."""
        if self.n_obs is not None and self.n_obs != n_obs:
            msg = f"state belongs to other data: it was taken with n_obs={self.n_obs}, this data has n_obs={n_obs}"
            raise ValueError(msg)
        if self.config != config:
            msg = f"the sampler was changed after load_state_dict: {difference(config, self.config)}; load the state again"
            raise ValueError(msg)
        if self.rng != rng:
            msg = "the sampler's rng was replaced or used after load_state_dict; load the state again"
            raise ValueError(msg)
        ours = None if worker is None else worker.place
        theirs = None if self.worker is None else self.worker.place
        if self.request > 0 and ours != theirs:
            msg = (
                f"state belongs to another set of DataLoader workers: it was taken with (worker, workers)={theirs}, "
                f"here it is {ours}"
            )
            raise ValueError(msg)


@dataclasses.dataclass(slots=True)
class Inner:
    """Everything the base class keeps for a sampler.

    Attributes
    ----------
    n_passes
        Number of the next pass: passes started, or what was set by a state or ``set_epoch``.
    position
        Of the pass started last.
    resume
        Where the next pass shall begin, after a state was loaded.
    own_rng
        Generator of a sampler that shuffles and was given none.
    rank_key
        Keeps the streams of ranks apart that were given the same seed; set by DistributedSampler.
    worker
        The worker whose state was loaded in this process: its later passes follow the original's too.
    ahead
        By how much the numbers that ``set_epoch`` gets are ahead of ours.
    epoch
        What ``set_epoch`` was called with while a state waited to be resumed.
    origin
        (number of a pass, state of the generator before it): where going back begins.
    open_passes
        Passes that were handed out and are still held by somebody.
    """

    n_passes: int = 0
    position: SamplerPosition | None = None
    resume: SamplerPosition | None = None
    own_rng: np.random.Generator | None = None
    rank_key: tuple[int, ...] = ()
    worker: Worker | None = None
    ahead: int = 0
    epoch: int | None = None
    origin: tuple[int, dict[str, Any]] | None = None
    open_passes: weakref.WeakSet[SamplerPass] = dataclasses.field(default_factory=weakref.WeakSet)

    def __copy__(self) -> Inner:
        # A copy has no open pass, and its position must not move with the original's.
        position = None if self.position is None else dataclasses.replace(self.position)
        return dataclasses.replace(self, position=position, open_passes=weakref.WeakSet())

    def __reduce__(self) -> tuple[Any, ...]:
        fields = [field.name for field in dataclasses.fields(self) if field.name != "open_passes"]
        return _inner, tuple(getattr(self, name) for name in fields)


def _inner(*values: Any) -> Inner:
    return Inner(*values)


class SamplerPass(Iterator["LoadRequest"]):
    """The requests of one pass; counts what was handed out."""

    def __init__(self, requests: Iterator[LoadRequest], position: SamplerPosition) -> None:
        self._requests = requests
        self._position = position
        self._first_request = position.request
        self._lock = threading.Lock()
        self.closed = False
        self._ahead: LoadRequest | None = None
        #: Whether the pass was exchanged for another one before its first request, by ``set_epoch``.
        self.exchanged = False

    @property
    def position(self) -> SamplerPosition:
        """Where the pass stands."""
        return self._position

    @property
    def untouched(self) -> bool:
        """Whether nothing was asked for yet."""
        return not self.closed and self._position.request == self._first_request

    def at_end(self) -> bool:
        """Whether nothing is left; makes the next request, if there is one, before it is asked for."""
        with self._lock:
            if self._ahead is None:
                self._ahead = next(self._requests, None)
            return self._ahead is None

    def exchange(self, requests: Iterator[LoadRequest], position: SamplerPosition) -> None:
        """Yield other requests instead; only for a pass that is untouched."""
        with self._lock:
            self._requests, self._position, self._first_request = requests, position, position.request
            self.exchanged = True

    def __next__(self) -> LoadRequest:
        with self._lock:
            if self.closed:
                raise StopIteration
            try:
                request = next(self._requests) if self._ahead is None else self._ahead
                self._ahead = None
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
        with self._lock:
            self.closed = True
            if hasattr(self._requests, "close"):
                self._requests.close()


class PassNumbers:
    """The number of the next pass, of this process and of each DataLoader worker that it starts, in memory that they share.

    Workers are started afresh every epoch with the same copy of a sampler, and torch's seed of an epoch differs between ranks. So
    this is how the workers of all ranks know which pass they share, without a word between the ranks.
    """

    _N_WORKERS = 1024

    def __init__(self, numbers: Any = None) -> None:
        if numbers is None:
            import multiprocessing.sharedctypes

            numbers = multiprocessing.sharedctypes.RawArray("q", 1 + self._N_WORKERS)
        self._numbers = numbers

    def next(self, worker: Worker | None) -> int:
        """Return the number of the next pass."""
        if worker is None:
            return int(max(self._numbers))
        return int(self._numbers[self._place(worker)])

    def set(self, worker: Worker | None, number: int) -> None:
        """Say which pass comes next: a worker for itself, its parent for all."""
        if worker is None:
            self._numbers[:] = [number] * len(self._numbers)
        else:
            self._numbers[self._place(worker)] = number

    def _place(self, worker: Worker) -> int:
        return 1 + worker.id % self._N_WORKERS

    def __reduce__(self) -> tuple[Any, ...]:
        import multiprocessing.context

        if multiprocessing.context.get_spawning_popen() is not None:
            # On its way into a worker, which shares the memory. Every other copy has its own.
            return PassNumbers, (self._numbers,)
        return _pass_numbers, (list(self._numbers),)


def _pass_numbers(values: list[int]) -> PassNumbers:
    numbers = PassNumbers()
    numbers._numbers[:] = values
    return numbers


def check_not_beyond(n_done: int, n_requests: int) -> None:
    """Raise ValueError when a state says that more load requests are done than a pass has."""
    if n_done > n_requests:
        msg = f"state says that {n_done} load requests of a pass are done, but it has {n_requests}; it was damaged or changed"
        raise ValueError(msg)


def difference(ours: dict[str, Any], theirs: Any) -> str:
    """Both sides of what differs between two configurations."""
    if not isinstance(theirs, dict):
        return f"expected {ours}, got {theirs!r}"
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    here = ", ".join(f"{key}={ours.get(key)!r}" for key in keys)
    there = ", ".join(f"{key}={theirs.get(key)!r}" for key in keys)
    return f"here {here}; in the state {there}"
