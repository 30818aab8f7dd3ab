"""The only door to NVML: what the driver says about the GPUs. Asks where nvidia-ml-py is installed.

Clocks and power are those of the moment; nothing is set, and what a device does not tell is left
out.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from typing import Any


def describe() -> list[dict[str, Any]]:
    """Facts about every GPU in the driver's order; none without nvidia-ml-py or a driver."""
    try:
        nvml: Any = import_module("pynvml")
    except ImportError:
        return []
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return []
    try:
        return [_describe(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    finally:
        nvml.nvmlShutdown()


def _describe(nvml: Any, index: int) -> dict[str, Any]:
    device = nvml.nvmlDeviceGetHandleByIndex(index)
    questions: dict[str, Callable[[], Any]] = {
        "name": lambda: nvml.nvmlDeviceGetName(device),
        "compute_capability": lambda: ".".join(
            map(str, nvml.nvmlDeviceGetCudaComputeCapability(device))
        ),
        "driver": nvml.nvmlSystemGetDriverVersion,
        "memory_gib": lambda: round(nvml.nvmlDeviceGetMemoryInfo(device).total / 2**30),
        "sm_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_SM),
        "max_sm_clock_mhz": lambda: nvml.nvmlDeviceGetMaxClockInfo(device, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": lambda: nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_MEM),
        "performance_state": lambda: nvml.nvmlDeviceGetPerformanceState(device),
        "power_watts": lambda: nvml.nvmlDeviceGetPowerUsage(device) / 1000,
        "power_limit_watts": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(device) / 1000,
        "temperature_celsius": lambda: nvml.nvmlDeviceGetTemperature(
            device, nvml.NVML_TEMPERATURE_GPU
        ),
        "persistence_mode": lambda: bool(nvml.nvmlDeviceGetPersistenceMode(device)),
        "mig": lambda: bool(nvml.nvmlDeviceGetMigMode(device)[0]),
        "pcie_generation": lambda: nvml.nvmlDeviceGetCurrPcieLinkGeneration(device),
        "pcie_width": lambda: nvml.nvmlDeviceGetCurrPcieLinkWidth(device),
        "compute_processes": lambda: len(nvml.nvmlDeviceGetComputeRunningProcesses(device)),
    }
    facts: dict[str, Any] = {}
    for name, ask in questions.items():
        with suppress(nvml.NVMLError):
            facts[name] = ask()
    return facts
