"""Tables in every encoding: what anndata reads is the truth, files of old encodings are written by hand."""

from __future__ import annotations

import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from annbatch._shared.labels import code_dtype
from annbatch.storage import CorruptDataError, frames
from annbatch.storage.frames import FrameReader, read_frame
from tests.cells import write

# anndata 0.13 asks pandas 3 for an option that it has deprecated, each time it writes text.
pytestmark = pytest.mark.filterwarnings("ignore:The 'future.infer_string' option")

TYPES = ["b_cell", "t_cell", "nk"]
CODES = np.array([0, 2, 1, 1, -1, 0], dtype=np.int8)
NAMES = np.array([f"cell_{i}" for i in range(6)])
COUNTS = np.arange(6, dtype=np.int64) * 10


def labels_as_list(labels: frames.Labels) -> list[object]:
    return [None if code < 0 else labels.categories[code] for code in labels.codes]


def modern_obs() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(CODES, TYPES),
            "stage": pd.Categorical.from_codes(CODES, [3, 1, 2], ordered=True),
            "n_counts": COUNTS,
            "score": [0.5, np.nan, 1.5, 0.5, 2.5, -1.0],
            "keep": [True, False, True, True, False, False],
            "barcode": np.array(["AC", "GT", "AC", "\N{GREEK SMALL LETTER ALPHA}", "", "GT"], dtype=object),
            "passage": pd.array([1, None, 3, 1, 2, None], dtype="Int64"),
            "treated": pd.array([True, None, False, True, None, False], dtype="boolean"),
        },
        index=NAMES.astype(object),
    )


@pytest.fixture(params=["h5ad", "zarr2", "zarr3"])
def modern(request, tmp_path):
    """A file that this anndata wrote: its obs element and its obs in memory, as anndata reads it."""
    adata = ad.AnnData(np.zeros((6, 2), np.float32), obs=modern_obs())
    if request.param == "h5ad":
        write(adata, tmp_path / "a.h5ad")
        with h5py.File(tmp_path / "a.h5ad") as file:
            yield file["obs"], ad.read_h5ad(tmp_path / "a.h5ad").obs
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # anndata's own notes on zarr formats
            group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=int(request.param[-1]))
            ad.io.write_elem(group, "obs", adata.obs)
        yield zarr.open_group(tmp_path / "a.zarr", mode="r")["obs"], ad.io.read_elem(group["obs"])


def test_a_modern_table_equals_what_anndata_reads(modern):
    elem, expected = modern
    pd.testing.assert_frame_equal(read_frame(elem), expected)


def test_columns_come_in_the_order_asked_for(modern):
    elem, expected = modern
    pd.testing.assert_frame_equal(read_frame(elem, ["score", "cell_type"]), expected[["score", "cell_type"]])
    pd.testing.assert_frame_equal(read_frame(elem, []), expected[[]], check_column_type=False)


def test_the_columns_are_listed_without_reading_them(modern):
    elem, expected = modern
    reader = FrameReader(elem)
    assert reader.columns == tuple(expected.columns)
    assert reader.n_rows == 6
    assert reader.index_name is None


@pytest.mark.parametrize("name", list(modern_obs().columns))
def test_labels_stand_for_the_values(modern, name):
    elem, expected = modern
    labels = FrameReader(elem).labels(name)
    column = expected[name]
    assert labels_as_list(labels) == [None if pd.isna(value) else value for value in column]
    assert labels.codes.dtype == np.int8
    if not isinstance(column.dtype, pd.CategoricalDtype):
        assert labels.categories.tolist() == sorted(column.dropna().unique().tolist())
    else:
        assert labels.categories.tolist() == column.cat.categories.tolist()


def test_numbers_are_read_without_a_mask(modern):
    reader = FrameReader(modern[0])
    assert reader.numbers("n_counts").dtype == np.int64
    assert reader.numbers("keep").dtype == bool
    np.testing.assert_array_equal(reader.numbers("passage"), [1, np.nan, 3, 1, 2, np.nan])
    np.testing.assert_array_equal(reader.numbers("treated"), [1, np.nan, 0, 1, np.nan, 0])
    assert reader.numbers("cell_type") is None
    assert reader.numbers("stage") is None
    assert reader.numbers("barcode") is None


def test_text_is_numbered_across_pieces(modern, monkeypatch):
    elem, _ = modern
    expected = FrameReader(elem).labels("barcode")
    monkeypatch.setattr(frames, "_ROWS_AT_ONCE", 2)
    in_pieces = FrameReader(elem).labels("barcode")
    np.testing.assert_array_equal(in_pieces.codes, expected.codes)
    np.testing.assert_array_equal(in_pieces.categories, expected.categories)


