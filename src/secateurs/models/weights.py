"""Weight files: reading them safely and putting them into a module."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from secateurs.errors import DataError, why
from secateurs.files import digest_of, require_regular, write_atomic
from secateurs.models.from_files.checkpoints import BEHIND, below_a_name, named_plainly, weights_in
from secateurs.models.refused import description

_PICKLED = (".pth", ".pt", ".ckpt", ".bin", ".tar")
_LISTED = 5
_SLACK = 64 << 20
_LONGEST_HEADER = 16 << 20


@dataclass(frozen=True)
class Weights:
    """Tensors by name, the file's metadata (safetensors only), where they came from and the file's SHA-256.

    ``notes``: what of the file was taken and how names were changed, for the user.
    """

    tensors: Mapping[str, Tensor]
    path: str
    sha256: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of tensor ``name``, None where the file has no such tensor."""
        tensor = self.tensors.get(name)
        return None if tensor is None else tuple(tensor.shape)


def read_weights(path: str | Path) -> Weights:
    """Tensors of a ``.safetensors`` file, or of a ``.pth``, ``.pt``, ``.ckpt``, ``.bin`` or ``.tar`` that PyTorch
    wrote,
    read with ``weights_only=True``.

    Args:
        path: the file; ``FILE::NAME`` takes the weights of that name out of a checkpoint that holds several.

    Raises:
        DataError: the file is missing, damaged, of another kind, or holds more than plain tensors.
    """
    given = str(path)
    text, _, part = given.partition(BEHIND) if not Path(given).is_file() else (given, "", "")
    path = Path(text)
    require_regular(path, "Weights file")
    if not path.is_file():
        raise DataError(f"Weights file {path} does not exist. Check --weights; it takes a .safetensors or .pth file.")
    if path.suffix == ".safetensors":
        held, metadata = _read_safetensors(path)
    elif path.suffix in _PICKLED:
        held, metadata = _read_pth(path), {}
    else:
        raise DataError(
            f"Weights file {path} has the ending {path.suffix or '(none)'}. "
            f"Give a .safetensors file, or a {'/'.join(_PICKLED)} file that holds a state dict."
        )
    state, taken = weights_in(held, part, text)
    _require_dense(path, state)
    tensors, notes = named_plainly(state, text)
    return Weights(tensors, given, digest_of(path, follow=True), metadata, (*taken, *notes))


def fitted(weights: Weights, module: nn.Module) -> Weights:
    """The weights under the module's names, where they were saved as part of a larger module."""
    tensors, notes = below_a_name(weights.tensors, module.state_dict(), weights.path)
    return replace(weights, tensors=tensors, notes=(*weights.notes, *notes))


