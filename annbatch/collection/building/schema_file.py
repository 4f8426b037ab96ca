"""The schema of a build as a file that its tasks read: data, with a digest, and nothing that could run."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .columns import Column
from .output.sink import write_element
from .schema import MatrixType, Schema

if TYPE_CHECKING:
    from pathlib import Path

_LIST = "list"


@dataclass(frozen=True)
class SchemaFile:
    """Where the schema of a build lies; a task stays small that way.

    Attributes
    ----------
    digest
        SHA-256 of the file: a task takes no other.
    """

    path: Path
    digest: str

    @classmethod
    def write(cls, schema: Schema, path: Path) -> SchemaFile:
        """Write a schema, its frames the way anndata writes them."""
        import h5py

        listed: dict[str, Any] = {
            "index_name": schema.index_name,
            "has_raw": schema.raw_var is not None,
            "matrices": {
                name: [matrix.is_sparse, matrix.dtype.str, list(matrix.row_shape)]
                for name, matrix in schema.matrices.items()
            },
            "obs": [
                [name, column.kind, column.dtype, column.ordered, column.categories is not None]
                for name, column in schema.obs.items()
            ],
            "varm": list(schema.varm),
        }
        buffer = io.BytesIO()
        with h5py.File(buffer, "w") as file:
            file.create_dataset(_LIST, data=np.frombuffer(json.dumps(listed).encode(), np.uint8))
            write_element(file, "var", schema.var)
            if schema.raw_var is not None:
                write_element(file, "raw_var", schema.raw_var)
            # By number: a name may hold anything.
            for kind, values in (
                ("varm", list(schema.varm.values())),
                ("categories", [_storable(column.categories) for column in schema.obs.values()]),
            ):
                file.create_group(kind)
                for number, value in enumerate(values):
                    if value is not None:
                        write_element(file, f"{kind}/{number}", value)
        path.write_bytes(buffer.getbuffer())
        return cls(path, hashlib.sha256(buffer.getbuffer()).hexdigest())

    def read(self) -> Schema:
        """The schema.

        Raises
        ------
        OSError
            The file is not the one that was written.
        """
        return _read(self)


@lru_cache(maxsize=1)
def _read(stored: SchemaFile) -> Schema:
    import h5py
    from anndata.io import read_elem

    data = stored.path.read_bytes()
    if hashlib.sha256(data).hexdigest() != stored.digest:
        msg = f"{stored.path} is damaged: temporary files of a build must be left alone; run the same call again"
        raise OSError(msg)
    with h5py.File(io.BytesIO(data), "r") as file:
        listed = json.loads(file[_LIST][()].tobytes())
        obs = {
            name: Column(kind, dtype, _index(read_elem(file[f"categories/{number}"])) if categorical else None, ordered)
            for number, (name, kind, dtype, ordered, categorical) in enumerate(listed["obs"])
        }
        return Schema(
            obs,
            listed["index_name"],
            {
                name: MatrixType(is_sparse, np.dtype(dtype), tuple(row_shape))
                for name, (is_sparse, dtype, row_shape) in listed["matrices"].items()
            },
            read_elem(file["var"]),
            {name: read_elem(file[f"varm/{number}"]) for number, name in enumerate(listed["varm"])},
            read_elem(file["raw_var"]) if listed["has_raw"] else None,
        )


def _storable(categories: pd.Index[Any] | None) -> Any:
    """Categories as an array of a type that files hold."""
    return None if categories is None else np.asarray(categories.infer_objects())


def _index(values: Any) -> pd.Index[Any]:
    array = np.asarray(values)
    index: pd.Index[Any] = pd.Index(array.astype(object) if array.dtype.kind in "OUT" else array)
    return index
