"""Tables: a CSV file with a row per sample, whose inputs are numbers or an image."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from secateurs.data.files.pictures import Placing, opened
from secateurs.data.files.records import SKIP, FileParts, parts_of
from secateurs.errors import DataError, why

_TARGETS = ("label", "target", "class", "y")
_IMAGES = ("image", "path", "file", "filename")


@dataclass(frozen=True)
class Columns:
    """What the columns are. ``image``: that with paths of images, "" where inputs are the numbers of ``inputs``;
    ``names``: texts of the classes, () where targets are numbers; ``whole``: targets are class indices."""

    inputs: tuple[str, ...]
    image: str
    targets: tuple[str, ...]
    names: tuple[str, ...]
    whole: bool


@dataclass(frozen=True)
class TableRecords:
    """Rows of a file; ``lines``: their lines in it."""

    file: Path
    rows: Sequence[Mapping[str, str]]
    lines: Sequence[int]
    columns: Columns
    fit: Placing | None

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, row: int) -> tuple[Tensor, Tensor]:
        """Numbers [columns] or an image, and a class index, a number or several."""
        held, columns = self.rows[row], self.columns
        target = self._target(row)
        if columns.image:
            assert self.fit is not None
            return self.fit.image(opened(self.file.parent / held[columns.image])), target
        return torch.tensor([self._number(row, name) for name in columns.inputs], dtype=torch.float32), target

    def _target(self, row: int) -> Tensor:
        columns, held = self.columns, self.rows[row]
        if columns.names:
            text = held[columns.targets[0]]
            if text not in columns.names:
                raise DataError(
                    f"Line {self.lines[row]} of {self.file} has {columns.targets[0]} {text!r}, which is no class of "
                    f"the training part ({', '.join(columns.names[:5])}). {SKIP}"
                )
            return torch.tensor(columns.names.index(text))
        values = [self._number(row, name) for name in columns.targets]
        if columns.whole:
            return torch.tensor(int(values[0]))
        return torch.tensor(values[0] if len(values) == 1 else values, dtype=torch.float32)

    def _number(self, row: int, name: str) -> float:
        text = self.rows[row].get(name)
        try:
            value = float(text or "")
            if not np.isfinite(value):
                raise ValueError(text)
            return value
        except ValueError as error:
            raise DataError(
                f"Line {self.lines[row]} of {self.file} has {text!r} in column {name!r}, which is no number. {SKIP}"
            ) from error


def open_table(where: str, fit: Placing | None, options: Mapping[str, str], *, numbers: bool = False) -> FileParts:
    """The rows of ``TRAIN.csv,TEST.csv``, or of one file.

    Args:
        where: the files; of one file a fifth is held out, or where ``split`` names a column the rows that have
        ``test``,
            ``val`` or ``valid`` there.
        fit: how images reach the network, where there is a column of them.
        options: ``target=COLUMN`` or several, joined by commas; ``inputs=COLUMN,COLUMN``; ``image=COLUMN``;
            ``split=COLUMN``.
        numbers: targets are numbers even where all are whole.

    Raises:
        DataError: a file is missing or damaged, a column is missing, or no column can be the target.
    """
    files = [Path(name) for name in where.split(",")]
    if len(files) > 2 or not all(files):
        raise DataError(f"Data csv:{where} names {len(files)} files. Give one, or two: csv:TRAIN,TEST.")
    read = [_read(file) for file in files]
    columns = _columns(read[0][0], read[0][1], files[0], options, numbers=numbers, images=fit is not None)
    sets = [TableRecords(file, rows, lines, columns, fit) for file, (_, rows, lines) in zip(files, read, strict=True)]
    name = options.get("split")
    if len(sets) == 2 or name is None:
        return parts_of(sets[0], sets[1] if len(sets) == 2 else None)
    _require(name, read[0][0], files[0])
    tested = [str(row[name]).lower() in ("test", "val", "valid", "validation") for row in sets[0].rows]
    if all(tested) or not any(tested):
        raise DataError(f"Column {name!r} of {files[0]} does not part the rows: some must have 'test' or 'val' in it.")
    train, test = ([place for place, held in enumerate(tested) if held is part] for part in (False, True))
    return parts_of(_some(sets[0], train), _some(sets[0], test))


def table_has_images(options: Mapping[str, str]) -> bool:
    """Whether inputs are images: a column of their paths is named."""
    return "image" in options


def numbers_per_row(where: str, options: Mapping[str, str]) -> int:
    """Inputs of a sample."""
    file = Path(where.partition(",")[0])
    names, rows, _ = _read(file)
    return len(_columns(names, rows, file, options, numbers=False, images=False).inputs)


def images_of_table(where: str, options: Mapping[str, str]) -> list[Path]:
    """Paths of the images."""
    file = Path(where.partition(",")[0])
    names, rows, _ = _read(file)
    column = _require(options["image"], names, file)
    return [file.parent / row[column] for row in rows]


def _some(records: TableRecords, places: Sequence[int]) -> TableRecords:
    rows, lines = [records.rows[place] for place in places], [records.lines[place] for place in places]
    return TableRecords(records.file, rows, lines, records.columns, records.fit)


def _read(file: Path) -> tuple[list[str], list[dict[str, str]], list[int]]:
    """Names of the columns, the rows, and their lines."""
    if not file.is_file():
        raise DataError(f"CSV file {file} does not exist. Check the path; the form is csv:FILE or csv:TRAIN,TEST.")
    try:
        with open(file, newline="", encoding="utf-8-sig") as text:
            sample = text.read(4096)
            text.seek(0)
            delimiter = max(",;\t", key=sample.partition("\n")[0].count)
            reader = csv.DictReader(text, delimiter=delimiter)
            rows, lines = [], []
            for row in reader:
                rows.append(row)
                lines.append(reader.line_num)
            names = [name.strip() for name in reader.fieldnames or []]
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(
            f"CSV file {file} cannot be read ({why(error)}). Save it as UTF-8 with a line of names."
        ) from error
    if not rows:
        raise DataError(f"CSV file {file} has no rows. It needs a line of names and a line per sample.")
    return names, [{str(key).strip(): value for key, value in row.items()} for row in rows], lines


def _require(name: str, names: Sequence[str], file: Path) -> str:
    if name not in names:
        raise DataError(f"CSV file {file} has no column {name!r}. It has {', '.join(names[:10])}.")
    return name


def _columns(
    names: Sequence[str],
    rows: Sequence[Mapping[str, str]],
    file: Path,
    options: Mapping[str, str],
    *,
    numbers: bool,
    images: bool,
) -> Columns:
    wanted = [name for name in options.get("target", "").split(",") if name]
    targets = wanted or [next((name for name in names if name.lower() in _TARGETS), names[-1])]
    for name in targets:
        _require(name, names, file)
    image = options.get("image", "")
    if not image and images:
        image = next((name for name in names if name.lower() in _IMAGES), "")
        if not image:
            raise DataError(
                f"The network takes images, and CSV file {file} has no column of them: name it with ?image=COLUMN."
            )
    if image:
        _require(image, names, file)
    listed = [name for name in options.get("inputs", "").split(",") if name]
    split = options.get("split")
    inputs = [_require(name, names, file) for name in listed] or [
        name for name in names if name not in (*targets, image, split)
    ]
    texts = [str(row[targets[0]]) for row in rows]
    if len(targets) > 1 or numbers:
        return Columns(tuple(inputs), image, tuple(targets), (), False)
    if not all(map(_is_number, filter(None, texts))):
        return Columns(tuple(inputs), image, tuple(targets), tuple(sorted(set(texts))), True)
    whole = all(float(text).is_integer() and float(text) >= 0 for text in texts if text)
    return Columns(tuple(inputs), image, tuple(targets), (), whole)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
