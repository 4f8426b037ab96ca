"""Train with plain torch: an iterable Loader in a DataLoader, and validation rows by number through MappedCollection.

python docs/examples/torch_training.py a.h5ad b.h5ad --label cell_type
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch.utils.data import DataLoader, Subset

from annbatch import Loader, MappedCollection


def main(arguments: list[str] | None = None) -> float:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+")
    parser.add_argument("--label", default="cell_type")
    options = parser.parse_args(arguments)

    loader = Loader(
        chunk_size=32,
        preload_nchunks=16,
        batch_size=128,
        shuffle=True,
        rng=np.random.default_rng(0),
        to="torch",
        dense=True,
        log1p=True,
        labels=[options.label],
        obs_columns=[],
    ).add_paths(options.paths)
    model = torch.nn.Linear(loader.n_var, len(loader.encoders[options.label]))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    # batch_size=None: batches come from the loader. It reads in threads; workers are not needed, and work, too.
    for batch in DataLoader(loader, batch_size=None):
        loss = torch.nn.functional.cross_entropy(model(batch["X"]), batch["labels"][options.label])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    # Some rows by their numbers, map-style.
    with MappedCollection(options.paths, obs_keys=options.label, dtype="float32") as cells, torch.no_grad():
        chosen = Subset(cells, range(0, len(cells), 10))
        right = [
            model(torch.log1p(batch["X"])).argmax(1) == batch[options.label]
            for batch in DataLoader(chosen, batch_size=256)
        ]
    accuracy = torch.cat(right).float().mean().item()
    print(f"named correctly: {accuracy:.0%} of {len(chosen)} cells")
    return accuracy


if __name__ == "__main__":
    main()
