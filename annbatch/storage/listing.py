"""What a collection says of its datasets, and whether it is true.

The root group of a collection that annbatch wrote has an attribute ``annbatch-datasets``: the names of its datasets, each with the
digest of its manifest (storage/manifest.py), "" where it has none. So a dataset that is gone, or another one in its place, is
noticed. One that is not listed was added by someone else, and is as welcome as the others.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from annbatch._shared.collection_format import JOURNAL, WORK_FOLDER, dataset_number

from .errors import CorruptDataError
from .manifest import is_set_aside, manifest_digest, read_document

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Self

__all__ = ["LISTING", "OF_FORMAT_2", "Listing", "being_put_in_place", "check_format"]

LISTING = "annbatch-datasets"
# What is wrong with a dataset of Zarr format 2, and what to do.
OF_FORMAT_2 = (
    "was written in Zarr format 2, and readers of a collection, which has format 3, leave it out; read it with anndata, set "
    "`anndata.settings.zarr_write_format = 3`, and write it again"
)
_ON_PURPOSE = "if that was on purpose, `annbatch verify PATH --accept` takes the collection as it is now"


def check_format(collection: object, name: str) -> None:
    """Raise CorruptDataError when a dataset in a local folder is a group of Zarr format 2.

    anndata 0.12 writes that unless it is told otherwise, also over a dataset that was read for a change. Readers of the collection,
    which is of format 3, would leave it out.
    """
    folder = Path(str(collection), name)
    if (folder / ".zgroup").exists() and not (folder / "zarr.json").exists():
        raise _of_format_2(collection, name)


def _of_format_2(collection: object, name: str) -> CorruptDataError:
    return CorruptDataError(f"{collection}/{name} {OF_FORMAT_2}")


def being_put_in_place(folder: Path) -> frozenset[str]:
    """Names of datasets that an addition to a collection in a local folder has not put in place yet, all of them.

    Raises
    ------
    CorruptDataError
        What says so (collection/building/journal.py) is damaged.
    """
    path = folder / WORK_FOLDER / JOURNAL
    try:
        return frozenset(json.loads(read_document(path)).get("names", ()))
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except (ValueError, AttributeError, TypeError, RecursionError):
        msg = f"{path} is damaged; remove {path.parent}, and run the call that wrote it again"
        raise CorruptDataError(msg) from None


class Listing(NamedTuple):
    """The datasets that a collection lists.

    Attributes
    ----------
    place
        The collection: the path of a local folder, or the name of another place.
    digests
        Of the manifest of each dataset, by name; empty where the collection says nothing of its datasets.
    """

    place: str
    digests: Mapping[str, str]

    @classmethod
    def of(cls, attributes: Mapping[str, Any], place: object) -> Self:
        """Take it from the attributes of a collection.

        Raises
        ------
        CorruptDataError
            It is damaged.
        """
        listed = attributes.get(LISTING, {})
        are_named = isinstance(listed, dict) and all(dataset_number(name) is not None for name in listed)
        if not are_named or not all(isinstance(digest, str) for digest in listed.values()):
            msg = f"{place}: the attribute {LISTING} is damaged"
            raise CorruptDataError(msg)
        return cls(str(place), listed)

    def check_all_there(self, is_there: Callable[[str], bool], holds: Callable[[str], bool] | None = None) -> None:
        """Raise CorruptDataError when a dataset is missing.

        Parameters
        ----------
        is_there
            Whether there is a dataset of a name.
        holds
            Whether something is stored at a key below a collection that is in no local folder; asked of a missing dataset only.
        """
        for name in self.digests:
            if not is_there(name):
                if holds is None:
                    check_format(self.place, name)
                elif holds(f"{name}/.zgroup"):
                    raise _of_format_2(self.place, name)
                raise self._missing(name)

    def check(self, name: str) -> None:
        """Raise CorruptDataError when a dataset in a local folder is missing, or another one than was written there."""
        expected = self.digests.get(name)
        if not expected or is_set_aside(self.place):
            return
        try:
            found = manifest_digest(f"{self.place}/{name}")
        except (FileNotFoundError, NotADirectoryError):
            check_format(self.place, name)
            raise self._missing(name) from None
        if found is not None and found != expected:
            msg = f"{self.place}/{name} is not the dataset that was written there: it has another manifest, or none; {_ON_PURPOSE}"
            raise CorruptDataError(msg)

    def damage(self) -> Iterator[CorruptDataError]:
        """Everything that is not as a collection in a local folder lists it."""
        for name in self.digests:
            try:
                self.check(name)
            except CorruptDataError as error:
                yield error

    def _missing(self, name: str) -> CorruptDataError:
        return CorruptDataError(
            f"{self.place}/{name} is missing; copy it again from where the collection came from; {_ON_PURPOSE}"
        )
