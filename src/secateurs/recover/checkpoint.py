"""Checkpoints of a training run: one safetensors file with JSON in its header, written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from secateurs.errors import PlanError, why
from secateurs.files import read_json, write_atomic

SCHEMA = "secateurs.checkpoint/1"
_FILE = "checkpoint.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name and everything else as JSON values.

    ``identity`` says which run it belongs to; ``state`` holds step, precision and history. No generator state is
    needed: every random number of step k follows from (seed, epoch, k).
    """

    tensors: Mapping[str, Tensor]
    identity: Mapping[str, Any]
    state: Mapping[str, Any]

    def save(self, folder: Path) -> None:
        """Write into ``folder``; the one before is replaced only when this one is complete.

        Raises:
            PlanError: the folder cannot be written or the disk is full.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PlanError(f"Cannot make folder {folder} ({error.strerror or error}). Choose another one.") from error
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.tensors.items()}
        header = {"schema": SCHEMA, "identity": json.dumps(self.identity), "state": json.dumps(self.state)}
        header["sha256"] = _digest(dict(sorted(tensors.items())))
        write_atomic(folder / _FILE, save(tensors, metadata=header))

    @classmethod
    def load(cls, folder: Path, identity: Mapping[str, Any]) -> Checkpoint | None:
        """The checkpoint in ``folder``, None where there is none.

        Raises:
            DamagedCheckpointError: it cannot be read, or was changed.
            PlanError: it belongs to another run than ``identity`` says.
        """
        path = folder / _FILE
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
                if header.get("schema") != SCHEMA:
                    raise PlanError(
                        f"Checkpoint {path} has schema {header.get('schema')!r}, not {SCHEMA!r}. "
                        f"Start without --resume."
                    )
                found, state = read_json(header["identity"]), read_json(header["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                if header.get("sha256", "") not in ("", _digest(dict(sorted(tensors.items())))):
                    raise ValueError("its numbers were changed")
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise DamagedCheckpointError(f"Checkpoint {path} is damaged ({why(error)}).") from error
        wanted = json.loads(json.dumps(identity))
        for key in sorted(set(wanted) | set(found)):
            if wanted.get(key) != found.get(key):
                raise PlanError(
                    f"Checkpoint {path} belongs to another run: {key} was {_short(found.get(key))}, now it is "
                    f"{_short(wanted.get(key))}. Resume with the same settings, or delete it to start anew."
                )
        return cls(tensors, found, state)

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors below ``prefix.``, with that prefix cut off."""
        return {name[len(prefix) + 1 :]: held for name, held in self.tensors.items() if name.startswith(f"{prefix}.")}


class DamagedCheckpointError(PlanError):
    """A checkpoint cannot be read, or was changed since it was written."""


def digest(module: nn.Module) -> str:
    """SHA-256 over the names, shapes and values of a module's state."""
    return _digest(module.state_dict())


def _digest(tensors: Mapping[str, Tensor]) -> str:
    result = hashlib.sha256()
    for name, tensor in tensors.items():
        result.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        result.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return result.hexdigest()


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """The module's state as tensors that share no memory, for safetensors."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