def test_an_unknown_column_is_named_with_its_table(modern):
    elem, _ = modern
    with pytest.raises(KeyError, match=r"no column 'tissue' in .*obs; columns: cell_type, stage"):
        read_frame(elem, ["tissue"])


def test_nullable_text(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        obs = new_group(file, "0.2.0", ["donor"])
        donor = obs.create_group("donor")
        donor.attrs.update({"encoding-type": "nullable-string-array", "encoding-version": "0.1.0"})
        write_text(donor, "values", ["x", "", "hidden", "y", "x", "x"])
        donor["mask"] = np.array([False, True, True, False, False, False])
        reader = FrameReader(obs)
        assert labels_as_list(reader.labels("donor")) == ["x", None, None, "y", "x", "x"]
        assert reader.labels("donor").categories.tolist() == ["x", "y"]
        expected = pd.Series(pd.array(["x", None, None, "y", "x", "x"], dtype="string"), name="donor")
        pd.testing.assert_series_equal(read_frame(obs)["donor"].reset_index(drop=True), expected)


def test_text_that_misses_nan_is_read_as_pandas_3_means_it(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        obs = new_group(file, "0.2.0", ["donor"])
        donor = obs.create_group("donor")
        donor.attrs.update({"encoding-type": "nullable-string-array", "encoding-version": "0.1.0", "na-value": "NaN"})
        write_text(donor, "values", ["x", "", "", "y", "x", "x"])
        donor["mask"] = np.array([False, False, True, False, False, False])
        expected = pd.DataFrame({"donor": np.array(["x", "", np.nan, "y", "x", "x"], dtype=object)})
        pd.testing.assert_frame_equal(read_frame(obs).reset_index(drop=True), expected)
        assert labels_as_list(FrameReader(obs).labels("donor")) == ["x", "", None, "y", "x", "x"]


def test_nullable_numbers_without_a_mask_miss_nothing(tmp_path):
    """The first release with nullable columns left the mask out when no value was missing."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        obs = new_group(file, "0.2.0", ["passage"])
        obs.create_group("passage")["values"] = COUNTS
        assert FrameReader(obs).labels("passage").categories.tolist() == COUNTS.tolist()
        assert read_frame(obs)["passage"].tolist() == COUNTS.tolist()


def write_text(group, key, values):
    if isinstance(group, h5py.Group):
        group.create_dataset(key, data=np.array(values, dtype=object), dtype=h5py.string_dtype())
        group[key].attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    else:
        group.create_array(key, shape=len(values), dtype=str)[:] = np.array(values, dtype=object)


def new_group(file, version, columns):
    obs = file.create_group("obs")
    obs.attrs.update({"encoding-type": "dataframe", "encoding-version": version, "_index": "names"})
    obs.attrs["column-order"] = columns
    write_text(obs, "names", NAMES.tolist())
    return obs


@pytest.mark.parametrize("version", ["h5", 2, 3])
def test_categories_beside_the_columns(tmp_path, version):
    """anndata 0.7: codes in the column, categories in __categories, tied by a reference or a path."""
    if version == "h5":
        file = h5py.File(tmp_path / "a.h5", "w")
    else:
        file = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=version)
    obs = new_group(file, "0.1.0", ["cell_type", "n_counts"])
    write_text(obs.create_group("__categories"), "cell_type", TYPES)
    obs["__categories"]["cell_type"].attrs["ordered"] = True
    if version == "h5":
        obs["cell_type"] = CODES
        obs["n_counts"] = COUNTS
        obs["cell_type"].attrs["categories"] = obs["__categories"]["cell_type"].ref
    else:
        obs.create_array("cell_type", data=CODES)
        obs.create_array("n_counts", data=COUNTS)
        obs["cell_type"].attrs["categories"] = "__categories/cell_type"

    expected = pd.DataFrame(
        {"cell_type": pd.Categorical.from_codes(CODES, TYPES, ordered=True), "n_counts": COUNTS},
        index=pd.Index(NAMES.astype(object), name="names"),
    )
    pd.testing.assert_frame_equal(read_frame(obs), expected)
    labels = FrameReader(obs).labels("cell_type")
    np.testing.assert_array_equal(labels.codes, CODES)
    assert labels.categories.tolist() == TYPES
    if version == "h5":
        file.close()


COMPOUND = np.array(
    list(zip([name.encode() for name in NAMES], CODES, COUNTS, [b"x", b"y", b"x", b"", b"zz", b"x"], strict=True)),
    dtype=[("index", "S8"), ("cell_type", "i1"), ("n_counts", "i8"), ("donor", "S2")],
)


@pytest.fixture(params=["h5", 2])
def compound(request, tmp_path):
    """Before anndata 0.7: obs is one compound array, categories are in uns. Zarr had only version 2 then."""
    if request.param == "h5":
        file = h5py.File(tmp_path / "a.h5", "w")
        file["obs"] = COMPOUND
        file["uns/cell_type_categories"] = np.array([name.encode() for name in TYPES])
    else:
        file = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=2)
        file.create_array("obs", data=COMPOUND)
        file.create_group("uns").create_array("cell_type_categories", data=np.array([t.encode() for t in TYPES]))
    yield file
    if request.param == "h5":
        file.close()


def test_a_compound_array_with_categories_in_uns(compound):
    expected = pd.DataFrame(
        {
            "cell_type": pd.Categorical.from_codes(CODES, TYPES),
            "n_counts": COUNTS,
            "donor": np.array(["x", "y", "x", "", "zz", "x"], dtype=object),
        },
        index=pd.Index(NAMES.astype(object), name="index"),
    )
    pd.testing.assert_frame_equal(read_frame(compound["obs"]), expected)
    reader = FrameReader(compound["obs"])
    assert (reader.n_rows, reader.columns) == (6, ("cell_type", "n_counts", "donor"))
    assert reader.labels("cell_type").categories.tolist() == TYPES
    np.testing.assert_array_equal(reader.labels("cell_type").codes, CODES)
    assert reader.labels("donor").categories.tolist() == ["", "x", "y", "zz"]


def test_a_compound_array_with_vlen_text_and_a_single_category(tmp_path):
    rows = np.empty(6, dtype=[("index", h5py.string_dtype()), ("donor", h5py.string_dtype()), ("batch", "i1")])
    rows["index"], rows["donor"], rows["batch"] = NAMES, ["x", "y", "x", "\N{GREEK SMALL LETTER ALPHA}", "", "x"], 0
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["obs"] = rows
        file["uns/batch_categories"] = "only"  # a single category was written as a bare string
        obs = read_frame(file["obs"])
    assert obs.index.tolist() == NAMES.tolist()
    assert obs["donor"].tolist() == rows["donor"].tolist()
    assert obs["batch"].tolist() == ["only"] * 6


def test_categories_of_the_other_table_are_not_taken(tmp_path):
    """obs and var shared uns: codes that the categories cannot number are numbers of their own."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["obs"] = COMPOUND
        file["uns/n_counts_categories"] = np.array([b"low", b"high"])
        assert read_frame(file["obs"])["n_counts"].tolist() == COUNTS.tolist()
        assert FrameReader(file["obs"]).labels("n_counts").categories.tolist() == COUNTS.tolist()


def test_byte_strings_in_a_group(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        obs = new_group(file, "0.1.0", ["donor"])
        obs["donor"] = np.array([b"x", b"y", b"x", "\N{GREEK SMALL LETTER ALPHA}".encode(), b"", b"x"])
        expected = ["x", "y", "x", "\N{GREEK SMALL LETTER ALPHA}", "", "x"]
        assert read_frame(obs)["donor"].tolist() == expected
        assert labels_as_list(FrameReader(obs).labels("donor")) == expected


def test_row_names_are_text(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        obs = new_group(file, "0.2.0", [])
        del obs["names"]
        obs["names"] = np.arange(3)
        assert read_frame(obs).index.tolist() == ["0", "1", "2"]
        assert read_frame(obs).shape == (3, 0)


def test_a_table_without_rows(tmp_path):
    adata = ad.AnnData(np.zeros((0, 2), np.float32), obs=modern_obs().iloc[:0])
    write(adata, tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad") as file:
        assert read_frame(file["obs"]).shape == (0, 8)
        for name in modern_obs().columns:
            assert FrameReader(file["obs"]).labels(name).codes.shape == (0,)


def test_a_code_without_category_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        obs = new_group(file, "0.2.0", ["cell_type"])
        obs["cell_type/codes"] = CODES
        write_text(obs["cell_type"], "categories", TYPES[:2])
        message = r"column 'cell_type' of .*a\.h5 :: obs has codes from -1 to 2 but 2 categories"
        with pytest.raises(ValueError, match=message):
            FrameReader(obs).labels("cell_type")
        with pytest.raises(ValueError, match=message):
            read_frame(obs)


@pytest.mark.parametrize("n_values", [1, 5])
@pytest.mark.parametrize("kind", ["numbers", "codes", "mask"])
def test_a_column_that_has_not_one_value_per_row_is_refused(tmp_path, kind, n_values):
    """A single value above all: NumPy takes it for a value of every row."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        obs = new_group(file, "0.2.0", ["n"])
        if kind == "numbers":
            obs["n"] = np.zeros(n_values)
        elif kind == "codes":
            obs["n/codes"] = np.zeros(n_values, "int8")
            write_text(obs["n"], "categories", TYPES)
        else:
            obs["n/values"] = np.zeros(len(NAMES))
            obs["n/mask"] = np.zeros(n_values, bool)
        message = rf"column 'n' of .*a\.h5 :: obs must have one value per row, but has shape \({n_values},\)"
        for read in (FrameReader.column, FrameReader.labels, FrameReader.numbers):
            with pytest.raises(CorruptDataError, match=message):
                read(FrameReader(obs), "n")


def test_a_column_that_is_listed_but_not_stored_is_named(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        obs = new_group(file, "0.2.0", ["n"])
        message = r"column '{}' of .*a\.h5 :: obs is listed but not stored"
        with pytest.raises(CorruptDataError, match=message.format("n")):
            FrameReader(obs).labels("n")
        del obs["names"]
        with pytest.raises(CorruptDataError, match=message.format("names")):
            _ = FrameReader(obs).n_rows


def test_what_is_no_table_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["X"] = np.zeros((2, 2))
        with pytest.raises(TypeError, match="not a table"):
            read_frame(file["X"])
        with pytest.raises(TypeError, match="not a table"):
            read_frame(file)


def test_codes_take_the_smallest_type_that_fits(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for n_categories, dtype in [(128, np.int8), (129, np.int16), (32769, np.int32)]:
            file.pop("obs", None)
            obs = new_group(file, "0.2.0", ["n"])
            obs["n"] = obs["numbers"] = np.arange(n_categories)
            obs.attrs["_index"] = "numbers"
            labels = FrameReader(obs).labels("n")
            assert labels.codes.dtype == dtype
            np.testing.assert_array_equal(labels.codes, np.arange(n_categories))


@pytest.mark.parametrize("kind", ["variable length", "fixed length", "categories", "index"])
def test_text_that_is_not_utf8_is_named(tmp_path, kind):
    text = np.array([b"fine", b"\xff\xfe"], dtype="S4" if kind == "fixed length" else object)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        obs = file.create_group("obs")
        obs.attrs.update({"_index": "_index", "column-order": ["x"]})
        where = {"categories": "x/categories", "index": "_index"}.get(kind, "x")
        if kind != "index":
            obs["_index"] = ["a", "b"]
        if kind == "categories":
            obs["x/codes"] = np.array([0, 1], np.int8)
        if kind == "index":
            obs["x"] = [1, 2]
        obs.create_dataset(where, data=text, dtype=h5py.string_dtype() if text.dtype == object else None)
        name = "the index" if kind == "index" else "column 'x'"
        match = rf"{name} of .*f\.h5 :: obs must be UTF-8 text, but holds b'.*; write it again as text"
        with pytest.raises(CorruptDataError, match=match):
            read_frame(obs)
        if kind != "index":
            with pytest.raises(CorruptDataError, match=match):
                FrameReader(obs).labels("x")


@given(st.lists(st.lists(st.integers(-1, 300), max_size=40), max_size=6))
def test_codes_that_are_written_in_pieces_are_those_of_all_rows(pieces):
    found: dict[int, int] = {}
    codes = frames._Codes(sum(map(len, pieces)))
    for piece in pieces:
        here, values = pd.factorize(np.array([np.nan if number < 0 else number for number in piece], dtype=float))
        written = codes.write(here, [int(value) for value in values], found)
        assert len(written) == len(piece)
    flat = [number for piece in pieces for number in piece]
    expected, labels = pd.factorize(np.array([np.nan if number < 0 else number for number in flat], dtype=float))
    assert list(found) == labels.tolist()
    np.testing.assert_array_equal(codes.values, expected)
    assert codes.values.dtype == code_dtype(len(found))
    assert codes.n_written == len(flat)


def test_numbers_in_the_other_byte_order_have_labels(tmp_path):
    obs = pd.DataFrame(
        {"n": COUNTS.astype(">i8"), "score": np.array([1, 0, 1, 2, 0, 5], ">f4")}, index=NAMES.astype(object)
    )
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        ad.io.write_elem(file, "obs", obs)
        reader = FrameReader(file["obs"])
        assert labels_as_list(reader.labels("n")) == COUNTS.tolist()
        assert labels_as_list(reader.labels("score")) == obs["score"].tolist()


def test_a_name_for_categories_is_not_given_to_those_of_other_tables(tmp_path):
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        for name in ("one", "two"):
            ad.io.write_elem(file, name, pd.DataFrame({"kind": pd.Categorical(["b", "a"])}, index=["x", "y"]))
        one = read_frame(file["one"])
        one["kind"].cat.categories.name = "mine"
        assert read_frame(file["two"])["kind"].cat.categories.name is None