def load_into(module: nn.Module, weights: Weights, name: str) -> None:
    """Copy ``weights`` into ``module``; nothing changes when they do not fit.

    ``num_batches_tracked`` may be absent. A tensor that the module holds twice (tied weights) needs one entry.

    Raises:
        DataError: keys are missing or unexpected, or shapes or number types differ; all are named.
    """
    own = module.state_dict()
    identical: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for key, tensor in own.items():
        if tensor.numel():
            identical.setdefault((tensor.data_ptr(), tuple(tensor.shape)), []).append(key)
    given = set(weights.tensors)
    covered = {key for keys in identical.values() if given & set(keys) for key in keys}
    missing = [key for key in own if key not in given | covered and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in weights.tensors if key not in own]
    shapes = [
        f"{key} has {_form(weights.tensors[key].shape)} but the model has {_form(tensor.shape)}"
        for key, tensor in own.items()
        if key in given and weights.tensors[key].shape != tensor.shape
    ]
    kinds = [
        f"{key} is {weights.tensors[key].dtype} but the model has {tensor.dtype}"
        for key, tensor in own.items()
        if key in given and weights.tensors[key].is_floating_point() != tensor.is_floating_point()
    ]
    problems = [
        _listed("missing", missing),
        _listed("not in the model", unexpected),
        _listed("of another shape", shapes),
        _listed("of another number type", kinds),
    ]
    found = "; ".join(problem for problem in problems if problem)
    if found:
        raise DataError(
            f"The weights in {weights.path} do not fit {name}: {found}. "
            f"Give the weights of this very network, or the model that they belong to."
        )
    bad = [key for key, value in weights.tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise DataError(
            f"The weights in {weights.path} hold NaN or infinite values: {_listed('tensors', bad)}. "
            f"Take a checkpoint from before the training diverged."
        )
    large = [
        key
        for key, value in weights.tensors.items()
        if value.is_floating_point() and value.dtype != own[key].dtype and not value.to(own[key].dtype).isfinite().all()
    ]
    if large:
        kind = str(own[large[0]].dtype).removeprefix("torch.")
        raise DataError(
            f"The weights in {weights.path} do not fit into {kind}, which {name} computes in: "
            f"{_listed('tensors', large)} would become infinite. Give weights that were trained in {kind}."
        )
    module.load_state_dict(dict(weights.tensors), strict=False)


def pieces(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Iterator[bytes]:
    """A safetensors file of these tensors, piece by piece, so that no second copy of all of them is made."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    place = 0
    # The largest numbers first, so that all of them lie where their kind has to.
    ordered = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in ordered:
        end = place + tensors[name].numel() * tensors[name].element_size()
        kind = _KINDS[tensors[name].dtype]
        header[name] = {"dtype": kind, "shape": list(tensors[name].shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for name in ordered:
        flat = tensors[name].detach().cpu().contiguous().flatten()
        yield flat.view(torch.uint8).numpy().tobytes()


_KINDS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.complex64: "C64",
}  # fmt: skip


def save_weights(module: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write the module's state as safetensors; the file appears whole or not at all.

    Raises:
        PlanError: the folder is missing, not writable, or the disk is full.
    """
    write_atomic(path, pieces(module.state_dict(), metadata))


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with open(path, "rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if _LONGEST_HEADER < header <= path.stat().st_size:
        raise DataError(
            f"Weights file {path} has a header of {header >> 20} MB: it names more tensors than a network has. Save "
            f"model.state_dict() with safetensors.torch.save_file."
        )
    try:
        with safe_open(path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(
            f"Weights file {path} is not a readable safetensors file ({why(error)}). Copy it again."
        ) from error


def _require_plain_archive(path: Path) -> None:
    """Nothing, if a zip archive holds no more than it takes on the disk, as torch.save writes it.

    Raises:
        DataError: it would unpack to far more.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > 2 * path.stat().st_size + _SLACK:
        raise DataError(
            f"Weights file {path} unpacks to {unpacked / 1e6:.0f} MB from {path.stat().st_size / 1e6:.0f} MB; "
            f"torch.save does not compress. Save model.state_dict() with safetensors.torch.save_file."
        )


def _require_dense(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Nothing, if every tensor holds its numbers, and no more than the file does.

    Raises:
        DataError: one is sparse, quantised, has no data, or repeats a few numbers to a large tensor.
    """
    size = path.stat().st_size
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            kind = (
                "sparse" if tensor.layout != torch.strided else "quantised" if tensor.is_quantized else "without data"
            )
            raise DataError(f"Weights file {path}: {name} is {kind}. Save the dense tensors of a network in float.")
        if tensor.numel() * tensor.element_size() > size:
            raise DataError(
                f"Weights file {path}: {name} has {tensor.numel()} numbers, more than the file of {size} bytes holds. "
                f"Save it with .contiguous()."
            )


def _read_pth(path: Path) -> Any:
    _require_plain_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no pickle fail in any way
        raise DataError(f"Weights file {path} cannot be read as plain tensors: it {description(path)}") from error


def _listed(label: str, items: list[str]) -> str:
    if not items:
        return ""
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return f"{len(items)} {label}: {', '.join(items[:_LISTED])}{more}"


def _form(shape: torch.Size) -> str:
    return "x".join(map(str, shape)) or "no dimensions"
