"""Where a collection is: a Zarr group in a local folder, one in another kind of store, or a folder of h5ad files."""

from __future__ import annotations

import json
import os
import tempfile
from abc import ABC, abstractmethod
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from annbatch._shared.collection_format import (
    H5AD_SUFFIX,
    MARKER,
    WORK_FOLDER,
    dataset_number,
    is_h5ad_collection,
    is_marked,
    sorted_datasets,
)
from annbatch.storage import CorruptDataError
from annbatch.storage.errors import damage_named
from annbatch.storage.listing import LISTING, Listing, being_put_in_place, check_format
from annbatch.storage.local_zarr import check_zarr_format
from annbatch.storage.manifest import manifest_digest
from annbatch.storage.opening import check_not_empty, check_store, holds, open_group, open_hdf5

from .building.files import replace_text
from .building.journal import WorkFolder
from .building.known import NOTE, noted_sources
from .building.options import Target
from .building.schema import SRC_PATH
from .building.warn import warn_user
from .root import DOCUMENT, Root, read_root, root_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from os import PathLike

    import h5py
    import zarr

    from .building.inputs.inputs import Input

# Attribute of a collection that is no folder: datasets that are being copied to it.
_UNPUBLISHED = "annbatch-unpublished"


def place_of(
    group: zarr.Group | str | PathLike[str], *, h5ad: bool = False, mode: Literal["a", "r", "r+"] = "a"
) -> Place:
    """Find out where a collection is. Nothing is made, except a group at a URL with ``mode="a"``."""
    import zarr
    from zarr.storage import LocalStore

    check_not_empty(group, "group")
    if h5ad:
        if isinstance(group, zarr.Group):
            msg = "is_collection_h5ad needs the path of a folder, got a zarr.Group"
            raise TypeError(msg)
        return H5Folder(Path(os.fspath(group)))
    if isinstance(group, zarr.Group):
        if group.metadata.zarr_format != 3:
            msg = f"{group.store_path} has Zarr format {group.metadata.zarr_format}, a collection needs 3"
            raise ValueError(msg)
        if isinstance(group.store, LocalStore):
            return LocalZarr(Path(group.store.root) / group.path)
        return OtherZarr(group)
    if "://" in str(group):
        return OtherZarr(zarr.open_group(str(group), mode=mode, zarr_format=3, use_consolidated=False))
    path = Path(os.fspath(group))
    return H5Folder(path) if is_h5ad_collection(path) else LocalZarr(path)


