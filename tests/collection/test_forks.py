"""A process that was forked while another thread of its parent builds a collection builds on its own, and is as it was before."""

from __future__ import annotations

import os
import signal
import threading

import anndata as ad
import h5py
import numpy as np
import pytest
import zarr

from annbatch.collection.building.inputs import held, spool
from annbatch.collection.building.output import sink

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


class Gate:
    """Where a thread of the parent stands while it forks."""

    def __init__(self):
        self.reached, self.may_end = threading.Event(), threading.Event()

    def wait(self):
        self.reached.set()
        assert self.may_end.wait(60)


def says_yes_in_a_child(work, ask):
    """Whether a child is told so by `ask`, which was forked while a thread of its parent stood at the gate in `work`."""
    gate = Gate()
    thread = threading.Thread(target=work, args=(gate,))
    thread.start()
    try:
        assert gate.reached.wait(60)
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(30)  # ends one that waits
            try:
                os._exit(0 if ask() else 1)
            finally:
                os._exit(2)
    finally:
        gate.may_end.set()
        thread.join(60)
    return os.waitpid(child, 0)[1] == 0


class Spec:
    """An input that is open once the gate is."""

    def __init__(self, gate=None):
        self._gate = gate
        self.is_closed = False

    def open(self, scratch):
        if self._gate:
            self._gate.wait()
        return self

    def close(self):
        self.is_closed = True


def test_an_input_that_the_parent_is_opening(tmp_path):
    def work(gate):
        with held.held_input("cells", Spec(gate), tmp_path):
            pass

    def ask():
        own = Spec()
        with held.held_input("cells", own, tmp_path) as source:
            return source is own

    assert says_yes_in_a_child(work, ask)
    held.close_inputs()


def test_inputs_that_the_parent_is_counting(tmp_path):
    parents = Spec()
    with held.held_input("others", parents, tmp_path):
        pass

    def work(gate):
        with held._held_lock:
            gate.wait()

    def ask():
        with held.held_input("cells", Spec(), tmp_path):
            return not parents.is_closed  # by a child that has not opened it

    assert says_yes_in_a_child(work, ask)
    held.close_inputs()
    assert parents.is_closed


def test_text_that_the_parent_is_copying(tmp_path):
    texts = np.array(["a", "bé"], dtype=object)

    class Stored:
        shape, chunks = (2,), (2,)

        def __getitem__(self, rows):
            return texts[rows]

    def work(gate):
        with spool._copying:
            gate.wait()

    def ask():
        return spool.SpooledText(Stored(), tmp_path)[:].tolist() == ["a", "bé"]

    assert says_yes_in_a_child(work, ask)


def test_settings_of_anndata_that_the_parent_has_changed_for_now(tmp_path):
    changed = ("allow_write_nullable_strings", "auto_shard_zarr_v3")
    before = {key: getattr(ad.settings, key) for key in changed if key in dir(ad.settings)}
    store = zarr.storage.MemoryStore()

    class Root:
        def __init__(self, gate):
            self._gate = gate

        def __getitem__(self, name):
            self._gate.wait()
            return zarr.open_group(store, mode="w", zarr_format=3)

    def work(gate):
        sink.write_element(Root(gate), "uns/x", np.arange(2))

    def ask():
        if {key: getattr(ad.settings, key) for key in before} != before:
            return False
        with h5py.File(tmp_path / "a.h5", "w") as file:
            sink.write_element(file, "x", np.arange(3))
            return file["x"][:].tolist() == [0, 1, 2]

    with ad.settings.override(allow_write_nullable_strings=False):
        before["allow_write_nullable_strings"] = False
        assert says_yes_in_a_child(work, ask)
        assert not ad.settings.allow_write_nullable_strings
