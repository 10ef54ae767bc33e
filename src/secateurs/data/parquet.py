"""Parquet files with encoded images: a column of bytes and a column of labels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from secateurs.data.decoding import EncodedImages, Sizing
from secateurs.data.parquet_pages import pages
from secateurs.errors import DataError, why

_IMAGE_COLUMNS = ("jpeg", "image", "img", "png", "bytes")
_LABEL_COLUMNS = ("label", "labels", "target")
_ROWS = 64
_READ_AT_ONCE = 64 << 20
"""Bytes of images that are unpacked at a time."""
_ROW_BYTES = 64
"""What a row takes besides its image."""
_FOLD, _SLACK = 16, 128 << 20
"""Images are compressed already: a file that unpacks to more than so many times its size, and this, holds few images
many times over."""


def open_parquet(
    path: Path, sizing: Sizing, *, image: str | None = None, label: str | None = None, most: int = 0
) -> EncodedImages:
    """The images of one file, or of all ``*.parquet`` files of a folder in the order of their names.

    Args:
        path: file or folder.
        sizing: wanted form of the images.
        image: column of encoded bytes, or of structs with a field ``bytes`` (Hugging Face); found by its usual names.
        label: column of whole numbers; found by its usual names.
        most: bytes that a file may unpack to, where that is more than its size lets expect.

    Raises:
        DataError: the file is missing or damaged, unpacks to too much, a column is missing or of the wrong kind, or
            there are no rows.
    """
    import pyarrow.parquet as pq

    files = _files(path)
    items: list[bytes | Path] = []
    labels: list[np.ndarray] = []
    starts: list[int] = []
    for file in files:
        with _readable(file):
            schema = pq.read_schema(file)
            image_column = _column(file, schema, image, _IMAGE_COLUMNS, "image")
            label_column = _column(file, schema, label, _LABEL_COLUMNS, "label")
            starts.append(len(items))
            first, left = len(items), _most(file, most)
            rows = _rows_at_once(file, (image_column, label_column), left)
            with pq.ParquetFile(file) as opened:
                for batch in opened.iter_batches(rows, columns=[image_column, label_column]):
                    here = len(items) - first
                    labels.append(_labels(file, label_column, _chunked(batch.column(label_column)), here))
                    encoded = _encoded(file, image_column, _chunked(batch.column(image_column)), here)
                    items.extend(encoded)
                    left -= sum(len(one) + _ROW_BYTES for one in encoded)
                    if left < 0:
                        raise _repeats(file)
    if not items:
        raise DataError(f"Parquet file {path} has no rows. Give a file with images.")

    def where(row: int) -> str:
        part = int(np.searchsorted(starts, row, side="right")) - 1
        return f"Row {row - starts[part]} of {files[part]}"

    return EncodedImages(items, np.concatenate(labels), sizing, where)


def _most(file: Path, most: int) -> int:
    return max(most, _FOLD * file.stat().st_size + _SLACK)


def _repeats(file: Path) -> DataError:
    return DataError(
        f"Parquet file {file} of {file.stat().st_size} bytes unpacks to more than {_FOLD} times as much: it repeats "
        f"its images, or was made to fill the memory. Give each image once; ?unpack=N allows N gigabytes."
    )


def _rows_at_once(file: Path, columns: tuple[str, ...], most: int) -> int:
    """How many rows to read at a time, by the largest page of these columns; nothing is unpacked for it.

    Raises:
        DataError: the pages say that they unpack to more than ``most``.
    """
    import pyarrow.parquet as pq

    sizes = list(pages(file, columns))
    if sum(sizes) > most or pq.read_metadata(file).num_rows * _ROW_BYTES > most:
        raise _repeats(file)
    return max(1, min(_ROWS, _READ_AT_ONCE // max(max(sizes, default=1), 1)))


def sample(path: Path, count: int, image: str | None = None, most: int = 0) -> list[bytes]:
    """The first encoded images of one file, or of the first file of a folder; see :func:`open_parquet`.

    Raises:
        DataError: the file is missing or damaged, or has no column of images.
    """
    import pyarrow.parquet as pq

    [file, *_] = _files(path)
    with _readable(file):
        column = _column(file, pq.read_schema(file), image, _IMAGE_COLUMNS, "image")
        rows, found = _rows_at_once(file, (column,), _most(file, most)), list[bytes]()
        with pq.ParquetFile(file) as opened:
            for batch in opened.iter_batches(min(rows, count), columns=[column]):
                found += _encoded(file, column, _chunked(batch.column(0)))
                if len(found) >= count:
                    break
    return found[:count]


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    files = [file for file in files if file.is_file()]  # a pipe would be waited for
    if not files:
        raise DataError(f"Parquet file {path} does not exist. Check the path; the form is parquet:TRAIN,TEST.")
    return files


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Errors of pyarrow become messages that name the file."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, NotImplementedError) as error:
        raise DataError(f"Parquet file {file} cannot be read ({why(error)}). Make or copy it again.") from error


def _chunked(array: Any) -> Any:
    import pyarrow

    return pyarrow.chunked_array([array])


def _column(file: Path, schema: Any, wanted: str | None, usual: tuple[str, ...], purpose: str) -> str:
    for name in (wanted,) if wanted else usual:
        if name in schema.names:
            return name
    sought = repr(wanted) if wanted else f"any of {', '.join(usual)}"
    raise DataError(
        f"Parquet file {file} has no {purpose} column (looked for {sought}; it has {', '.join(schema.names)}). "
        f"Name the column with ?{purpose}=NAME behind the data."
    )


def _labels(file: Path, name: str, column: Any, before: int = 0) -> np.ndarray:
    import pyarrow

    if not pyarrow.types.is_integer(column.type):
        raise DataError(
            f"Column {name!r} of {file} holds {column.type}, not whole numbers. "
            f"Store the class index, or name the right column with ?label=NAME."
        )
    if column.null_count:
        row = before + int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise DataError(f"Row {row} of {file} has no {name}. Remove the row or fill it in.")
    return column.to_numpy().astype(np.int64)


def _encoded(file: Path, name: str, column: Any, before: int = 0) -> list[bytes]:
    import pyarrow

    if pyarrow.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = pyarrow.chunked_array([chunk.field("bytes") for chunk in column.chunks], type=pyarrow.binary())
    if not (pyarrow.types.is_binary(column.type) or pyarrow.types.is_large_binary(column.type)):
        raise DataError(
            f"Column {name!r} of {file} holds {column.type}, not encoded image bytes. "
            f"Name the right column with ?image=NAME."
        )
    if column.null_count:
        row = before + int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise DataError(f"Row {row} of {file} has no {name}. Remove the row or fill it in.")
    return column.to_pylist()
