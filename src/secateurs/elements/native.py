"""The compiled kernels: found, loaded by path, and, in a source checkout, built on demand.

Run ``python -m secateurs.elements.native`` to build them and to see which instruction set they use here.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from secateurs.errors import TargetUnavailableError, why

ABI_VERSION = 1
ACTIVATIONS = ("none", "relu", "relu6", "silu")
SOURCES = Path(__file__).parent / "kernels"
LIBRARY = "_secateurs_kernels.dll" if sys.platform == "win32" else "_secateurs_kernels.so"
STATUS = {
    1: "the shapes do not fit together",
    2: "the pattern does not fit the weights",
    3: "out of memory",
    4: "a tensor is missing or has the wrong layout",
}

_SIZES = (
    *("batch", "in_channels", "in_height", "in_width", "out_channels", "out_height", "out_width"),
    *("kernel_height", "kernel_width", "stride_height", "stride_width", "pad_top", "pad_left"),
    *("dilation_height", "dilation_width", "groups", "block", "activation", "threads", "in_border"),
)
_STRIDES = (
    *("in_stride_batch", "in_stride_channel", "in_stride_row", "in_stride_column"),
    *("out_stride_batch", "out_stride_row", "out_stride_column"),
    *("residual_stride_batch", "residual_stride_row", "residual_stride_column"),
)
KERNEL_FILES = ("sparse_conv", "dispatch", "pool", "plain", "avx2", "avx512", "neon")
# The same flags as in CMakeLists.txt.
_FLAGS = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma", "-mprefer-vector-width=512"],
}


class ConvArguments(ctypes.Structure):
    """``secateurs_conv`` of ``sparse_conv.h``."""

    _fields_ = [(name, ctypes.c_int32) for name in _SIZES] + [(name, ctypes.c_int64) for name in _STRIDES]


class KernelCall(ctypes.Structure):
    """``secateurs_call`` of ``sparse_conv.h``."""

    _fields_ = [("conv", ctypes.POINTER(ConvArguments))] + [
        (name, ctypes.c_void_p) for name in ("input", "weights", "masks", "starts", "bias", "residual", "output")
    ]


class Kernels:
    """The loaded library. ``conv``: the raw convolution call, which returns a status code."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.handle = ctypes.CDLL(str(path))
        version = self.handle.secateurs_abi_version()
        if version != ABI_VERSION:
            raise OSError(f"{path} has ABI {version}, this package needs {ABI_VERSION}")
        pointers = [ctypes.c_void_p] * 8
        self.conv = self.handle.secateurs_sparse_conv_f32
        self.conv.argtypes = pointers
        self.conv.restype = ctypes.c_int
        self.convs = self.handle.secateurs_sparse_convs_f32
        self.convs.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_int)]
        self.handle.secateurs_time_conv_f32.argtypes = [*pointers, ctypes.c_int, ctypes.POINTER(ctypes.c_double)]
        self.handle.secateurs_isa.restype = ctypes.c_char_p
        self.handle.secateurs_set_isa.argtypes = [ctypes.c_char_p]
        self.handle.secateurs_fma_peak.argtypes = [ctypes.c_double]
        self.handle.secateurs_fma_peak.restype = ctypes.c_double

    @property
    def isa(self) -> str:
        """Instruction set in use: ``avx512``, ``avx2``, ``neon`` or ``plain``."""
        return self.handle.secateurs_isa().decode()

    def use_isa(self, name: str | None) -> None:
        """Force an instruction set; None goes back to the best (``SECATEURS_ISA`` sets it from outside).

        Raises:
            TargetUnavailableError: this machine or this build lacks it.
        """
        if self.handle.secateurs_set_isa((name or "").encode()):
            raise TargetUnavailableError(
                f"Instruction set {name!r} is not available on this {platform.machine()} machine. "
                f"Choose another, or leave the choice to the library."
            )

    def fma_peak(self, milliseconds: float = 20.0) -> float:
        """Multiply-adds per second, times two, that one core reaches in registers right now."""
        return self.handle.secateurs_fma_peak(milliseconds)

    def tiles(self) -> list[tuple[str, tuple[int, int, int, int, bool]]]:
        """The microkernel table in use: name and (filters, rows, columns, channels per pixel, prefetches)."""
        found = []
        name, shape = ctypes.create_string_buffer(64), (ctypes.c_int32 * 5)()
        for index in range(self.handle.secateurs_tile_count()):
            self.handle.secateurs_tile(index, name, len(name), shape)
            filters, rows, columns, inner, ahead = shape
            found.append((name.value.decode(), (filters, rows, columns, inner, bool(ahead))))
        return found

    def limit_tiles(self, rows: int = 0, columns: int = 0) -> None:
        """Use no tile higher or wider than this; 0 lifts the limit. For tests and benchmarks."""
        self.handle.secateurs_limit_tiles(rows, columns)

    def poison_scratch(self, on: bool) -> None:
        """Fill scratch memory with NaN before every use, so that reading what was not written shows."""
        self.handle.secateurs_poison_scratch(int(on))