class Place(ABC):
    """Where a collection is."""

    _suffix = ""

    @abstractmethod
    def __str__(self) -> str: ...

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is anything."""

    @abstractmethod
    def members(self) -> list[str]:
        """Names of all that is there."""

    @abstractmethod
    def attributes(self) -> dict[str, Any]:
        """Attributes of the group, if it exists."""

    @abstractmethod
    def _open(self, name: str, *, writable: bool) -> Any:
        """Group of a dataset."""

    def open(self, name: str, *, writable: bool) -> Any:
        """Group of a dataset.

        Raises
        ------
        CorruptDataError
            It lacks what every dataset has.
        """
        return self._whole(name, self._open(name, writable=writable))

    def _whole(self, name: str, group: Any) -> Any:
        missing = [part for part in ("obs", "var") if part not in group]
        if missing:
            self.close(group)
            msg = f"{self}/{name} is no dataset of a collection: it has no {' and no '.join(missing)}; remove or restore it"
            raise CorruptDataError(msg)
        return group

    def close(self, group: Any) -> None:
        """Close what :meth:`open` returned."""
        if hasattr(group, "close"):
            group.close()

    @abstractmethod
    def target(self) -> AbstractContextManager[Target]:
        """Where a build puts its datasets."""

    def check(self) -> None:
        """Refuse what is no collection.

        Raises
        ------
        ValueError
            Something else is there.
        """
        if not is_marked(self.attributes()):
            members = self.members()
            if members and all(dataset_number(name, self._suffix) is not None for name in members):
                msg = f"{self} holds datasets of a collection, but nothing says that it is one: zarr.json is missing or damaged; copy that file again from where the collection came from"
                raise CorruptDataError(msg)
            if members:
                msg = f"{self} exists and is no collection: it holds {', '.join(sorted(members)[:5])}; choose another place"
                raise ValueError(msg)

    def check_all_there(self) -> None:
        """Raise CorruptDataError when a dataset is missing of those that the collection lists."""
        Listing.of(self.attributes(), self).check_all_there(set(self._stored()).__contains__)

    def _stored(self) -> list[str]:
        """Names of all that is there, and of what is not to be seen yet."""
        return self.members()

    def names(self) -> list[str]:
        """Names of the datasets, in the order of their numbers."""
        return sorted_datasets(self.members(), self._suffix)

    def noted(self) -> Iterator[tuple[Any, Sequence[str]]]:
        """What each dataset notes of its inputs, see :func:`held_sources`."""
        for name in self.names():
            group = self.open(name, writable=False)
            try:
                yield noted_sources(group["obs"].get(SRC_PATH))
            finally:
                self.close(group)

    def open_input(self, name: str) -> Input:
        """A dataset that is there already, to see what it holds."""
        from .building.inputs.inputs import input_of_group

        return input_of_group(f"{self}/{name}", self._open_to_look(name), owned=True)

    def _open_to_look(self, name: str) -> Any:
        return self.open(name, writable=False)


class _Folder(Place):
    """A local folder; a relative path means the one it was when it was given."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._given = str(root)

    def __str__(self) -> str:
        return self._given

    def exists(self) -> bool:
        return self.root.exists()

    def members(self) -> list[str]:
        if not self.root.exists():
            return []
        if not self.root.is_dir():
            msg = f"{self.root} exists and is no folder; choose another place"
            raise ValueError(msg)
        hidden = being_put_in_place(self.root)
        return [p.name for p in self.root.iterdir() if p.name not in hidden and self._is_member(p)]

    def _is_member(self, path: Path) -> bool:
        return not path.name.startswith(".")  # our own work folder, and what systems leave behind

    @contextmanager
    def target(self) -> Iterator[Target]:
        yield Target(self.root, self._suffix, self._mark, self.names, self.open_input, self.noted)

    def _mark(self) -> None:
        """Make the folder a collection."""


class H5Folder(_Folder):
    """A folder of h5ad files; it has no marker but their names."""

    _suffix = H5AD_SUFFIX

    def attributes(self) -> dict[str, Any]:
        """Those of a collection, unless the folder holds other files too."""
        strangers = [name for name in self.members() if dataset_number(name, self._suffix) is None]
        return {} if strangers else MARKER

    def _open(self, name: str, *, writable: bool) -> h5py.File:
        import h5py

        with damage_named(f"{self}/{name}"):
            return h5py.File(self.root / name, "r+") if writable else open_hdf5(self.root / name)


