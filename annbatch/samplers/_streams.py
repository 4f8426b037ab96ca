"""Where random numbers come from.

A pass takes one seed from the sampler's generator. Load request `k` of that pass draws from a stream of its own, derived
from (pass seed, `k`), so it can be made without making the requests before it, by any worker, in any order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from annbatch._shared.workers import Worker

__all__ = [
    "generator_from_state",
    "generator_state",
    "pass_entropy",
    "pass_stream",
    "rank_key",
    "request_stream",
    "take_pass_seed",
]


def take_pass_seed(rng: np.random.Generator) -> int:
    """Take one 64-bit seed from `rng`."""
    return int(rng.integers(2**64, dtype=np.uint64))


def pass_entropy(seed: int, worker: Worker | None) -> tuple[int, ...]:
    """Entropy of a pass: its seed, and in DataLoader workers also the seed of the epoch, which they share."""
    return (seed,) if worker is None else (seed, worker.epoch_seed)


def pass_stream(entropy: tuple[int, ...], rank_key: tuple[int, ...]) -> np.random.PCG64:
    """Bit generator of what concerns a pass as a whole."""
    return np.random.PCG64(np.random.SeedSequence(entropy, spawn_key=(*rank_key, 0)))


def request_stream(entropy: tuple[int, ...], rank_key: tuple[int, ...], number: int) -> np.random.PCG64:
    """Bit generator of load request `number` of a pass.

    Streams of other passes, ranks and requests are independent. Spawn keys see to that: adding numbers to a seed would let
    (seed 1, request 2) meet (seed 2, request 1).
    """
    return np.random.PCG64(np.random.SeedSequence(entropy, spawn_key=(*rank_key, 1, number)))


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
