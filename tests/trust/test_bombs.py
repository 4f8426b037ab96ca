"""Chunks that lie about what they hold: refused, with little memory, and nothing that lies behind them is read."""

from __future__ import annotations

import gzip
import json
import lzma
import struct
import subprocess
import sys
import textwrap
import warnings
import zlib
from functools import cache
from pathlib import Path

import anndata as ad
import h5py
import numcodecs
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from annbatch import storage
from annbatch.collection.verify import verify
from annbatch.storage.chunks.bounded import readable
from annbatch.storage.chunks.decoders import decoder, lzma_decoder
from annbatch.storage.chunks.zarr_text import TextChunks
from annbatch.storage.engine._engine import crc32c
from annbatch.storage.frames import FrameReader
from tests.cells import csr_attrs, csr_parts, write_h5

BOMB_BYTES = 2**27
ZEROS = np.zeros(BOMB_BYTES, "u1")
COLUMNS = sp.csr_matrix(np.tile(np.arange(1, 7, dtype="float32"), (20, 1)))


def put(group, key, element, **options):
    with ad.settings.override(auto_shard_zarr_v3=False):
        ad.io.write_elem(group, key, element, **options)


def read_csr(path, *, direct=True):
    source = storage.open_matrix(storage.open_group(path)["X"], direct=direct)
    rows = np.arange(source.n_obs)
    return storage.read_csr([storage.Part(source, rows, rows)], np.array([0, len(rows)]), n_var=source.shape[1])


# -- frames of Blosc that are not whole


def in_shards(path):
    """As other libraries write: several chunks of Blosc in a shard, no checksums."""
    group = zarr.open_group(path, mode="w").create_group("X")
    group.attrs.update(csr_attrs(COLUMNS))
    for name, array in csr_parts(COLUMNS).items():
        options = (
            {} if name == "indptr" else {"shards": (120,), "chunks": (40,), "compressors": BloscCodec(cname="lz4")}
        )
        group.create_array(name, data=array, **options)
    return path


def frame_of(path, chunk=1):
    """Where a chunk lies in the shard of the values."""
    data = (path / "X/data/c/0").read_bytes()
    places = np.frombuffer(data[-(16 * 3 + 4) : -4], "<u8").reshape(3, 2)
    offset, length = places[chunk]
    return int(offset), int(length)


def lie_longer(frame):
    """It says that more bytes of it are stored than there are."""
    frame[12:16] = struct.pack("<I", len(frame) + 1000)


def lie_larger(frame):
    """It says that it holds more."""
    frame[4:8] = struct.pack("<I", 2**31 - 16)


def lie_a_little_larger(frame):
    frame[4:8] = struct.pack("<I", 164)


def no_header(frame):
    frame[:] = bytes(len(frame))


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("lie", [lie_longer, lie_larger, lie_a_little_larger, no_header])
def test_a_frame_in_a_shard_without_checksum(lie, direct, tmp_path):
    path = in_shards(tmp_path / "a.zarr")
    offset, length = frame_of(path)
    file = path / "X/data/c/0"
    data = bytearray(file.read_bytes())
    frame = bytearray(data[offset : offset + length])
    lie(frame)
    data[offset : offset + length] = frame
    file.write_bytes(data)
    with pytest.raises(storage.CorruptDataError, match=r"X/data|X :: data|:: X/data"):
        read_csr(path, direct=direct)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("n_left", [3, 15, 16, 30])
def test_a_frame_of_which_the_index_gives_a_part(n_left, direct, tmp_path):
    """The index of the shard, checksum and all, says that it is shorter."""
    path = in_shards(tmp_path / "a.zarr")
    file = path / "X/data/c/0"
    data = bytearray(file.read_bytes())
    index = bytearray(data[-(16 * 3 + 4) : -4])
    index[16 + 8 : 16 + 16] = struct.pack("<Q", n_left)
    data[-(16 * 3 + 4) :] = index + struct.pack("<I", crc32c(bytes(index)))
    file.write_bytes(data)
    with pytest.raises(storage.CorruptDataError):
        read_csr(path, direct=direct)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("n_left", [3, 20, 60])
def test_text_of_which_the_frame_is_cut_short(n_left, zarr_format, tmp_path):
    """Also where zarr-python reads it."""
    packer = numcodecs.Blosc() if zarr_format == 2 else BloscCodec()
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(50,), chunks=(50,), dtype=str, zarr_format=zarr_format, compressors=packer
    )
    array[:] = np.array([f"text number {i}" for i in range(50)], dtype=object)
    assert readable(array)[7] == "text number 7"
    path = tmp_path / "a.zarr" / ("0" if zarr_format == 2 else "c/0")
    path.write_bytes(path.read_bytes()[:n_left])
    assert TextChunks.of(array).read(slice(0, 50)) is None
    with pytest.raises(ValueError, match="cut short"):
        readable(array)[:]


