"""What a process is set up for."""

import torch

from p2rec_core.runtime import prepared_device


def test_float32_has_all_of_its_bits_in_every_operation():
    prepared_device("cpu", torch.get_num_threads())
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


def test_operations_are_deterministic():
    prepared_device("cpu", torch.get_num_threads())
    assert torch.are_deterministic_algorithms_enabled()
