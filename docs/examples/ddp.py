"""Distributed training: each rank reads its share of the rows.

torchrun --nproc-per-node 2 docs/examples/ddp.py a.h5ad b.h5ad
"""

from __future__ import annotations

import sys

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from annbatch import DistributedSampler, Loader, RandomSampler


def main(paths: list[str]) -> None:
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    torch.manual_seed(0)
    # The same seed on every rank: they draw one order, and each takes its part of it.
    sampler = RandomSampler(chunk_size=32, preload_nchunks=8, batch_size=64, rng=np.random.default_rng(0))
    loader = Loader(
        batch_sampler=DistributedSampler(sampler, dist_info="torch"),
        to="torch",
        dense=True,
        log1p=True,
        obs_columns=[],
        num_threads=1,
    ).add_paths(paths)
    model = DistributedDataParallel(torch.nn.Linear(loader.n_var, loader.n_var))
    optimizer = torch.optim.Adam(model.parameters())
    n_rows = 0
    for _ in range(2):
        for batch in loader:
            loss = torch.nn.functional.mse_loss(model(batch["X"]), batch["X"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            n_rows += len(batch["X"])
    total = torch.tensor(n_rows)
    dist.all_reduce(total)
    if dist.get_rank() == 0:
        print(f"{dist.get_world_size()} ranks, {int(total)} rows in 2 epochs, of {loader.n_obs}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
