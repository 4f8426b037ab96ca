"""Stop in the middle of an epoch and go on with the very next batch, with worker processes.

python docs/examples/stateful.py a.h5ad b.h5ad
"""

from __future__ import annotations

import sys

import numpy as np
from torchdata.stateful_dataloader import StatefulDataLoader

from annbatch import Loader


def make(paths: list[str]) -> StatefulDataLoader:
    loader = Loader(
        chunk_size=16,
        preload_nchunks=8,
        batch_size=64,
        shuffle=True,
        rng=np.random.default_rng(0),
        to="torch",
        dense=True,
        return_index=True,
        obs_columns=[],
    )
    return StatefulDataLoader(loader.add_paths(paths), batch_size=None, num_workers=2)


def main(paths: list[str]) -> None:
    first = make(paths)
    batches = iter(first)
    for _ in range(5):
        next(batches)
    state = first.state_dict()  # into the checkpoint
    expected = [batch["index"].tolist() for batch in batches]

    resumed = make(paths)  # in another process, days later
    resumed.load_state_dict(state)
    found = [batch["index"].tolist() for batch in resumed]
    assert found == expected
    print(f"resumed after 5 batches; the {len(found)} that were left came in the same order")


if __name__ == "__main__":
    main(sys.argv[1:])
