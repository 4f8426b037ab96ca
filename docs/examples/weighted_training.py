"""Train a classifier on two AnnData files with evenly drawn classes.

    python docs/examples/weighted_training.py

Writes two small files of real cells (the counts that annbatch ships), with genes that differ, to a temporary folder. A few
seconds on a laptop, no GPU needed.
"""

from __future__ import annotations

import tempfile
from importlib.resources import files
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from torch.utils.data import DataLoader, WeightedRandomSampler

from annbatch import MappedCollection

# A cell is what it has most counts of.
MARKERS = {"B cell": ["MS4A1", "CD79A"], "T cell": ["CD3D", "CD3E"], "myeloid": ["LYZ", "CST3"]}


def write_files(folder: Path) -> list[Path]:
    """Write the bundled cells as two files that share most of their genes."""
    stored = np.load(str(files("annbatch") / "data/real_counts.npz"))
    counts = sp.csr_matrix(
        (stored["data"].astype("float32"), stored["indices"], stored["indptr"]), shape=stored["shape"]
    )
    genes = pd.Index(stored["genes"].astype(str).astype(object))
    score = np.column_stack([counts[:, genes.get_indexer(markers)].sum(axis=1) for markers in MARKERS.values()])
    obs = pd.DataFrame({"cell_type": pd.Categorical(np.array(list(MARKERS))[np.asarray(score).argmax(axis=1)])})
    obs.index = "cell_" + obs.index.astype(str)
    cells = ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=genes))
    half = cells.n_obs // 2
    paths = [folder / "first.h5ad", folder / "second.h5ad"]
    cells[:half, :-100].copy().write_h5ad(paths[0])
    cells[half:, 100:].copy().write_h5ad(paths[1])
    return paths


def main() -> float:
    """Train and return the share of cells that the model names correctly."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = write_files(Path(folder))
        with MappedCollection(paths, obs_keys="cell_type", join="inner") as cells:
            print(cells)
            print("cells per type:", pd.Series(cells.get_merged_labels("cell_type")).value_counts().to_dict())

            # Every class is drawn equally often, however rare it is.
            weights = cells.get_label_weights("cell_type")
            sampler = WeightedRandomSampler(weights, num_samples=10 * len(cells))
            loader = DataLoader(cells, batch_size=128, sampler=sampler)

            classes = list(cells.encoders["cell_type"])
            model = torch.nn.Linear(cells.n_vars, len(classes))
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
            drawn = torch.zeros(len(classes), dtype=torch.int64)
            for batch in loader:
                loss = torch.nn.functional.cross_entropy(model(torch.log1p(batch["X"])), batch["cell_type"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                drawn += torch.bincount(batch["cell_type"], minlength=len(classes))
            print("drawn per type:", dict(zip(classes, drawn.tolist(), strict=True)))

            with torch.no_grad():
                right = [
                    model(torch.log1p(batch["X"])).argmax(1) == batch["cell_type"]
                    for batch in DataLoader(cells, batch_size=256)
                ]
            accuracy = torch.cat(right).float().mean().item()
            print(f"cells of the training data named correctly: {accuracy:.0%}")
            return accuracy


if __name__ == "__main__":
    main()
