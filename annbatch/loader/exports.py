"""What a batch's matrices are handed out as: scipy and numpy, torch, jax, cupy.

A maker is chosen once per pass. Nothing is copied where the other library can use the memory as it is: it then holds a
reference, and the memory is used again only when that is gone.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from annbatch.storage import CSRBlock

__all__ = ["Makers", "Output", "check_installed", "gpu_is_there", "let_torch_warn_unheard", "makers"]

Output = Literal["torch", "jax"]

_INT32_MAX = 2**31 - 1

_HOW_TO_INSTALL = {
    "torch": "pip install annbatch[torch]",
    "jax": "pip install annbatch[jax]",
    "cupy": "pip install annbatch[cupy] (or the cupy build for your CUDA version)",
}


@dataclass(frozen=True)
class Makers:
    """Make what the user gets: out of a CSR block, out of an array, and out of row numbers, labels and covariates."""

    sparse: Callable[[CSRBlock], Any]
    dense: Callable[[np.ndarray], Any]
    small: Callable[[np.ndarray], Any]


def check_installed(library: str, parameter: str) -> None:
    """Raise ImportError, saying how to install it, when `library` is missing. Does not import it."""
    if find_spec(library) is None:
        msg = f"{parameter} needs {library}, which is not installed: {_HOW_TO_INSTALL[library]}"
        raise ImportError(msg)


def makers(
    to: Output | None,
    *,
    gpu: bool,
    sparse: set[np.dtype[Any]],
    dense: set[np.dtype[Any]],
    nse: int | None = None,
) -> Makers:
    """Choose how to hand out matrices; called in the thread that starts the pass.

    Parameters
    ----------
    to, gpu
        The library, and whether matrices are to be on the GPU.
    sparse, dense
        Dtypes of the sparse and the dense matrices that will be handed out.
    nse
        Stored values to pad sparse matrices of jax to; None: they have as many as there are.

    Raises
    ------
    ValueError
        When the library cannot hold these dtypes, or there is no GPU.
    """
    if to == "torch":
        return _torch(gpu=gpu)
    if to == "jax":
        return _jax(sparse | dense, nse)
    return _cupy(sparse) if gpu else Makers(lambda block: block.to_scipy(), _as_is, _as_is)


def gpu_is_there(to: Output | None = None) -> bool:
    """Whether cupy is installed and it, and the library `to`, see a GPU."""
    if to == "jax" or find_spec("cupy") is None:
        return False  # jax puts arrays on its own default device
    import cupy

    try:
        n_devices = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        n_devices = 0
    if to == "torch":
        import torch

        return bool(n_devices and torch.cuda.is_available())
    return bool(n_devices)


def _torch(*, gpu: bool) -> Makers:
    import torch

    let_torch_warn_unheard()
    if not gpu:
        place: Callable[[Any], Any] = _as_is
    elif not torch.cuda.is_available():
        msg = "preload_to_gpu=True with to='torch' needs a torch that sees a GPU; pass preload_to_gpu=False"
        raise ValueError(msg)
    else:
        # The current device is set per thread, so it is looked up here, where the user has chosen it.
        device = torch.device("cuda", torch.cuda.current_device())

        def moved(tensor: Any) -> Any:
            return tensor.pin_memory().to(device, non_blocking=True)

        place = moved

    def sparse(block: CSRBlock) -> Any:
        indptr, indices, data = (place(torch.from_numpy(array)) for array in (block.indptr, block.indices, block.data))
        return torch.sparse_csr_tensor(indptr, indices, data, size=block.shape, check_invariants=False)

    def dense(array: np.ndarray) -> Any:
        return place(torch.from_numpy(array))

    return Makers(sparse, dense, dense)


@cache
def let_torch_warn_unheard() -> None:
    """Let torch say what it says once per process about CSR tensors (in beta, invariants unchecked) where nobody hears it.

    For users who turn warnings into errors it would be an error of the first batch: in the thread that reads ahead, where
    filters must not be changed, or in torch's own code that takes a batch from a DataLoader worker.
    """
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.sparse_csr_tensor(torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([1.0]), size=(1, 1))


def _jax(dtypes: set[np.dtype[Any]], nse: int | None) -> Makers:
    import jax
    import jax.numpy as jnp
    from jax.experimental import sparse as jax_sparse

    csr: Any = jax_sparse.CSR
    config: Any = jax.config
    has_64_bit = bool(config.jax_enable_x64)
    if not has_64_bit:
        wide = sorted(str(dtype) for dtype in dtypes if dtype.itemsize // (2 if dtype.kind == "c" else 1) > 4)
        if wide:
            msg = (
                f"to='jax' would cut {', '.join(wide)} to 32 bits; pass dtype='float32', "
                "or call jax.config.update('jax_enable_x64', True)"
            )
            raise ValueError(msg)

    def sparse(block: CSRBlock) -> Any:
        if block.indices.dtype.itemsize > 4 and not has_64_bit:
            msg = "to='jax' cannot hold a batch of more than 2**31 values; choose a smaller batch_size"
            raise ValueError(msg)
        if nse is not None:
            block = _padded(block, nse)
        return csr(tuple(map(jnp.asarray, (block.data, block.indices, block.indptr))), shape=block.shape)

    def small(array: np.ndarray) -> Any:
        if array.dtype.itemsize > 4 and not has_64_bit:
            if array.size and int(array.max()) > _INT32_MAX:
                msg = (
                    f"to='jax' would cut the row number {array.max()} to 32 bits; "
                    "call jax.config.update('jax_enable_x64', True)"
                )
                raise ValueError(msg)
            array = array.astype(np.int32)
        return jnp.asarray(array)

    return Makers(sparse, jnp.asarray, small)


def _padded(block: CSRBlock, nse: int) -> CSRBlock:
    """Return a block with `nse` stored values; those after the last row's belong to no row and are 0."""
    n_values = len(block.data)
    if n_values > nse:
        msg = f"nse must be at least the stored values of every batch, got {nse}, and a batch of {n_values}"
        raise ValueError(msg)
    data, indices = np.zeros(nse, block.data.dtype), np.zeros(nse, block.indices.dtype)
    data[:n_values], indices[:n_values] = block.data, block.indices
    return replace(block, data=data, indices=indices)


def _cupy(sparse_dtypes: set[np.dtype[Any]]) -> Makers:
    import cupy
    from cupyx.scipy.sparse import csr_matrix

    unfit = sorted(str(dtype) for dtype in sparse_dtypes if dtype.char not in "?fdFD")
    if unfit:
        msg = f"sparse matrices of cupy cannot hold {', '.join(unfit)}; pass dtype='float32', or preload_to_gpu=False"
        raise ValueError(msg)
    # The current device is set per thread, so it is looked up here, where the user has chosen it.
    device = cupy.cuda.Device()

    def dense(array: np.ndarray) -> Any:
        with device:
            return cupy.asarray(array)

    def sparse(block: CSRBlock) -> Any:
        with device:
            return csr_matrix(tuple(map(cupy.asarray, (block.data, block.indices, block.indptr))), shape=block.shape)

    return Makers(sparse, dense, _as_is)


def _as_is(array: Any) -> Any:
    return array
