"""Where random numbers come from.

A pass takes one seed from the sampler's generator. Load request `k` of that pass draws from a stream of its own, derived
from (pass seed, `k`), so it can be made without making the requests before it, by any worker, in any order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["generator_from_state", "generator_state", "request_stream", "take_pass_seed"]


def take_pass_seed(rng: np.random.Generator) -> int:
    """Take one 64-bit seed from `rng`."""
    return int(rng.integers(2**64, dtype=np.uint64))


def request_stream(entropy: tuple[int, ...], key: tuple[int, ...]) -> np.random.PCG64:
    """Bit generator of one load request; streams of different `entropy` or `key` are independent.

    Spawn keys keep neighbours apart: adding numbers to a seed would let (seed 1, request 2) meet (seed 2, request 1).
    """
    return np.random.PCG64(np.random.SeedSequence(entropy, spawn_key=key))


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
    bit_generator = kind()
    try:
        bit_generator.state = _arrays(state)
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        msg = f"state['rng'] is no state of a {name}: {error}"
        raise ValueError(msg) from error
    return np.random.Generator(bit_generator)


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
