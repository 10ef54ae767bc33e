"""Recordings: a folder per class with WAV files, as Speech Commands has them."""

from __future__ import annotations

import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from secateurs.data.files.records import SKIP, FileParts, parts_of
from secateurs.data.imagefolder import class_names, find_parts
from secateurs.errors import DataError, why
from secateurs.models.external import optional

_ENDINGS = (".wav", ".flac", ".ogg", ".mp3")


@dataclass(frozen=True)
class SoundRecords:
    """Recordings with a class each, as float samples from -1 to 1 of the wanted shape: [samples], or [1, samples]."""

    paths: Sequence[Path]
    labels: Sequence[int]
    shape: tuple[int, ...]
    rate: int | None

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, row: int) -> tuple[Tensor, Tensor]:
        """One recording, cut or padded with silence at its end, and its class."""
        path = self.paths[row]
        samples, rate = _decoded(path)
        if self.rate is not None and rate != self.rate:
            raise DataError(
                f"Recording {path} has {rate} samples per second, not {self.rate}. Resample it, or say ?rate={rate} if "
                f"the network takes that. {SKIP}"
            )
        length = self.shape[-1]
        fitted = np.zeros(length, dtype=np.float32)
        fitted[: min(length, len(samples))] = samples[:length]
        return torch.from_numpy(fitted).reshape(self.shape), torch.tensor(self.labels[row])


def open_sounds(folder: Path, shape: tuple[int, ...], options: Mapping[str, str]) -> FileParts:
    """The recordings of a folder.

    Args:
        folder: ``CLASS/*.wav``, or those below ``train/`` and ``test/``.
        shape: of one input of the network: [samples] or [1, samples].
        options: ``rate=N``: samples per second, those of the first recording where it is not given; ``classes=FILE``: a
            name per line, in the order of the network's outputs.

    Raises:
        DataError: the folder is missing, there are no recordings, or the network takes something else.
    """
    if len(shape) > 2 or (len(shape) == 2 and shape[0] != 1):
        raise DataError(
            f"The network takes {list(shape)}, and audio:DIR gives samples of a recording, [length] or [1, length]. "
            "For "
            f"features give loaders of your own: file.py:factory."
        )
    train, test = find_parts(folder)
    listing = options.get("classes")
    names = class_names(train, None if listing is None else Path(listing))
    paths, labels = _listed(train, names)
    rate = int(options["rate"]) if "rate" in options else _decoded(paths[0])[1]
    records = SoundRecords(paths, labels, shape, rate)
    held = None if test is None else SoundRecords(*_listed(test, names), shape, rate)
    note = () if "rate" in options else (f"Recordings have {rate} samples per second, as {paths[0].name} has.",)
    return parts_of(records, held, note)


def longest(folder: Path, options: Mapping[str, str]) -> int:
    """Samples of the first recording: the length that a network takes where it does not say so itself."""
    train, _ = find_parts(folder)
    listing = options.get("classes")
    paths, _ = _listed(train, class_names(train, None if listing is None else Path(listing)))
    return len(_decoded(paths[0])[0])


def _listed(folder: Path, names: Sequence[str]) -> tuple[list[Path], list[int]]:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(names):
        found = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in _ENDINGS)
        paths += found
        labels += [label] * len(found)
    if not paths:
        raise DataError(
            f"Folder {folder} holds no recordings ({', '.join(_ENDINGS)}) in a folder per class. Check the path."
        )
    return paths, labels


def _decoded(path: Path) -> tuple[np.ndarray, int]:
    """float32 samples of one channel, the mean of several, and samples per second."""
    try:
        if path.suffix.lower() != ".wav":
            samples, rate = optional("soundfile", f"Recording {path}").read(str(path), dtype="float32")
            return (samples.mean(1) if samples.ndim > 1 else samples), int(rate)
        with wave.open(str(path)) as file:
            held, width = file.readframes(file.getnframes()), file.getsampwidth()
            channels, rate = file.getnchannels(), file.getframerate()
        return _samples(held, width).reshape(-1, channels).mean(1), rate
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"Recording {path} cannot be decoded ({why(error)}). {SKIP}") from error


def _samples(held: bytes, width: int) -> np.ndarray:
    """PCM of 1 to 4 bytes as floats."""
    if width == 1:
        return (np.frombuffer(held, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:
        wide = np.frombuffer(held, np.uint8).reshape(-1, 3).astype(np.int32)
        values = (wide[:, 0] | wide[:, 1] << 8 | wide[:, 2] << 16) << 8 >> 8
        return values.astype(np.float32) / 2**23
    return np.frombuffer(held, f"<i{width}").astype(np.float32) / 2 ** (8 * width - 1)
