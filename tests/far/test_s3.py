"""An S3 server of this machine, from the URL to the batch."""

from __future__ import annotations

import json

import numpy as np
import pytest
from zarr.core.sync import sync

from annbatch import Loader, MappedCollection, storage
from annbatch.cli import main
from annbatch.storage.far import clients, fetch, signed
from annbatch.storage.far.clients import fsspec_objects
from annbatch.storage.far.stores import HttpObjects
from benchmarks.far.server import Fault, RangeServer
from tests.cells import cells, write

from .test_same_batches import SETTINGS, check, loader_at

s3fs = pytest.importorskip("s3fs", reason="s3fs, the S3 client of fsspec, is not installed")
moto = pytest.importorskip("moto.server", reason="moto[server], a local S3 server, is not installed")
pytestmark = pytest.mark.filterwarnings("default")  # moto's and botocore's own


@pytest.fixture(scope="module")
def options(folder):
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    host, port = running.get_host_and_port()
    options = {"endpoint_url": f"http://{host}:{port}", "key": "test", "secret": "test"}
    files = s3fs.S3FileSystem(**options)
    files.mkdir("cells")
    for name in ("cells.zarr", "zarr2.zarr"):
        files.put(str(folder / name), f"cells/{name}", recursive=True)
    files.put(str(folder / "cells_0.h5ad"), "cells/cells_0.h5ad")
    yield options
    running.stop()


@pytest.mark.parametrize("name", ["cells.zarr", "cells_0.h5ad", "zarr2.zarr"])
@pytest.mark.parametrize("prefetch", [1, 3])
def test_as_read_from_disk(name, prefetch, options, folder):
    far, local = loader_at(f"s3://cells/{name}", storage_options=options, prefetch=prefetch), loader_at(folder / name)
    for _ in range(2):
        check(far, local)


def test_all_settings(options, folder, tmp_path):
    given = {"dense": True, "layers": ["twice"], "cache": tmp_path, "max_requests": 8, "max_in_flight": "1MB"}
    far = loader_at("s3://cells/cells.zarr", storage_options=options, **given)
    local = loader_at(folder / "cells.zarr", dense=True, layers=["twice"])
    for _ in range(2):
        before = fetch.counts["requests"]
        check(far, local)
    assert fetch.counts["requests"] == before


def test_names_beyond_ascii_are_not_taken_for_each_other(options, folder):
    files = s3fs.S3FileSystem(**options)
    for number, name in enumerate(("é.h5ad", "?.h5ad")):
        files.put(str(folder / f"cells_{number}.h5ad"), f"cells/{name}")
    far = Loader(chunk_size=4, preload_nchunks=4, batch_size=16, storage_options=options, shuffle=False)
    local = Loader(chunk_size=4, preload_nchunks=4, batch_size=16, shuffle=False)
    far.add_paths(["s3://cells/é.h5ad", "s3://cells/?.h5ad"])
    local.add_paths([folder / "cells_0.h5ad", folder / "cells_1.h5ad"])
    check(far, local)


@pytest.mark.parametrize("signs", [True, False])
def test_two_slashes_in_a_row_are_part_of_a_key(signs, options, tmp_path, monkeypatch):
    if not signs:
        monkeypatch.setattr(clients, "can_be_signed", lambda _: False)
    files = s3fs.S3FileSystem(**options)
    for fmt, folder in (("h5ad", "cells/"), ("zarr3", "cells/a/")):
        local = write(cells(20, seed=0), tmp_path / "tiny", fmt)
        for path in [local, *local.rglob("*")]:
            if path.is_file():
                files.pipe_file(f"{folder}/{path.relative_to(tmp_path)}", path.read_bytes())
        check(loader_at(f"s3://{folder}/{local.name}", storage_options=options), loader_at(local))


def test_also_where_the_bucket_is_in_the_name_of_the_server(monkeypatch):
    monkeypatch.setattr(signed, "_is_special", lambda *_: False)  # whatever this machine needs for the way out
    files = s3fs.S3FileSystem(key="test", secret="test", asynchronous=True, client_kwargs={"region_name": "eu-west-1"})
    objects = fsspec_objects(files, "cells//a b.h5ad")
    server, path, _ = sync(objects._place(""))
    assert server.text("") == "https://cells.s3.amazonaws.com/"
    assert server._target(path).startswith("//a%20b.h5ad?")


