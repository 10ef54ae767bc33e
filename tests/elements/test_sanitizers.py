"""The kernels under the address and undefined-behaviour sanitizers, and under the thread sanitizer."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from secateurs.elements import native

DRIVER = Path(__file__).with_name("sanitize.cpp")


def build(sanitizers: str, *, vectors: bool) -> Path:
    """The driver with instrumented kernels; kept in the build folder, where sources and flags stay the same."""
    compiler = next((c for c in ("g++", "clang++") if shutil.which(c)), None)
    if compiler is None or not (native.SOURCES / "sparse_conv.cpp").exists():
        pytest.skip("no compiler, or no sources")
    flags = [
        compiler,
        "-std=c++17",
        "-O1",
        "-g1",
        f"-fsanitize={sanitizers}",
        "-fno-sanitize-recover=all",
        f"-I{native.SOURCES}",
    ]
    texts = [DRIVER.read_text(), *(p.read_text() for p in sorted(native.SOURCES.glob("*.[ch]*")))]
    digest = hashlib.sha256("".join([*flags, str(vectors), *texts]).encode()).hexdigest()[:16]
    folder = native._build_folder() / "sanitizers"
    program = folder / f"sanitize-{digest}"
    if program.exists():
        return program
    folder.mkdir(parents=True, exist_ok=True)
    objects = []
    for name in native.KERNEL_FILES:
        objects.append(str(folder / f"{name}-{digest}-{os.getpid()}.o"))
        # Without its flags a file of vector code compiles to a stub.
        here = vectors and platform.machine().lower() in ("x86_64", "amd64")
        extra = native._FLAGS.get(name, []) if here else []
        subprocess.run([*flags, *extra, "-c", str(native.SOURCES / f"{name}.cpp"), "-o", objects[-1]], check=True)
    temporary = program.with_name(f"{program.name}.{os.getpid()}")
    linked = subprocess.run(
        [*flags, str(DRIVER), *objects, "-o", str(temporary), "-pthread"], capture_output=True, text=True
    )
    for path in objects:
        os.unlink(path)
    if linked.returncode:
        pytest.skip(f"this compiler has no -fsanitize={sanitizers}: {linked.stderr[-200:]}")
    os.replace(temporary, program)
    return program


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_sanitizers_are_clean(sanitizers: str) -> None:
    program = build(sanitizers, vectors=sanitizers != "thread")
    done = subprocess.run([str(program), "120"], capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "plain: 120 cases" in done.stdout
