"""A GPU that is not there: refused where it would compute, and no matter where it would not."""

import pytest
import torch

from p2rec_core.errors import SettingsError
from p2rec_core.settings.pipeline import RuntimeSettings
from tasks.machine import check_device, machine_facts

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def test_what_needs_no_gpu_tells_of_its_machine_without_one() -> None:
    facts = machine_facts(RuntimeSettings(device="cuda:1"))
    assert (facts["device"], facts["gpu"]) == ("cuda:1", None)


@pytest.mark.parametrize("device", ["cuda", "cuda:3"])
def test_a_gpu_that_is_not_there_is_refused_with_what_to_do_whether_a_setting_or_an_option_asked_for_it(
    device: str,
) -> None:
    check_device("cpu")
    with pytest.raises(SettingsError, match="sees no CUDA GPU") as refused:
        check_device(device)
    assert refused.value.problem.startswith(f"The device (runtime.device, --device) is {device!r}, but torch")
    assert "--set runtime.device=cpu, or --device cpu" in refused.value.remedy
