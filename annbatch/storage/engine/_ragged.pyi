import numpy as np

BLOCK_ROWS: int

def find_extents(
    lengths: np.ndarray, block_start: np.ndarray, rows: np.ndarray, start: np.ndarray, length: np.ndarray
) -> None: ...
def check_pointers(pointers: np.ndarray, longest: np.ndarray) -> int: ...
def keep_lengths(pointers: np.ndarray, first_row: int, lengths: np.ndarray, block_start: np.ndarray) -> None: ...
def decode_texts(data: np.ndarray, start: np.ndarray, length: np.ndarray, texts: np.ndarray) -> None: ...
def unpack_texts(chunk: np.ndarray, length: np.ndarray, data: np.ndarray) -> int: ...
def heap_texts(
    heap: np.ndarray,
    reference: np.ndarray,
    address: np.ndarray,
    begin: np.ndarray,
    end: np.ndarray,
    place: np.ndarray,
    length: np.ndarray,
    data: np.ndarray,
) -> int: ...
def first_broken(heap: np.ndarray, begin: np.ndarray, end: np.ndarray) -> int: ...
def number_texts(
    data: np.ndarray,
    length: np.ndarray,
    seed: int,
    slots: np.ndarray,
    code: np.ndarray,
    begin: np.ndarray,
    size: np.ndarray,
) -> int: ...