class LocalZarr(_Folder):
    """A Zarr group in a local folder."""

    # What tells the root's metadata document, as it was read last, from others; and what it says.
    _known: tuple[tuple[int, ...], Root] = (), Root({})
    # The document, and the listing in it.
    _listed: tuple[Root, Listing] = Root({}), Listing("", {})

    def attributes(self) -> dict[str, Any]:
        """Attributes in its zarr.json."""
        return dict(self._root().attributes)

    def _listing(self) -> Listing:
        root = self._root()
        if self._listed[0] is not root:
            self._listed = root, Listing.of(root.attributes, self.root)
        return self._listed[1]

    def _stored(self) -> list[str]:
        # Those, too, that are hidden as long as the journal lists them: they may be in the listing already.
        return [path.parent.name for path in self.root.glob(f"*/{DOCUMENT}")]

    def _open(self, name: str, *, writable: bool) -> zarr.Group:
        import zarr

        check_format(self.root, name)
        check_store(self.root / name)
        self._listing().check(name)
        with damage_named(f"{self}/{name}"):
            return zarr.open_group(self.root / name, mode="r+" if writable else "r", use_consolidated=False)

    def _open_to_look(self, name: str) -> Any:
        # Quickly: every addition looks at one.
        return self._whole(name, open_group(self.root / name, quick=True))

    def noted(self) -> Iterator[tuple[Any, Sequence[str]]]:
        """What each dataset notes of its inputs, from one small document of each."""
        import zarr

        for name in self.names():
            folder = self.root / name / "obs" / SRC_PATH
            try:
                attributes = json.loads((folder / "zarr.json").read_text())["attributes"]
            except (OSError, ValueError, KeyError):
                attributes = {}
            if NOTE in attributes:
                yield attributes[NOTE], ()
            elif folder.exists():
                yield noted_sources(zarr.open_group(folder, mode="r", use_consolidated=False))

    def take_in(self, dataset: Path, key: str | None) -> None:
        """Move a finished dataset here, its marker last."""
        if key is not None:
            (self.root / key).parent.mkdir(parents=True, exist_ok=True)
            dataset.rename(self.root / key)
            return
        self.root.mkdir(parents=True, exist_ok=True)
        marker = (dataset / "zarr.json").read_text()
        for path in dataset.iterdir():
            if path.name != "zarr.json":
                path.rename(self.root / path.name)
        replace_text(self.root / "zarr.json", marker, dataset)

    def scratch_parent(self) -> Path:
        """Folder on the same file system."""
        self.root.mkdir(parents=True, exist_ok=True)
        return self.root

    def _is_member(self, path: Path) -> bool:
        """Whether a name is one of a Zarr hierarchy.

        Of format 2 too, so that such a group is not taken for an empty folder.
        """
        return path.name in (".zgroup", ".zarray") or not (path.name.startswith(".") or path.name == "zarr.json")

    def _root(self) -> Root:
        path = self.root / DOCUMENT
        try:
            found = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return Root({})
        # Of many datasets it is megabytes, and a call asks for it several times.
        stamp = found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
        if stamp == self._known[0]:
            return self._known[1]
        root = read_root(path)
        kind = root.document.get("node_type")
        if kind not in ("group", "array"):
            msg = f"{path} is damaged: it is neither of a group nor of an array"
            raise CorruptDataError(msg)
        if kind != "group":
            msg = f"{self.root} is a Zarr {kind}, not a group; choose another place"
            raise ValueError(msg)
        check_zarr_format(self.root, root.document)
        self._known = stamp, root
        return root

    def _mark(self) -> None:
        self._write_root(self._listing().digests)

    def relist(self, names: Collection[str] | None = None) -> None:
        """Take datasets as they are now for those that belong here; None: all that are there, and no others.

        Raises
        ------
        BusyError
            Another process is writing.
        """
        with WorkFolder(self.root):
            kept = {} if names is None else self._listing().digests
            self._write_root({name: digest for name, digest in kept.items() if name not in (names or ())})

    def _write_root(self, listed: Mapping[str, str]) -> None:
        """Write what the root says of the collection, beside what others made it say.

        Parameters
        ----------
        listed
            Digests of datasets that are not to be asked for theirs.
        """
        root = self._root()
        if not root.document:
            root = Root({"zarr_format": 3, "node_type": "group"})
        # Of those, too, that are hidden as long as the journal lists them: that they belong here is decided.
        names = sorted_datasets(self._stored())
        new = {}
        for name in names:
            if name not in listed:
                with suppress(CorruptDataError):  # said to whoever reads it; another addition may list it
                    new[name] = manifest_digest(f"{self.root}/{name}") or ""
        text = root_text(self.root, root, {**root.attributes, **MARKER, LISTING: {**listed, **new}}, names)
        if text is not None:
            # In one place, in the write that publishes: through a network, looking at each node would take long.
            replace_text(self.root / DOCUMENT, text, self.root / WORK_FOLDER)


