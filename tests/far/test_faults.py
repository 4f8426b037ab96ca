"""What a network does to requests, done by a real server, and what comes of it."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from annbatch import Loader, storage
from annbatch.storage.far import clients, fetch, http, stores
from benchmarks.far.server import Fault, RangeServer

from .test_same_batches import check, loader_at

pytest.importorskip("fsspec", reason="fsspec, which knows URLs, is not installed")
pytest.importorskip("aiohttp", reason="aiohttp, which fsspec asks HTTP servers with, is not installed")

REPOSITORY = Path(__file__).resolve().parents[2]
TRANSIENT = {
    "429": {"kind": "status", "status": 429},
    "500": {"kind": "status", "status": 500},
    "503": {"kind": "status", "status": 503},
    "cut": {"kind": "cut"},
    "reset": {"kind": "reset"},
    "hang": {"kind": "hang"},
    "stall": {"kind": "stall"},
    "whole": {"kind": "whole"},
    "short": {"kind": "short"},
    "elsewhere": {"kind": "elsewhere"},
}
DATA = {"cells.zarr": "X/(data|indices)/c/", "cells_0.h5ad": "h5ad"}


@pytest.fixture
def misbehave(server, monkeypatch):
    """Let the server misbehave. What gets no answer is given up soon, but only for as long as there are faults left."""

    def begin(fault):
        server.faults.append(fault)
        if fault.kind not in ("hang", "stall"):
            return
        monkeypatch.setattr(http, "TIMEOUT_S", 0.3)
        give_up = http.HttpClient._check

        def give_up_and_look(*args):
            give_up(*args)
            # What stalled is looked at twice, the second time perhaps when no faults are left.
            if fault.kind == "hang" and not any(other.times > 0 for other in server.faults):
                http.TIMEOUT_S = 30.0  # an answer may take its time on a busy machine

        monkeypatch.setattr(http.HttpClient, "_check", give_up_and_look)

    return begin


@pytest.fixture
def own_folder(folder, tmp_path):
    """A copy that a test may change."""
    shutil.copytree(folder / "cells.zarr", tmp_path / "cells.zarr")
    shutil.copy(folder / "cells_0.h5ad", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("fault", TRANSIENT)
def test_what_goes_away_is_tried_again(fault, name, server, folder, misbehave):
    far = loader_at(f"{server.url}/{name}")
    before = fetch.counts["retries"]
    misbehave(Fault(pattern=DATA[name], times=3, **TRANSIENT[fault]))
    check(far, loader_at(folder / name))
    if fault != "reset":  # an idle connection that has ended is replaced without a word
        assert fetch.counts["retries"] - before >= 3
    assert server.faults[0].times == 0


def through(client, url, monkeypatch):
    """A place that is read through the library of a store."""
    if client == "fsspec":
        monkeypatch.setattr(clients, "_plain_http", lambda _: None)
        return url
    obstore = pytest.importorskip("obstore", reason="obstore is not installed")
    server, _, name = url.rpartition("/")
    given = {"client_options": {"allow_http": True}, "retry_config": {"max_retries": 0}}
    return obstore.store.HTTPStore.from_url(server, **given), name


@pytest.mark.parametrize("client", ["fsspec", "obstore"])
@pytest.mark.parametrize("fault", ["429", "503", "cut", "whole", "short"])
def test_through_other_clients_too(fault, client, server, folder, monkeypatch):
    far = loader_at(through(client, f"{server.url}/cells_0.h5ad", monkeypatch))
    server.faults.append(Fault(pattern="h5ad", times=3, **TRANSIENT[fault]))
    check(far, loader_at(folder / "cells_0.h5ad"))
    assert server.faults[0].times == 0


@pytest.mark.parametrize("client", ["fsspec", "obstore"])
def test_an_object_that_is_replaced_is_noticed_through_other_clients_too(client, own_folder, monkeypatch):
    monkeypatch.setattr(stores, "LOOK_AGAIN_S", 0.0)
    with RangeServer(own_folder) as server:
        far = loader_at(
            through(client, f"{server.url}/cells_0.h5ad", monkeypatch), chunk_size=100, preload_nchunks=1, prefetch=0
        )
        batches = iter(far)
        next(batches)
        content = (own_folder / "cells_0.h5ad").read_bytes()
        (own_folder / "cells_0.h5ad").unlink()
        (own_folder / "cells_0.h5ad").write_bytes(content[::-1])
        with pytest.raises(storage.CorruptDataError, match="was changed or replaced after it was opened"):
            list(batches)


@pytest.mark.parametrize("client", ["fsspec", "obstore"])
def test_who_must_not_read_learns_it_at_opening_through_other_clients_too(client, server, monkeypatch):
    server.faults.append(Fault("status", times=10**6, status=403))
    place = through(client, f"{server.url}/cells_0.h5ad", monkeypatch)
    with pytest.raises(PermissionError):
        loader_at(place)


@pytest.mark.parametrize("fault", ["503", "cut", "hang", "whole", "short"])
def test_what_stays_is_an_error_with_object_range_and_cause(fault, server, misbehave, monkeypatch):
    far = loader_at(f"{server.url}/cells_0.h5ad")
    misbehave(Fault(pattern="h5ad", times=10**6, **TRANSIENT[fault]))
    cause = {
        "503": "status 503",
        "cut": "cut in the middle of the answer",
        "hang": "no byte came",
        "whole": "whole object instead of a range",
        "short": "answered with bytes",
    }[fault]
    with pytest.raises(ConnectionError, match=rf"cells_0.h5ad, bytes \d+ to \d+: .*{cause}.*last of 6 tries"):
        list(far)
    # Nothing is left behind that would harm the next pass.
    server.faults.clear()
    monkeypatch.setattr(http, "TIMEOUT_S", 30.0)
    assert len(list(far)) == len(far)


@pytest.mark.parametrize("fault", ["500", "cut", "hang"])
def test_opening_is_tried_again_too(fault, server, folder, misbehave):
    for name in DATA:
        server.faults.clear()
        misbehave(Fault(times=5, **TRANSIENT[fault]))
        check(loader_at(f"{server.url}/{name}"), loader_at(folder / name))
        assert server.faults[0].times == 0


@pytest.mark.parametrize("name", DATA)
def test_an_object_that_was_replaced_is_damage(name, own_folder):
    """Other bytes of the same size, and another time: what a new upload looks like."""
    with RangeServer(own_folder) as server:
        far = loader_at(f"{server.url}/{name}", chunk_size=100, preload_nchunks=1, batch_size=100, prefetch=0)
        list(far)  # all shard indexes are known
        batches = iter(far)
        next(batches)
        for path in [own_folder / name, *(own_folder / name).rglob("c/*")]:
            if path.is_file():
                content = path.read_bytes()
                path.unlink()
                path.write_bytes(content[::-1])
        with pytest.raises(storage.CorruptDataError, match="was changed or replaced after it was opened"):
            list(batches)


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("tags", [True, False])
def test_size_or_time_tell_where_there_is_no_etag(name, tags, own_folder):
    with RangeServer(own_folder, tags=tags) as server:
        far = loader_at(f"{server.url}/{name}", chunk_size=100, preload_nchunks=1, batch_size=100, prefetch=0)
        list(far)  # all shard indexes are known
        batches = iter(far)
        next(batches)
        for path in [own_folder / name, *(own_folder / name).rglob("c/*")]:
            if path.is_file():
                os.utime(path, (1, 1))
        with pytest.raises(storage.CorruptDataError, match="changed or replaced"):
            list(batches)


@pytest.mark.parametrize("name", DATA)
def test_an_object_that_was_removed_is_damage(name, own_folder):
    with RangeServer(own_folder) as server:
        far = loader_at(f"{server.url}/{name}", chunk_size=100, preload_nchunks=1, batch_size=100, prefetch=0)
        list(far)  # all shard indexes are known
        batches = iter(far)
        next(batches)
        (shutil.rmtree if (own_folder / name).is_dir() else os.remove)(own_folder / name)
        with pytest.raises(storage.CorruptDataError, match="removed after it was opened"):
            list(batches)


@pytest.mark.parametrize("name", ["zarr2", "zarr3"])
def test_a_chunk_that_is_an_object_and_is_replaced_or_removed_is_damage(name, folder, tmp_path):
    for what, words in (("replaced", "changed or replaced"), ("removed", "removed after it was opened")):
        shutil.copytree(folder / f"{name}.zarr", tmp_path / what)
        chunks = [path for path in (tmp_path / what / "X/data").rglob("*") if path.is_file() and path.name[0].isdigit()]
        with RangeServer(tmp_path) as server:
            far = loader_at(f"{server.url}/{what}")
            list(far)
            for path in chunks:
                if what == "removed":
                    path.unlink()
                else:
                    os.utime(path, (1, 1))
            with pytest.raises(storage.CorruptDataError, match=words):
                list(far)


def test_a_shard_index_that_lies_is_damage(own_folder):
    for path in (own_folder / "cells.zarr").rglob("X/data/c/*"):
        content = bytearray(path.read_bytes())
        content[-30] ^= 1
        path.write_bytes(content)
    with RangeServer(own_folder) as server, pytest.raises(storage.CorruptDataError, match="shard index.*checksum"):
        list(loader_at(f"{server.url}/cells.zarr"))


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("name", DATA)
def test_who_must_not_read_learns_it_at_opening(name, status, server):
    server.faults.append(Fault("status", times=10**6, status=status))
    with pytest.raises(PermissionError, match=f"{server.url}/{name}: .*status {status}: it was told to"):
        loader_at(f"{server.url}/{name}")


@pytest.mark.parametrize("name", DATA)
def test_options_that_do_not_suit_are_not_taken_for_a_missing_object(name, server):
    with pytest.raises(
        TypeError, match=rf"storage_options must be what the library of .*/{name} takes, got \['anon'\]"
    ):
        loader_at(f"{server.url}/{name}", storage_options={"anon": True})


def test_a_password_in_the_url_is_handed_in_and_not_told(server, folder):
    url = server.url.replace("://", "://someone:secret@")
    check(loader_at(f"{url}/cells_0.h5ad"), loader_at(folder / "cells_0.h5ad"))
    assert server.authorizations[-1] == b"Basic " + base64.b64encode(b"someone:secret")
    with pytest.raises(FileNotFoundError, match="127.0.0.1.*nothing.h5ad") as caught:
        loader_at(f"{url}/nothing.h5ad")
    assert "secret" not in str(caught.value)


def test_files_of_a_server_share_its_connections(server):
    far = Loader(chunk_size=50, preload_nchunks=4, batch_size=200, max_requests=8, obs_columns=[])
    far.add_paths([f"{server.url}/cells_0.h5ad"] * 12)
    assert len(list(far)) == 18
    assert server.n_connections <= 8


@pytest.mark.parametrize("name", ["nothing.zarr", "nothing.h5ad", "nothing"])
def test_what_is_not_there(name, server):
    with pytest.raises(FileNotFoundError, match=name):
        Loader().add_paths([f"{server.url}/{name}"])


def test_nobody_at_home():
    with pytest.raises(ConnectionError, match="127.0.0.1.*last of 6 tries"):
        Loader().add_paths(["http://127.0.0.1:9/cells.h5ad"])


@pytest.mark.parametrize("prefetch", [1, 4])
def test_a_pass_that_is_left_ends_at_once(prefetch, server, monkeypatch):
    far = loader_at(f"{server.url}/cells.zarr", chunk_size=1, preload_nchunks=100, prefetch=prefetch)
    list(far)  # the shard indexes are known, the connections open
    before_it = set(threading.enumerate())
    monkeypatch.setattr(http, "TIMEOUT_S", 10**6)  # nothing else would end the wait for an answer
    server.faults.append(Fault("hang", times=10**6))
    server.most_open = 0
    far = iter(far)
    waiting = threading.Thread(target=lambda: next(far, None), daemon=True)
    waiting.start()
    deadline = time.monotonic() + 100
    while server.most_open < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert server.most_open >= 4
    far.close()
    assert not [thread for thread in set(threading.enumerate()) - before_it if thread.name.startswith("annbatch-")]


SCRIPT = """
import functools, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background are started with it ignored
from annbatch import Loader
from annbatch.storage.far import http, reading
http.TIMEOUT_S = 10**6  # nothing else would end the wait for an answer
reading.merged = functools.partial(reading.merged, gap=-1)  # a request for every chunk
loader = Loader(chunk_size=1, preload_nchunks=300, batch_size=50, prefetch=int(sys.argv[2]), max_requests=128)
loader.use_collection(sys.argv[1])
list(loader)  # the shard indexes are known
print("open", flush=True)
sys.stdin.readline()
try:
    for batch in loader:
        pass
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_ctrl_c_ends_at_once(prefetch, server):
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, f"{server.url}/cells.zarr", str(prefetch)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": f"{REPOSITORY}:{os.environ.get('PYTHONPATH', '')}"},
    )  # fmt: skip
    try:
        assert child.stdout.readline() == "open\n"
        server.faults.append(Fault("hang", times=10**6))
        server.most_open = 0
        child.stdin.write("go\n")
        child.stdin.flush()
        deadline = time.monotonic() + 100
        while server.most_open < 128 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert server.most_open == 128
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=240)
        assert out == "interrupted\n"
        assert child.returncode == 0
    finally:
        child.kill()