@pytest.mark.parametrize("name", ["zarr2.zarr", "cells_0.h5ad"])
def test_stores_and_files_that_are_handed_over(name, options, folder):
    obstore = pytest.importorskip("obstore", reason="obstore is not installed")
    store = obstore.store.S3Store(
        "cells", endpoint=options["endpoint_url"], access_key_id="test", secret_access_key="test",
        region="us-east-1", client_options={"allow_http": True},
    )  # fmt: skip
    files = s3fs.S3FileSystem(**options)
    places = [(store, name), (files, f"cells/{name}"), *([files.open(f"cells/{name}")] if "h5ad" in name else [])]
    for place in places:
        far = Loader(rng=np.random.default_rng(0), **SETTINGS).add_paths([place])
        check(far, loader_at(folder / name))


def test_the_command_line(options, folder, capsys):
    given = ["--storage-options", json.dumps(options)]
    assert main(["info", "s3://cells/cells_0.h5ad", *given]) == 0
    assert "300 rows x 40 genes" in capsys.readouterr().out
    bench = ["bench", "s3://cells/cells_0.h5ad", "--batch-size", "50", "--seconds", "0.01", "--quiet", "--json", *given]
    assert main(bench) == 0
    assert json.loads(capsys.readouterr().out)["requests"][0]["requests_per_million_rows"] > 0


def test_options_for_each_protocol(options, folder):
    with RangeServer(folder) as server:
        far = Loader(rng=np.random.default_rng(0), storage_options={"s3": options}, **SETTINGS)
        far.add_paths(["s3://cells/cells_0.h5ad", f"{server.url}/cells_1.h5ad"])
        local = Loader(rng=np.random.default_rng(0), **SETTINGS)
        check(far, local.add_paths([folder / "cells_0.h5ad", folder / "cells_1.h5ad"]))
    assert storage.FarOptions({"headers": {"a": "b"}}).storage_options_of("http://x/y") == {"headers": {"a": "b"}}
    each = storage.FarOptions({"http": {"a": 1}, "s3": {"b": 2}, "s3a": {"c": 3}})
    found = {name: each.storage_options_of(f"{name}://x") for name in ("https", "s3", "s3a", "gs")}
    assert found == {"https": {"a": 1}, "s3": {"b": 2}, "s3a": {"c": 3}, "gs": {}}


def test_mapped_collection(options, folder):
    far = MappedCollection(["s3://cells/cells_0.h5ad"], obs_keys=["label"], storage_options=options)
    local = MappedCollection([folder / "cells_0.h5ad"], obs_keys=["label"])
    np.testing.assert_array_equal(far[7]["X"], local[7]["X"])
    assert far[7]["label"] == local[7]["label"]


@pytest.mark.parametrize("name", ["cells.zarr", "cells_0.h5ad"])
def test_an_object_that_was_replaced_is_damage(name, options):
    files = s3fs.S3FileSystem(**options)
    files.copy(f"cells/{name}", f"cells/copy_{name}", recursive=name.endswith("zarr"))
    far = loader_at(f"s3://cells/copy_{name}", storage_options=options)
    list(far)
    for path in [f"cells/copy_{name}"] if name.endswith("h5ad") else files.find(f"cells/copy_{name}"):
        if path.endswith("h5ad") or "/X/data/c/" in path:
            files.pipe_file(path, files.cat_file(path)[::-1])
    with pytest.raises(storage.CorruptDataError, match="changed or replaced after it was opened"):
        list(far)


def test_credentials_that_do_not_do(like_s3, monkeypatch):
    async def refuse(*_args, **_kwargs):
        msg = "The AWS Access Key Id you provided does not exist in our records."
        raise PermissionError(msg)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", refuse)
    monkeypatch.setattr(s3fs.S3FileSystem, "_info", refuse)
    server, url, options = like_s3
    server.faults.append(Fault("status", times=10**6, status=403))
    for name in ("cells.zarr", "cells_0.h5ad"):
        with pytest.raises(PermissionError, match="does not exist in our records"):
            Loader(storage_options=options, **SETTINGS).add_paths([f"{url}/{name}"])