class OtherZarr(Place):
    """A Zarr group in memory, in an object store, in a zip file: whatever has no folders to rename.

    Datasets are built in a temporary folder of this machine and copied. An attribute of the group lists them until all
    are there, and readers take no notice of them; it goes in the same write in which the marker comes. A shard is in
    memory while it is copied. Metadata follow chunks, so that nobody takes half a dataset for a whole one, but in stores that do not
    take chunks of an array that they do not know (icechunk, where nobody sees anything before it is committed).
    """

    def __init__(self, group: zarr.Group) -> None:
        import zarr

        self._given = group
        # Consolidated metadata is a copy that does not know what was added since.
        self._group = zarr.open_group(group.store, path=group.path, mode="r", use_consolidated=False)

    def __str__(self) -> str:
        return str(self._group.store_path)

    def check_all_there(self) -> None:
        """See the base class."""
        Listing.of(self.attributes(), self).check_all_there(
            set(self._stored()).__contains__, partial(holds, self._group)
        )

    def exists(self) -> bool:
        """Whether there is a group: it was opened."""
        return True

    def members(self) -> list[str]:
        """Names of all that is there, without what an interrupted call was copying."""
        hidden = self.attributes().get(_UNPUBLISHED, ())
        return [name for name, _ in self._group.members() if name not in hidden]

    def attributes(self) -> dict[str, Any]:
        """Attributes as they are now."""
        import zarr

        group = zarr.open_group(self._group.store, path=self._group.path, mode="r", use_consolidated=False)
        return dict(group.attrs)

    def _open(self, name: str, *, writable: bool) -> zarr.Group:
        import zarr

        path = "/".join(part for part in (self._group.path, name) if part)
        store = self._given.store
        mode: Literal["r", "r+"] = "r+" if writable and not store.read_only else "r"
        return zarr.open_group(store, path=path, mode=mode, use_consolidated=False)

    @contextmanager
    def target(self) -> Iterator[Target]:
        """A temporary folder of this machine; what is built there is copied in the end."""
        self._remove_unpublished()
        with tempfile.TemporaryDirectory(prefix="annbatch-") as scratch:
            root = Path(scratch)
            before = self.names()
            yield Target(root, "", lambda: None, lambda: before, self.open_input, self.noted)
            names = sorted_datasets(path.name for path in root.iterdir())
            self._set_attributes({_UNPUBLISHED: names})
            for name in names:
                self.take_in(root / name, name)
            new = {name: manifest_digest(f"{root}/{name}") or "" for name in names}
            self._set_attributes({**MARKER, LISTING: {**self.attributes().get(LISTING, {}), **new}})

    def _remove_unpublished(self) -> None:
        """Remove what an interrupted call had copied."""
        from zarr.core.sync import sync

        store = self._given.store
        if store.read_only:
            msg = f"{self} was opened read-only; open it for writing to add to it"
            raise ValueError(msg)
        names = self.attributes().get(_UNPUBLISHED, ())
        if not names:
            return
        if not store.supports_deletes:
            msg = f"{self} holds unfinished datasets of an interrupted call ({', '.join(names)}), and its store cannot remove them"
            raise ValueError(msg)
        warn_user(f"{self}: removed the unfinished work of an interrupted call")
        for name in names:
            sync(store.delete_dir("/".join(part for part in (self._group.path, name) if part)))
        self._set_attributes({})

    def take_in(self, dataset: Path, key: str | None) -> None:
        """Copy a finished dataset here, its marker last."""
        prefix = "/".join(part for part in (self._group.path, key or "") if part)
        files = sorted(path for path in dataset.rglob("*") if path.is_file())
        upwards = sorted((path for path in files if path.name == DOCUMENT), key=lambda path: -len(path.parts))
        chunks = [path for path in files if path.name != DOCUMENT]
        store = self._given.store
        try:
            _copy_into(store, prefix, dataset, chunks[:1])
        except KeyError:
            _copy_into(store, prefix, dataset, [*reversed(upwards), *chunks])
        else:
            _copy_into(store, prefix, dataset, [*chunks[1:], *upwards])

    def scratch_parent(self) -> None:
        """The system's own."""

    def _set_attributes(self, changes: dict[str, Any]) -> None:
        """Change attributes of the group, in one write; what was unpublished is not any more."""
        import zarr

        group = zarr.open_group(self._given.store, path=self._given.path, mode="r+", use_consolidated=False)
        kept = {name: value for name, value in group.attrs.items() if name != _UNPUBLISHED}
        group.attrs.put({**kept, **changes})


def _copy_into(store: Any, prefix: str, root: Path, files: Iterable[Path]) -> None:
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    buffer = default_buffer_prototype().buffer
    for path in files:
        name = "/".join((*([prefix] if prefix else []), *path.relative_to(root).parts))
        sync(store.set(name, buffer.from_bytes(path.read_bytes())))


__all__ = ["H5Folder", "LocalZarr", "OtherZarr", "Place", "place_of"]
