"""Every way to store an array that the compiled engine reads, as h5py and zarr options."""

from __future__ import annotations

import hdf5plugin
import numcodecs
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

H5_KINDS = {
    "h5-contiguous": None,
    "h5-plain": {},
    "h5-gzip": {"compression": "gzip"},
    "h5-gzip-shuffle": {"compression": "gzip", "shuffle": True},
    "h5-lzf": {"compression": "lzf"},
    "h5-lzf-shuffle": {"compression": "lzf", "shuffle": True},
    "h5-fletcher32": {"fletcher32": True},
    "h5-gzip-fletcher32": {"compression": "gzip", "shuffle": True, "fletcher32": True},
    "h5-blosc-lz4": dict(hdf5plugin.Blosc(cname="lz4", shuffle=1)),
    "h5-blosc-zstd": dict(hdf5plugin.Blosc(cname="zstd", shuffle=2)),
    "h5-blosc-blosclz": dict(hdf5plugin.Blosc(cname="blosclz", shuffle=0)),
    "h5-zstd": dict(hdf5plugin.Zstd()),
    "h5-lz4": dict(hdf5plugin.LZ4()),
}
ZARR_2_KINDS = {
    "zarr2-plain": {"compressors": None},
    "zarr2-blosc": {"compressors": numcodecs.Blosc("lz4", shuffle=1)},
    "zarr2-blosc-bits": {"compressors": numcodecs.Blosc("zstd", shuffle=2)},
    "zarr2-zstd": {"compressors": numcodecs.Zstd()},
    "zarr2-gzip": {"compressors": numcodecs.GZip()},
    "zarr2-zlib": {"compressors": numcodecs.Zlib()},
    "zarr2-lz4": {"compressors": numcodecs.LZ4()},
    "zarr2-shuffle-zstd": {"filters": [numcodecs.Shuffle(4)], "compressors": numcodecs.Zstd()},
}
ZARR_3_CODECS = {
    "plain": (),
    "blosc-lz4": (BloscCodec(cname="lz4", shuffle="shuffle"),),
    "blosc-zstd": (BloscCodec(cname="zstd", shuffle="bitshuffle"),),
    "blosc-zlib": (BloscCodec(cname="zlib", shuffle="noshuffle"),),
    "blosc-blocks": (BloscCodec(cname="lz4", shuffle="shuffle", blocksize=128),),
    "zstd": (ZstdCodec(),),
    "gzip": (GzipCodec(),),
    "crc32c": (Crc32cCodec(),),
    "zstd-crc32c": (ZstdCodec(), Crc32cCodec()),
}
ZARR_3_KINDS = {
    **{f"zarr3-{name}": {"compressors": codecs} for name, codecs in ZARR_3_CODECS.items()},
    **{f"shards-{name}": {"compressors": codecs, "sharded": True} for name, codecs in ZARR_3_CODECS.items()},
}
KINDS = [*H5_KINDS, *ZARR_2_KINDS, *ZARR_3_KINDS]


def options_of(kind, chunks, per_shard):
    """Return (format, options) for a writer; ``chunks`` and ``per_shard`` have one entry per axis."""
    if kind in H5_KINDS:
        return "h5", {} if H5_KINDS[kind] is None else {**H5_KINDS[kind], "chunks": chunks}
    if kind in ZARR_2_KINDS:
        if "shuffle" in kind:
            # numcodecs shuffles whole items of four bytes only.
            chunks = (4 * chunks[0], *chunks[1:])
        return "zarr2", {**ZARR_2_KINDS[kind], "chunks": chunks}
    options = dict(ZARR_3_KINDS[kind])
    if options.pop("sharded", False):
        options["shards"] = tuple(c * n for c, n in zip(chunks, per_shard, strict=True))
    return "zarr3", {**options, "chunks": chunks}
