"""Memory is looked at before a training begins."""

import subprocess
import sys

import pytest
import torch

from p2rec_core import memory
from p2rec_core.errors import ResourceError

CPU = torch.device("cpu")
LIMITED = """
import resource, torch
from p2rec_core.memory import free_bytes
before = free_bytes(torch.device("cpu"))
used = next(int(l.split()[1]) * 1024 for l in open("/proc/self/status") if l.startswith("VmSize:"))
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
print(before, free_bytes(torch.device("cpu")))
"""


def test_a_table_that_cannot_fit_says_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 4 * 7 * 1001 * 80)
    memory.check_item_table(1000, 80, CPU)
    with pytest.raises(ResourceError, match=r"1,000 items x hidden_size 81 .* training") as caught:
        memory.check_item_table(1000, 81, CPU)
    assert "hidden_size to at most 80" in caught.value.remedy


def test_where_nothing_is_known_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: None)
    memory.check_item_table(10**12, 10**6, CPU)


def test_a_limit_of_the_process_counts() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert 0 < after <= 64 << 20 < before


def test_a_limit_of_the_control_group_counts(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.max").write_text("max\n")
    unlimited = memory.free_bytes(CPU)
    (tmp_path / "memory.max").write_text("5000\n")
    assert memory.free_bytes(CPU) == 4000
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 300\n")
    assert memory.free_bytes(CPU) == 4300
    assert unlimited is not None
    assert unlimited > 4300
