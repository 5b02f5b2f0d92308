"""What the machine can do at most: rate of matrix multiplication and bandwidth of memory.

python benchmarks/machine_limits.py [THREADS]
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import clock
import torch

SIDE = 2048
"""Rows and columns of the multiplied matrices."""

COPIED_BYTES = 256 << 20
"""Size of the array that is copied: far more than a cache holds."""

REPEATS = 7
CPU = torch.device("cpu")


def wait_for(device: torch.device) -> None:
    """Return when a GPU has done what it was told; a processor has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fastest(work: Callable[[], object], device: torch.device = CPU) -> float:
    """Seconds of the fastest of some calls, after one to warm up: a limit is what nothing disturbed."""
    work()
    wait_for(device)
    seconds = []
    for _ in range(REPEATS):
        begun = clock.now()
        work()
        wait_for(device)
        seconds.append(clock.now() - begun)
    return min(seconds)


def multiply_gflops(dtype: torch.dtype, *, side: int = SIDE, device: torch.device = CPU) -> float:
    """Rate of square matrix multiplication, in 1e9 multiplications and additions a second."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(left)
    return 2 * side**3 / fastest(lambda: torch.mm(left, right, out=product), device) / 1e9


def has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 in hardware; False where the system does not say."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))


def copy_gb_per_s(*, n_bytes: int = COPIED_BYTES, device: torch.device = CPU) -> float:
    """Bandwidth of a copy in memory, in 1e9 bytes a second, those read and those written."""
    source = torch.ones(n_bytes // 4, device=device)
    target = torch.empty_like(source)
    return 2 * n_bytes / fastest(lambda: target.copy_(source), device) / 1e9


def limits(threads: int) -> dict[str, float | int | None]:
    """All limits of the machine with so many threads.

    Args:
        threads: Threads of one operation.

    Returns:
        ``threads``, ``f32_gflops``, ``bf16_gflops`` (None where the processor has no bfloat16) and ``copy_gb_per_s``.
    """
    torch.set_num_threads(threads)
    return {
        "threads": threads,
        "f32_gflops": multiply_gflops(torch.float32),
        "bf16_gflops": multiply_gflops(torch.bfloat16) if has_bf16() else None,
        "copy_gb_per_s": copy_gb_per_s(),
    }


def main() -> None:
    """Print the limits as JSON."""
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else os.cpu_count() or 1
    print(json.dumps(limits(threads)))


if __name__ == "__main__":
    main()
