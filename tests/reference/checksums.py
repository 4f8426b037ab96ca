"""Twin of the CRC-32C kernels in ``annbatch/storage/engine/_crc32c.h``."""

from __future__ import annotations

__all__ = ["crc32c"]


def crc32c(data: bytes) -> int:
    """By definition, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