BEHIND = """
import ctypes, mmap
import numcodecs, numpy as np
from annbatch.storage.chunks.decoders import decoder
page = mmap.PAGESIZE
area = mmap.mmap(-1, 2 * page)
start = ctypes.addressof(ctypes.c_char.from_buffer(area))
assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + page), page, 0) == 0
room = np.frombuffer(area, np.uint8)[:page]
rng = np.random.default_rng(0)
plain = rng.integers(0, 40, 3000).astype("u1").tobytes()
frames = {
    "blosc": [numcodecs.Blosc(name, shuffle=s).encode(plain) for name in ("zstd", "lz4", "blosclz", "zlib") for s in (0, 1, 2)],
    "zstd": [numcodecs.Zstd().encode(plain)], "lz4": [numcodecs.LZ4().encode(plain)],
    "zlib": [numcodecs.Zlib().encode(plain)], "gzip": [numcodecs.GZip().encode(plain)],
}
refused = right = 0
for name, coded in frames.items():
    decode = decoder(name)
    for frame in coded:
        frame = np.frombuffer(frame, np.uint8)
        for number in range(150):
            damaged = frame.copy()
            if number % 2:
                damaged = damaged[: rng.integers(len(damaged))]
            else:
                damaged[rng.integers(min(len(damaged), 40))] = rng.integers(256)
            at = room[page - len(damaged) :]
            at[:] = damaged
            try:
                assert len(decode(at, 4000)) <= 4000
                right += 1
            except (ValueError, RuntimeError):
                refused += 1
print(refused > right)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="guards memory by mprotect")
def test_nothing_behind_a_frame_is_read():
    """What lies behind it must not be read: doing so ends the process."""
    done = subprocess.run([sys.executable, "-c", BEHIND], capture_output=True, text=True, timeout=280, check=False)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr[-2000:]


@pytest.mark.parametrize("name", ["blosc", "zstd", "zlib", "gzip", "lz4", "bz2"])
def test_decoders_give_what_numcodecs_gives_and_no_more(name):
    plain = np.random.default_rng(0).integers(0, 40, 3000).astype("u1").tobytes()
    coded = numcodecs.get_codec({"id": name}).encode(plain)
    for n_more in (0, 1, 1000):
        assert bytes(decoder(name)(coded, len(plain) + n_more)) == plain
    for limit in (0, 100, len(plain) - 1):
        with pytest.raises(ValueError, match="decode to"):
            decoder(name)(coded, limit)
    assert bytes(decoder("gzip")(gzip.compress(b"one ") + gzip.compress(b"two") + bytes(8), 100)) == b"one two"


PACKED_IN = [
    {},
    {"format": lzma.FORMAT_ALONE},
    {"format": lzma.FORMAT_RAW, "filters": [{"id": lzma.FILTER_LZMA2, "preset": 9}]},
]


@pytest.mark.parametrize("settings", PACKED_IN, ids=["xz", "alone", "raw"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_lzma_is_decoded_to_no_more_than_there_is_room_for(settings, zarr_format, tmp_path):
    packer = numcodecs.LZMA(**settings)
    plain = np.random.default_rng(0).integers(0, 40, 300_000).astype("u1").tobytes()
    decode = lzma_decoder(settings.get("format", lzma.FORMAT_XZ), settings.get("filters"))
    coded = packer.encode(plain)
    assert bytes(decode(coded, len(plain))) == plain
    for part, limit in ((coded, len(plain) - 1), (coded[:-9], len(plain)), (b"\xff" * 50, 100)):
        with pytest.raises(ValueError, match="does not decode to|cut short|cannot be decoded"):
            decode(part, limit)
    values, n = np.arange(5_000, dtype="f4"), 2**23
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zarr-python does not know how it will be in other languages
        packers = packer if zarr_format == 2 else {"name": "numcodecs.lzma", "configuration": settings}
        array = zarr.create_array(
            tmp_path / "a.zarr", data=values, zarr_format=zarr_format, compressors=packers, chunks=values.shape
        )
    np.testing.assert_array_equal(readable(array)[:], values)
    (tmp_path / "a.zarr" / ("0" if zarr_format == 2 else "c/0")).write_bytes(packer.encode(bytes(n)))
    with pytest.raises(ValueError, match="does not decode to at most"):
        readable(array)[:]


def test_room_that_zstd_does_not_need_is_not_taken():
    """That of a long chunk of text is more than a machine may have."""
    packer = numcodecs.Zstd()
    assert bytes(decoder("zstd")(packer.encode(b"plain" * 9), 1 << 46)) == b"plain" * 9
    assert bytes(decoder("zstd")(packer.encode(b"one ") + packer.encode(b"two"), 100)) == b"one two"


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_long_texts_that_are_all_the_same_are_no_bomb(zarr_format, tmp_path):
    texts = np.full(70_000, "t" * 900, dtype=object)
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=texts.shape, chunks=texts.shape, dtype=str, zarr_format=zarr_format
    )
    array[:] = texts
    data, lengths = TextChunks.of(array).read(slice(0, len(texts)))
    assert (len(data), set(lengths.tolist())) == (900 * len(texts), {900})
    assert readable(array)[-1] == texts[-1]


@pytest.mark.parametrize("name", ["blosc", "zstd", "zlib", "gzip", "lz4", "bz2", "lzma"])
def test_filters_of_format_2_may_store_wider_items_than_the_array_has(name, tmp_path):
    values = np.arange(5_000, dtype="f4")
    array = zarr.create_array(
        tmp_path / "a.zarr",
        data=values,
        zarr_format=2,
        filters=[numcodecs.AsType("f8", "f4")],
        compressors=numcodecs.get_codec({"id": name}),
    )
    np.testing.assert_array_equal(readable(array)[:], values)


# -- chunks that unpack to far more than they should


@cache
def pack(name):
    """A chunk of so many zeros."""
    return numcodecs.get_codec({"id": name, **({"cname": "zstd"} if name == "blosc" else {})}).encode(ZEROS)


@cache
def pack_slowly(name):
    """As many zeros in streams one behind the other: these take their time to pack."""
    return numcodecs.get_codec({"id": name}).encode(ZEROS[: 2**22]) * (BOMB_BYTES >> 22)


@cache
def deflated():
    packer = zlib.compressobj(6)
    return packer.compress(ZEROS) + packer.flush()


def bomb_of_numbers(path, name, packer):
    put(
        zarr.open_group(path, mode="w", zarr_format=3), "/", ad.AnnData(COLUMNS), dataset_kwargs={"compressors": packer}
    )
    (path / "X/data/c/0").write_bytes(pack(name))


def bomb_of_text(path, name, zarr_format, packer, *, in_a_shard=False):
    """Names of the rows: texts without end, of a chunk that begins as it should."""
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    put(group, "/", ad.AnnData(COLUMNS))
    attributes = dict(group["obs/_index"].attrs)
    del group["obs/_index"]
    options = {"shards": (20,), "chunks": (10,)} if in_a_shard else {"chunks": (20,)}
    index = group.create_array("obs/_index", shape=(20,), dtype=str, compressors=packer, **options)
    index.attrs.update(attributes)
    data = pack_slowly(name) if name in ("lzma", "bz2") else pack(name)
    if in_a_shard:
        n = len(data)
        entries = struct.pack("<4Q", 0, n, 0, n)
        data = bytes(data) + entries + struct.pack("<I", crc32c(entries))
    place = path / "obs/_index" / ("0" if zarr_format == 2 else "c/0")
    place.parent.mkdir(exist_ok=True)
    place.write_bytes(data)


def bomb_of_hdf5(path, *, big_endian):
    """A chunk of gzip, of values that the engine reads or that only HDF5 can."""
    write_h5(csr_parts(COLUMNS), path, csr_attrs(COLUMNS))
    with h5py.File(path, "r+") as file:
        del file["X/data"]
        data = file.create_dataset("X/data", (120,), ">f4" if big_endian else "<f4", chunks=(120,), compression="gzip")
        data.id.write_direct_chunk((0,), deflated())
        _frames(file)


def one_text_for_all(path, *, chunks):
    """Each of 4,000 names is the same text of a million letters."""
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        obs = file.create_group("obs")
        obs.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.2.0", "_index": "i", "column-order": []})
        names = obs.create_dataset("i", (4000,), h5py.string_dtype(), chunks=chunks)
        names.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
        names[0] = "x" * 1_000_000
        names[1:] = "y"
    with h5py.File(path) as file:
        at = file["obs/i"].id.get_offset() if chunks is None else file["obs/i"].id.get_chunk_info(0).byte_offset
    with path.open("r+b") as file:
        file.seek(at)
        first = file.read(16)
        file.seek(at)
        file.write(first * 4000)


def huge_chunk(path):
    """A chunk of 2 GB for a column of 20 rows, of which HDF5 takes the memory when it reads."""
    write_h5(csr_parts(COLUMNS), path, csr_attrs(COLUMNS))
    with h5py.File(path, "r+") as file:
        del file["X/data"]
        data = file.create_dataset("X/data", (120,), ">f4", maxshape=(None,), chunks=(2**29,), compression="gzip")
        data.id.write_direct_chunk((0,), deflated())
        _frames(file)


def by_number(path, number, data):
    """A chunk of a filter that h5py itself does not have."""
    write_h5(csr_parts(COLUMNS), path, csr_attrs(COLUMNS))
    with h5py.File(path, "r+") as file:
        del file["X/data"]
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk((120,))
        settings.set_filter(number, h5py.h5z.FLAG_OPTIONAL)
        data_id = h5py.h5d.create(
            file["X"].id, b"data", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((120,)), dcpl=settings
        )
        data_id.write_direct_chunk((0,), data)
        _frames(file)


def _frames(file):
    for name, n in (("obs", 20), ("var", 6)):
        put(file, name, pd.DataFrame(index=[f"{name}{i}" for i in range(n)]))


def claim_texts(path):
    """A chunk of text that says it holds two thousand million."""
    bomb_of_text(path, "zlib", 3, None)
    (path / "obs/_index/c/0").write_bytes(struct.pack("<I", 2**31 - 1) + b"\1\0\0\0a" * 20)


BOMBS = {
    "blosc.zarr": lambda path: bomb_of_numbers(path, "blosc", BloscCodec(cname="zstd")),
    "gzip.zarr": lambda path: bomb_of_numbers(path, "gzip", GzipCodec()),
    "zstd.zarr": lambda path: bomb_of_numbers(path, "zstd", ZstdCodec()),
    "text-blosc.zarr": lambda path: bomb_of_text(path, "blosc", 3, BloscCodec()),
    "text-gzip.zarr": lambda path: bomb_of_text(path, "gzip", 3, GzipCodec()),
    "text-zstd.zarr": lambda path: bomb_of_text(path, "zstd", 3, ZstdCodec()),
    "text-in-shard.zarr": lambda path: bomb_of_text(path, "zstd", 3, ZstdCodec(), in_a_shard=True),
    "text-2-blosc.zarr": lambda path: bomb_of_text(path, "blosc", 2, numcodecs.Blosc()),
    "text-2-lzma.zarr": lambda path: bomb_of_text(path, "lzma", 2, numcodecs.LZMA()),
    "text-2-bz2.zarr": lambda path: bomb_of_text(path, "bz2", 2, numcodecs.BZ2()),
    "text-2-zlib.zarr": lambda path: bomb_of_text(path, "zlib", 2, numcodecs.Zlib()),
    "text-count.zarr": claim_texts,
    "gzip.h5ad": lambda path: bomb_of_hdf5(path, big_endian=False),
    "gzip-fallback.h5ad": lambda path: bomb_of_hdf5(path, big_endian=True),
    "text.h5ad": lambda path: one_text_for_all(path, chunks=None),
    "text-chunked.h5ad": lambda path: one_text_for_all(path, chunks=(4000,)),
    "huge-chunk.h5ad": huge_chunk,
    "zstd.h5ad": lambda path: by_number(path, 32015, pack("zstd")),
    "lz4.h5ad": lambda path: by_number(path, 32004, struct.pack(">QI", BOMB_BYTES, BOMB_BYTES) + bytes(2000)),
    "lz4-without-blocks.h5ad": lambda path: by_number(path, 32004, struct.pack(">QI", 480, 0) + bytes(2000)),
}

TRY_ALL = """
    import json, resource, sys, time, warnings
    from pathlib import Path
    from annbatch.storage import CorruptDataError
    from tests.trust.test_bombs import read_any
    warnings.simplefilter("ignore")
    first, *paths = map(Path, sys.argv[1:])
    read_any(first)
    for path in paths:
        before, start, said = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time(), "read"
        try:
            read_any(path)
        except CorruptDataError as error:
            said = str(error)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(json.dumps([path.name, said, time.process_time() - start, more / 1024]))