@dataclass(frozen=True)
class Build:
    """A library to compile: the kernels and ``more`` files of :data:`SOURCES`.

    ``flags``: what the compiler gets besides for these files; ``link``: what the linker gets besides.
    """

    library: str = LIBRARY
    more: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    link: tuple[str, ...] = ()


def build(folder: Path | None = None, recipe: Build = Build()) -> Path:
    """Path of the library, compiled from the sources beside this file into ``folder`` (default: a cache folder).

    The folder's name carries a digest of sources and flags: what is built already is not built again. A compiled file
    is kept under its own digest, so that two libraries share the kernels; a second process waits for the first.

    Raises:
        TargetUnavailableError: no C++ compiler, or it fails (the message shows its first complaint).
    """
    compiler = os.environ.get("CXX") or next((c for c in ("g++", "clang++", "c++") if shutil.which(c)), None)
    if compiler is None:
        raise TargetUnavailableError("No C++ compiler was found (g++, clang++ or $CXX). Install one.")
    folder = folder or _build_folder()
    commands = {name: _command(compiler, name, recipe) for name in (*KERNEL_FILES, *recipe.more)}
    headers = [path.read_text() for path in sorted(SOURCES.glob("*.h"))]
    objects = {
        name: folder / "objects" / f"{name}-{_digest(*command, *headers, (SOURCES / f'{name}.cpp').read_text())}.o"
        for name, command in commands.items()
    }
    library = folder / _digest(*map(str, objects.values()), *recipe.link) / recipe.library
    if library.exists():
        return library
    for path in (library.parent, folder / "objects"):
        path.mkdir(parents=True, exist_ok=True)
    with _alone(folder / "objects" / ".lock"):
        for name, path in objects.items():
            if not path.exists():
                _made(path, [*commands[name], "-c", str(SOURCES / f"{name}.cpp")])
        if not library.exists():
            _made(library, [compiler, "-shared", *map(str, objects.values()), *recipe.link, "-pthread"])
    return library


def _command(compiler: str, name: str, recipe: Build) -> list[str]:
    """How a file is compiled, without where it lies and where to."""
    vectors = _FLAGS.get(name, []) if platform.machine().lower() in ("x86_64", "amd64") else []
    own = recipe.flags if name in recipe.more else ()
    return [compiler, "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-DNDEBUG", *own, *vectors]


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Only one process at a time, where the system has such locks."""
    with open(path, "wb") as file:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        yield


def _made(path: Path, command: list[str]) -> None:
    """Run a command that writes ``path``, which appears whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}")
    done = subprocess.run([*command, "-o", str(temporary)], capture_output=True, text=True)
    if done.returncode:
        complaint = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:300])
        raise TargetUnavailableError(
            f"The kernels do not compile: {complaint} ({' '.join(command[:1])}). "
            f"A compiler with C++17 is needed: g++ 9 or clang 10 and later."
        )
    os.replace(temporary, path)


def _build_folder() -> Path:
    root = SOURCES.parents[3]
    if (root / "pyproject.toml").exists():
        return root / "build" / "kernels"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "secateurs" / "kernels"


def _candidates() -> tuple[Path | None, str]:
    """The library to load, or None and the reason."""
    named = os.environ.get("SECATEURS_KERNELS")
    if named:
        return Path(named), ""
    packaged = SOURCES.parent / LIBRARY
    if packaged.exists():
        return packaged, ""
    if (SOURCES / "sparse_conv.cpp").exists():
        try:
            return build(), ""
        except TargetUnavailableError as error:
            return None, str(error)
    return None, f"This installation of secateurs has no {LIBRARY}. Install it where there is a C++ compiler."


@functools.lru_cache(maxsize=1)
def _load() -> tuple[Kernels | None, str]:
    path, reason = _candidates()
    if path is None:
        return None, reason
    try:
        return Kernels(path), ""
    except (OSError, AttributeError) as error:
        return None, f"{path} cannot be loaded: {why(error)}. Delete it, or unset SECATEURS_KERNELS."


def kernels() -> Kernels | None:
    """The library, or None where it is missing (:func:`missing` says why; a warning was given once)."""
    found, reason = _load()
    if found is None:
        _warn(reason)
    return found


def missing() -> str | None:
    """Why the compiled kernels are not there, or None where they are."""
    return _load()[1] or None


@functools.lru_cache(maxsize=1)
def _warn(reason: str) -> None:
    warnings.warn(
        f"Sparse convolutions run the slow reference. {reason} "
        f"'python -m secateurs.elements.native' compiles the kernels, or tells what is missing.",
        RuntimeWarning,
        stacklevel=3,
    )


def require() -> Kernels:
    """The library.

    Raises:
        TargetUnavailableError: it is missing.
    """
    found, reason = _load()
    if found is None:
        raise TargetUnavailableError(f"The compiled sparse convolution is not there. {reason}")
    return found


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(build(Path(sys.argv[1])))
    else:
        library = require()
        print(f"{library.path}\ninstruction set: {library.isa}, {len(library.tiles())} microkernels")