def test_bytes_in_flight_are_bounded(server):
    url = f"{server.url}/cells_0.h5ad"
    with_bound = Loader(chunk_size=1, preload_nchunks=300, batch_size=300, max_in_flight="4kB", obs_columns=[])
    with_bound.add_paths([url])
    queue = fetch.fetcher(128, 4000)
    most = 0
    take = queue.budget.take

    def watched(n_bytes, cancel, *, wait):
        nonlocal most
        taken = take(n_bytes, cancel, wait=wait)
        most = max(most, queue.budget._taken)
        return taken

    queue.budget.take = watched
    try:
        assert len(list(with_bound)) == 1
    finally:
        del queue.budget.take
    assert most <= max(4000, 1 << 17)
    assert queue.budget._taken == 0


def test_a_forked_worker_reads_by_itself(server, folder):
    torch_data = pytest.importorskip("torch.utils.data", reason="torch is not installed")
    far, local = loader_at(f"{server.url}/cells.zarr", prefetch=1), loader_at(folder / "cells.zarr")
    list(far)  # this process has connections and threads of its own

    def rows_of(loader):
        workers = torch_data.DataLoader(loader, batch_size=None, num_workers=2, multiprocessing_context="fork")
        return np.concatenate([np.asarray(batch["index"]) for batch in workers])

    rows = [rows_of(loader) for loader in (far, local)]
    np.testing.assert_array_equal(np.sort(rows[0]), np.sort(rows[1]))
    assert len(rows[0]) == local.n_obs
    list(far)
