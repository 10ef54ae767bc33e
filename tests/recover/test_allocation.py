"""Freed memory is used again while a network is trained, and returned afterwards."""

import json
import os
import subprocess
import sys

import pytest

from secateurs.recover import allocation
from secateurs.recover.allocation import freed_memory_kept

MEASURED = """
import json, resource, torch
from secateurs.recover.allocation import freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.zeros(64 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() >> 20

outside, began = faults(), resident()
with freed_memory_kept():
    faults()
    with freed_memory_kept():
        inside = faults()
    still = faults()
    torch.ones(256 << 20, dtype=torch.uint8)
    most = resident() - began
print(json.dumps([outside, inside, still, most, resident() - began]))
"""


@pytest.mark.skipif(allocation._glibc() is None, reason="the C library is another one than glibc")
def test_large_blocks_are_used_again_and_returned_at_the_end() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    found = subprocess.run(
        [sys.executable, "-c", MEASURED], env=environment, capture_output=True, text=True, check=True
    )
    outside, inside, still, most, after = json.loads(found.stdout)
    assert max(inside, still) < outside / 4
    assert most > 200 > 100 > after


def test_what_the_user_sets_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    monkeypatch.setattr(allocation, "_set", lambda *given: pytest.fail("mallopt was called"))
    with freed_memory_kept():
        pass
