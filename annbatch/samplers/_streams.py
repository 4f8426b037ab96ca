"""Where random numbers come from.

A pass takes one seed from the sampler's generator. Everything random in that pass is a stream that is named by (pass seed,
kind of draw, number of the load request), so load request `k` can be made without making the requests before it, by any
rank or worker, in any order.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

import numpy as np

from annbatch._rle import draw_integers, shuffle_segments

if TYPE_CHECKING:
    import numpy.typing as npt

    from annbatch._shared.workers import Worker

__all__ = [
    "Draw",
    "PassStreams",
    "generator_at",
    "generator_from_state",
    "generator_state",
    "pass_entropy",
    "rank_key",
    "skip_pass_seeds",
    "take_pass_seed",
]


class Draw(enum.IntEnum):
    """What a stream is used for: streams of different kinds share no number."""

    ORDER = 0
    CLASSES = 1
    CHUNKS = 2
    POSITIONS = 3
    CONTROL_CHUNKS = 4
    CONTROL_POSITIONS = 5
    LEFT_OUT = 6


# More than there are kinds of draws: how far the kinds of two legs of a pass lie apart.
_LEG = 16


class PassStreams:
    """The random streams of one pass.

    Parameters
    ----------
    entropy
        What :func:`pass_entropy` returns.
    rank_key
        Keeps the streams of ranks apart that have the same seed; empty where ranks share a pass.
    leg
        How often the pass was continued with another number of ranks: its requests are numbered anew then.
    """

    def __init__(self, entropy: tuple[int, ...], rank_key: tuple[int, ...], leg: int = 0) -> None:
        self._entropy = entropy
        self._rank_key = rank_key
        # The order of chunks is that of the whole pass.
        self._kinds = [draw + (_LEG * leg if draw is not Draw.ORDER else 0) for draw in Draw]
        # Spawn keys keep passes and ranks apart: adding numbers to a seed would let (seed 1, rank 2) meet (seed 2, rank 1).
        self.key = (
            np.random.SeedSequence(entropy, spawn_key=(*rank_key, 1)).generate_state(2, np.uint64).view(np.uint64)
        )

    def kind(self, draw: Draw) -> int:
        """Number of a kind of draw, for the kernels."""
        return self._kinds[draw]

    def keys(self, n: int) -> np.ndarray:
        """Keys (uint64) of what concerns the pass as a whole, in every leg of it."""
        return np.random.SeedSequence(self._entropy, spawn_key=(*self._rank_key, 0)).generate_state(n, np.uint64)

    def integers(self, draw: Draw, number: int, below: int, size: int) -> np.ndarray:
        """Draw `size` uniform integers (int64) in [0, below)."""
        out = np.empty(size, dtype=np.int64)
        draw_integers(self.key, number, self.kind(draw), below, out)
        return out

    def shuffled(self, draw: Draw, number: int, n: int, segment: int) -> np.ndarray:
        """Numbers below `n` (int32 where they fit), every `segment` neighbours shuffled among themselves."""
        out: npt.NDArray[Any] = np.empty(n, dtype=np.int32 if n < 2**31 else np.int64)
        shuffle_segments(self.key, number, self.kind(draw), segment, out)
        return out


def take_pass_seed(rng: np.random.Generator) -> int:
    """Take one 64-bit seed from `rng`."""
    return int(rng.integers(2**64, dtype=np.uint64))


def skip_pass_seeds(rng: np.random.Generator, n: int) -> bool:
    """Move `rng` by `n` seeds, back when negative; False where its kind cannot go back."""
    if n and isinstance(rng.bit_generator, (np.random.PCG64, np.random.PCG64DXSM)):
        rng.bit_generator.advance(n)
    elif n < 0:
        return False
    else:
        for first in range(0, n, 65_536):
            rng.integers(2**64, dtype=np.uint64, size=min(n - first, 65_536))
    return True


def pass_entropy(seed: int, worker: Worker | None) -> tuple[int, ...]:
    """Entropy of a pass: its seed, and in DataLoader workers also the seed of the epoch, which they share."""
    return (seed,) if worker is None else (seed, worker.epoch_seed)


def generator_at(entropy: tuple[int, ...], key: tuple[int, ...]) -> np.random.Generator:
    """Make a generator for a sampler that is not ours, whose draws cannot be numbered."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy, spawn_key=key)))


def rank_key(rank: int) -> tuple[int, ...]:
    """What keeps the streams of ranks apart from each other, and from those of a sampler that has no rank (an empty key)."""
    return (2, rank)


def generator_state(rng: np.random.Generator) -> dict[str, Any]:
    """State of `rng` as plain data that survives JSON."""
    state: dict[str, Any] = _plain(rng.bit_generator.state)
    return state


def generator_from_state(state: dict[str, Any]) -> np.random.Generator:
    """Make a generator of its own that goes on where `state` was taken."""
    name = state.get("bit_generator")
    kind = getattr(np.random, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, np.random.BitGenerator)):
        msg = f"state['rng'] must name a numpy BitGenerator, got {name!r}"
        raise ValueError(msg)
    try:
        values = _arrays(state)
        if name == "MT19937":
            # NumPy itself does not check these, and would read beyond the key.
            _check_mersenne_twister(values["state"])
        bit_generator = kind()
        bit_generator.state = values
    except (ArithmeticError, AttributeError, LookupError, NotImplementedError, TypeError, ValueError) as error:
        msg = f"state['rng'] is no state of a {name}: {error}"
        raise ValueError(msg) from error
    return np.random.Generator(bit_generator)


def _check_mersenne_twister(state: dict[str, Any]) -> None:
    if np.shape(state["key"]) != (624,) or not 0 <= state["pos"] <= 624:
        msg = f"it must have 624 words and a position in [0, 624], got {np.shape(state['key'])} and {state['pos']}"
        raise ValueError(msg)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return {"uint": str(value.dtype), "values": value.tolist()}
    return value.item() if isinstance(value, np.generic) else value


def _arrays(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"uint", "values"}:
            return np.array(value["values"], dtype=value["uint"])
        return {key: _arrays(item) for key, item in value.items()}
    return value
