"""DistributedSampler in real jobs: torchrun with gloo, with and without DataLoader workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch")

CHILD = Path(__file__).with_name("ranks_child.py")
N_OBS = 203


def flat(batches):
    return [row for batch in batches for row in batch]


@pytest.mark.parametrize(
    "world_size", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
def test_a_job_of_several_ranks(tmp_path, world_size):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*launch, str(CHILD), str(tmp_path)], capture_output=True, text=True, check=False, env=environment, timeout=280
    )
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(world_size)]

    for name in ("random", "drop_last", "sequential", "classes"):
        for n_workers in (0, 2):
            parts = [rank[f"{name} {n_workers}"] for rank in ranks]
            seen = []
            for epoch in range(3):
                shares = [part["epochs"][epoch] for part in parts]
                # As many batches on every rank, or collective operations hang; and as many as were said.
                assert {len(share) for share in shares} == {part["len"] for part in parts} == {len(shares[0])}
                rows = flat(flat(shares))
                seen.append(rows)
                if name == "classes":
                    assert len(rows) == 150 // world_size * world_size
                    assert all(len({row % 4 for row in batch}) == 1 for share in shares for batch in share)
                    continue
                assert len(set(rows)) == len(rows), "two ranks read the same row"
                assert len(rows) > N_OBS - (6 * world_size if name == "drop_last" else world_size)
            if name in ("random", "drop_last"):
                assert len({tuple(rows) for rows in seen}) == 3
                shares = [frozenset(flat(epoch)) for part in parts for epoch in part["epochs"]]
                assert len(set(shares)) == 3 * world_size, "ranks see other rows in every pass"
            if name == "classes":
                assert len({str(epoch) for part in parts for epoch in part["epochs"]}) == 3 * world_size

    for number, rank in enumerate(ranks):
        for epoch in rank["pieces"]["epochs"]:
            first, last = number * N_OBS // world_size, (number + 1) * N_OBS // world_size
            assert all(first - 1 <= row <= last + 1 for row in flat(epoch))
        assert rank["resume own"]
        assert rank["resume rank 0's"]
        assert len(rank["warnings"]) == 1
        assert f"each of the {world_size} ranks of this job reads all rows" in rank["warnings"][0]

    parts = [rank["resume another size"] for rank in ranks]
    before = flat(parts[0]["done"])
    rest = flat(flat(part["rest"] for part in parts))
    assert len(before) == 30 * (world_size + 1)
    assert not set(before) & set(rest)
    assert len(set(rest)) == len(rest) > N_OBS - len(before) - 2 * world_size - 1
    assert len({len(part["rest"]) for part in parts}) == 1
    following = flat(flat(part["next"] for part in parts))
    assert len(set(following)) == len(following) > N_OBS - world_size
