"""The NVIDIA device of this machine, as its driver tells it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from secateurs.latency.targets._base import processor_facts

_LIBRARIES = ("libcuda.so.1", "nvcuda.dll")


@dataclass(frozen=True)
class CudaDevice:
    """``name``: of the first device; ``driver``: CUDA version that the driver offers, such as ``12.4``."""

    name: str
    driver: str


def load_driver() -> Any:
    """The driver's library, None where it is not installed."""
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def find_device(load: Callable[[], Any] | None = None) -> CudaDevice | str:
    """The first CUDA device, or the reason why there is none. ``load``: gives the driver's library."""
    driver = (load or load_driver)()
    if driver is None:
        return "there is no CUDA device: this machine has no NVIDIA driver (libcuda.so.1 is not found)"
    code = driver.cuInit(0)
    if code != 0:
        return f"there is no CUDA device: the NVIDIA driver does not start (cuInit gave error {code})"
    count, version, device = ctypes.c_int(0), ctypes.c_int(0), ctypes.c_int(0)
    driver.cuDeviceGetCount(ctypes.byref(count))
    if count.value < 1:
        return "there is no CUDA device: the NVIDIA driver is installed but finds none (see CUDA_VISIBLE_DEVICES)"
    driver.cuDriverGetVersion(ctypes.byref(version))
    driver.cuDeviceGet(ctypes.byref(device), 0)
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGetName(name, 256, device)
    return CudaDevice(name.value.decode("utf-8", "replace"), f"{version.value // 1000}.{version.value % 1000 // 10}")


def device_facts(target: str, runtime: str, precision: str, threads: int) -> dict[str, str | int]:
    """What a measurement on the first CUDA device depends on, besides what one on the host's processor does.

    Without a device it is named "none", so that a fingerprint can be told all the same.
    """
    found = find_device()
    device = found if isinstance(found, CudaDevice) else CudaDevice("none", "none")
    host = processor_facts(target, runtime, precision, threads)
    return {**host, "device": device.name, "host_device": host["device"], "driver": f"CUDA {device.driver}"}
