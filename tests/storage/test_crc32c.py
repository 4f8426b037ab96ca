"""CRC-32C: every way to compute it gives what the definition says."""

from __future__ import annotations

import numpy as np
import pytest

from annbatch.storage.engine import _engine
from tests.reference import checksums as twins

# The fastest that this processor has, its instruction alone, tables.
WAYS = (0, 1, 2)
BYTES = np.random.default_rng(0).integers(0, 256, 5000).astype(np.uint8)


def test_the_checksum_of_the_standard():
    assert _engine.crc32c(b"123456789") == 0xE3069283
    assert _engine.crc32c(b"") == 0


# Around the sizes that the kernels work on at a time: 8, 256 and 768 bytes.
@pytest.mark.parametrize("n", [1, 7, 8, 9, 63, 255, 256, 257, 511, 512, 767, 768, 769, 1023, 1536, 2500])
@pytest.mark.parametrize("start", [0, 3])
def test_instructions_and_tables_agree_with_the_definition(n, start):
    data = BYTES[start : start + n]
    expected = twins.crc32c(data.tobytes())
    assert [_engine.crc32c(data, way) for way in WAYS] == [expected] * len(WAYS)


def test_all_lengths_agree_with_the_tables():
    for n in range(len(BYTES)):
        assert len({_engine.crc32c(BYTES[:n], way) for way in WAYS}) == 1
