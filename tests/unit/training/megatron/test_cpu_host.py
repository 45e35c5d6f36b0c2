import pytest
import torch

from alignflow.training.megatron.cpu_host import cuda_calls_on_cpu

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
