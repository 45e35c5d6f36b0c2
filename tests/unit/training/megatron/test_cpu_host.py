import subprocess
import sys

import pytest
import torch

from alignflow.training.megatron.cpu_host import compile_nothing_on_cpu, cuda_calls_on_cpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")


def test_the_cuda_device_is_the_cpu_inside() -> None:
    with cuda_calls_on_cpu():
        assert torch.zeros(2, device="cuda").device.type == "cpu"
        assert torch.zeros(2, device=torch.cuda.current_device()).device.type == "cpu"
        tensor = torch.ones(2)
        assert tensor.cuda() is tensor
        assert tensor.to("cuda").device.type == "cpu"
        assert tensor.type() == "torch.cuda.FloatTensor"
        torch.cuda.synchronize()


def test_nothing_is_changed_outside_even_after_an_error() -> None:
    before = torch.cuda.current_device
    with pytest.raises(KeyError), cuda_calls_on_cpu(), cuda_calls_on_cpu():
        raise KeyError
    assert torch.cuda.current_device is before
    assert torch.ones(2).type() == "torch.FloatTensor"
    with pytest.raises((AssertionError, RuntimeError)):
        torch.zeros(2, device="cuda")


def test_decorated_functions_stay_as_they_are_where_there_is_no_cuda() -> None:
    before = torch.compile
    with compile_nothing_on_cpu():
        assert torch.compile(max) is max
        assert torch.compile(dynamic=True)(max) is max
    assert torch.compile is before


def test_a_job_does_without_the_compiler() -> None:
    code = "import sys, alignflow.training.megatron.run; print('torch._inductor' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
