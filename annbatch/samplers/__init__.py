"""Samplers: which rows are read, and how they are cut into batches."""

from .chunked import RandomSampler, SequentialSampler
from .class_based import ClassSampler, WeightedClassSampler
from .distributed import DistributedSampler
from .matched import MatchedSampler

__all__ = [
    "ClassSampler",
    "DistributedSampler",
    "MatchedSampler",
    "RandomSampler",
    "SequentialSampler",
    "WeightedClassSampler",
]