@pytest.mark.parametrize("name", ["cells.zarr", "cells_0.h5ad"])
def test_no_credentials(name, options, monkeypatch, tmp_path):
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(variable, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(fetch, "N_TRIES", 1)
    with pytest.raises(PermissionError, match=f"{name}: Unable to locate credentials; set AWS_PROFILE"):
        Loader(storage_options={"endpoint_url": options["endpoint_url"]}).add_paths([f"s3://cells/{name}"])


@pytest.mark.parametrize("name", ["cells.zarr", "cells_0.h5ad"])
def test_options_that_the_library_does_not_know(name):
    with pytest.raises(
        TypeError, match=rf"storage_options must be what the library of s3://cells/{name} takes, got \['end'\]"
    ):
        Loader(storage_options={"end": "http://127.0.0.1:9"}).add_paths([f"s3://cells/{name}"])


@pytest.fixture
def like_s3(folder):
    """A server that answers whatever is signed, and what a URL and options for it are."""
    with RangeServer(folder.parent) as server:
        options = {"endpoint_url": server.url, "key": "test", "secret": "a secret"}
        yield server, f"s3://{folder.name}", options


@pytest.mark.parametrize("name", ["cells.zarr", "cells_0.h5ad"])
def test_s3fs_signs_and_does_not_ask(name, like_s3, folder, monkeypatch):
    calls = []
    before = s3fs.S3FileSystem._call_s3

    async def counted(self, *args, **kwargs):
        calls.append(args)
        return await before(self, *args, **kwargs)

    _, url, options = like_s3
    far = loader_at(f"{url}/{name}", storage_options=options)
    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    check(far, loader_at(folder / name))
    assert calls == []


def test_where_signed_urls_are_not_known_s3fs_asks(like_s3, folder, monkeypatch):
    n_refused = 0

    async def refuse(*_args, **_kwargs):
        nonlocal n_refused
        n_refused += 1
        msg = "the server answered with status 400: SigV2 is no more"
        raise ValueError(msg)

    monkeypatch.setattr(HttpObjects, "_ask", refuse)
    _, url, options = like_s3
    far, local = loader_at(f"{url}/cells.zarr", storage_options=options), loader_at(folder / "cells.zarr")
    n_at_opening = n_refused
    check(far, local)
    assert 1 <= n_refused <= n_at_opening + 1  # seen once


def test_a_signature_that_has_come_of_age_is_renewed(like_s3, folder, monkeypatch):
    server, url, options = like_s3
    far, local = loader_at(f"{url}/cells.zarr", storage_options=options), loader_at(folder / "cells.zarr")
    check(far, local)
    monkeypatch.setattr(signed, "_FRESH_S", 0.0)
    server.faults.append(Fault("status", times=3, status=403))
    check(far, local)
    assert server.faults[0].times == 0
    server.requests.clear()
    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", None)  # nobody needs it any more
    check(far, local)
    assert server.requests


@pytest.mark.parametrize(
    ("settings", "can"),
    [
        ({}, True),
        ({"anon": True}, True),
        ({"client_kwargs": {"region_name": "eu-west-1"}}, True),
        ({"config_kwargs": {"signature_version": "s3v4"}}, True),
        ({"client_kwargs": {"verify": False}}, False),
        ({"config_kwargs": {"proxies": {"https": "http://proxy"}}}, False),
        ({"requester_pays": True}, False),
        ({"s3_additional_kwargs": {"SSECustomerKey": "x"}}, False),
    ],
)
def test_unusual_settings_are_left_to_s3fs(settings, can):
    assert signed.can_be_signed(s3fs.S3FileSystem(**settings)) == can


def test_what_the_environment_says_of_the_way_to_a_server_is_left_to_s3fs(monkeypatch):
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert not signed._is_special("https", "s3.amazonaws.com")
    monkeypatch.setenv("AWS_CA_BUNDLE", "/etc/authorities")
    assert signed._is_special("https", "s3.amazonaws.com")
    assert not signed._is_special("http", "localhost")
    monkeypatch.setenv("http_proxy", "http://proxy:1")
    monkeypatch.setenv("no_proxy", "localhost")
    assert signed._is_special("http", "s3.amazonaws.com")
    assert not signed._is_special("http", "localhost")


def test_no_signature_in_the_text_of_an_error(like_s3, monkeypatch):
    server, url, options = like_s3
    far = loader_at(f"{url}/cells_0.h5ad", storage_options=options)
    server.faults.append(Fault("status", times=10**6))
    with pytest.raises(ConnectionError, match=r"cells_0.h5ad, bytes \d+ to \d+: .*status 503") as caught:
        list(far)
    assert "Signature" not in str(caught.value)


def test_what_is_not_there(options):
    for name in ("nothing.zarr", "nothing.h5ad"):
        with pytest.raises(FileNotFoundError, match=name):
            Loader(storage_options=options).add_paths([f"s3://cells/{name}"])