"""


def try_all(sound, paths):
    """What a process says of each that tries to read them, its seconds and MB; first of a sound one, to have all imported."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TRY_ALL), sound, *paths],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: rest for name, *rest in map(json.loads, done.stdout.splitlines())}


def read_any(path):
    group = storage.open_group(path)
    frame = FrameReader(group["obs"]).frame()
    if "X" not in group:
        return frame
    return read_csr(path)


@pytest.mark.skipif(sys.platform == "win32", reason="memory is measured elsewhere only")
def test_bombs_are_refused_and_cost_little(tmp_path):
    """All in one process, as a hundred imports would take longer than they."""
    sound = in_shards(tmp_path / "sound.zarr")
    put(zarr.open_group(sound), "obs", pd.DataFrame(index=[f"c{i}" for i in range(20)]))
    for name, make in BOMBS.items():
        make(tmp_path / name)
    for name, (said, seconds, megabytes) in try_all(sound, [tmp_path / name for name in BOMBS]).items():
        assert name in said
        assert not said.startswith(("MemoryError", "read")), said
        assert megabytes < 64, said
        assert seconds < 5, said  # of processor time: 0.3 at most on a machine of 2026 that is busy
        if name in ("blosc.zarr", "text-gzip.zarr", "gzip-fallback.h5ad", "text.h5ad", "huge-chunk.h5ad"):
            assert not verify(tmp_path / name, progress=False).is_sound
