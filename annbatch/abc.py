"""The base class of all samplers, which users extend to write a new one."""

from .samplers._base import Sampler

__all__ = ["Sampler"]
