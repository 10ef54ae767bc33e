"""How the compiled library is found and made."""

from __future__ import annotations

import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from secateurs.elements import native
from secateurs.errors import TargetUnavailableError


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing is loaded yet, and what the test loads is forgotten afterwards."""
    monkeypatch.setattr(native, "_load", native.functools.lru_cache(maxsize=1)(native._load.__wrapped__))
    monkeypatch.delenv("SECATEURS_KERNELS", raising=False)
    return monkeypatch


def test_cmake_compiles_the_same_files_with_the_same_flags() -> None:
    text = (native.SOURCES / "CMakeLists.txt").read_text()
    listed = re.search(r"add_library\(\w+ MODULE ([^)]+)\)", text)
    assert listed
    assert listed[1].split() == [f"{name}.cpp" for name in native.KERNEL_FILES]
    for name, flags in native._FLAGS.items():
        found = re.search(rf'{name}\.cpp PROPERTIES COMPILE_OPTIONS "-O3;([^"]+)"', text)
        assert found, name
        assert found[1].split(";") == flags


def test_the_installed_library_goes_before_the_sources(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / native.LIBRARY).touch()
    (tmp_path / "kernels").mkdir()
    shutil.copy(native.SOURCES / "sparse_conv.cpp", tmp_path / "kernels")
    fresh.setattr(native, "SOURCES", tmp_path / "kernels")
    assert native._candidates() == (tmp_path / native.LIBRARY, "")
    fresh.setenv("SECATEURS_KERNELS", "/elsewhere.so")
    assert native._candidates() == (Path("/elsewhere.so"), "")


def test_without_compiler_and_library_the_reason_is_told(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fresh.setattr(native.shutil, "which", lambda name: None)
    fresh.delenv("CXX", raising=False)
    assert "No C++ compiler was found" in str(native.missing())
    with pytest.raises(TargetUnavailableError, match=r"is not there\. No C\+\+ compiler"):
        native.require()


def test_a_library_that_is_none_is_named(fresh: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / native.LIBRARY
    broken.write_text("no library")
    fresh.setenv("SECATEURS_KERNELS", str(broken))
    assert "cannot be loaded" in str(native.missing())
    assert str(broken) in str(native.missing())


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(TargetUnavailableError, match=r"do not compile: .*\(false\)"):
        native.build(tmp_path)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file of the calls of a compiler that writes empty files."""
    compiler, told = tmp_path / "compiler", tmp_path / "calls"
    told.touch()
    written = 'while [ $# -gt 0 ]; do if [ "$1" = -o ]; then : > "$2"; fi; shift; done'
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {told}\n{written}\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    return told


def compiled(calls: Path) -> list[str]:
    """Files that were compiled since the last look, and "library" for each that was linked."""
    lines = calls.read_text().splitlines()
    calls.write_text("")
    found = (re.search(r" -c \S*/(\w+)\.cpp", line) for line in lines)
    return [match[1] if match else "library" for match in found]


def test_the_extension_for_openvino_takes_the_kernels_that_are_compiled(calls: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    from secateurs.elements import openvino

    kernels = native.build(tmp_path / "out")
    assert compiled(calls) == [*native.KERNEL_FILES, "library"]
    extension = openvino.extension(tmp_path / "out")
    assert compiled(calls) == ["openvino", "library"]
    assert kernels.is_file()
    assert extension.is_file()
    assert (native.build(tmp_path / "out"), openvino.extension(tmp_path / "out")) == (kernels, extension)
    assert compiled(calls) == []


def test_what_changed_is_compiled_anew(calls: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sources = tmp_path / "kernels"
    shutil.copytree(native.SOURCES, sources)
    monkeypatch.setattr(native, "SOURCES", sources)
    libraries = [native.build(tmp_path / "out")]
    compiled(calls)
    with open(sources / "pool.cpp", "a") as file:
        file.write("// changed\n")
    libraries.append(native.build(tmp_path / "out"))
    assert compiled(calls) == ["pool", "library"]
    with open(sources / "tile.h", "a") as file:
        file.write("// changed\n")
    libraries.append(native.build(tmp_path / "out"))
    assert compiled(calls) == [*native.KERNEL_FILES, "library"]
    monkeypatch.setitem(native._FLAGS, "neon", ["-O1"])
    monkeypatch.setattr(native.platform, "machine", lambda: "x86_64")
    libraries.append(native.build(tmp_path / "out"))
    assert "neon" in compiled(calls)
    assert len(set(libraries)) == 4


_FORKS = """
import ctypes, os, sys, torch
from secateurs.elements.module import SparseConv2d
torch.set_num_threads(2)
layer, x = SparseConv2d.from_dense(torch.nn.Conv2d(32, 64, 3)), torch.randn(1, 32, 20, 20)
with torch.inference_mode():
    layer(x)
    child = os.fork()
    if not child:
        if sys.argv[1] == "calls":
            layer(x)
        ctypes.CDLL(None).exit(0)  # runs destructors, and only those
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(native.missing() is not None or sys.platform == "win32", reason="needs the kernels and fork")
@pytest.mark.parametrize("child", ["calls", "does not call"])
def test_a_forked_process_ends(child: str) -> None:
    """The threads of its parent are not there: who waits for them waits for ever."""
    process = subprocess.Popen([sys.executable, "-c", _FORKS, child], start_new_session=True)
    try:
        assert process.wait(timeout=60) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


OLDER_PROCESSOR = """
#include <cstdio>
#include <cstdlib>
#include "sparse_conv.h"
#include "tile.h"
namespace secateurs {
// As on a processor without them: the first of their instructions ends the process.
const Isa* isa_avx512() { std::abort(); }
const Isa* isa_avx2() { std::abort(); }
const Isa* isa_neon() { return nullptr; }
}  // namespace secateurs
int main() { std::puts(secateurs_isa()); }
"""


def compiler_of() -> str:
    """The C++ compiler, or the test is skipped."""
    found = next((c for c in ("g++", "clang++") if shutil.which(c)), None)
    if found is None or platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("no C++ compiler, or no processor of this kind")
    return found


def test_nothing_of_an_instruction_set_is_called_where_the_processor_lacks_it(tmp_path: Path) -> None:
    main = tmp_path / "main.cpp"
    main.write_text(OLDER_PROCESSOR)
    program = tmp_path / "older"
    sources = [main, native.SOURCES / "dispatch.cpp", native.SOURCES / "plain.cpp"]
    flags = ["-std=c++17", "-O1", f"-I{native.SOURCES}", "-D__builtin_cpu_supports(name)=false", "-o", str(program)]
    subprocess.run([compiler_of(), *flags, *map(str, sources)], check=True)
    assert subprocess.run([program], capture_output=True, text=True, check=True).stdout == "plain\n"
