"""The parts of attention that have hand-written mathematics of their own."""

import torch
import torch.nn.functional as F

from lmcli.model.kernels import RMSNorm, _RMSNorm


def test_the_written_gradient_of_rmsnorm_is_the_true_one():
    x = torch.randn(3, 4, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: _RMSNorm.apply(x, w, 1e-6), (x, weight))
    ours, torchs = _RMSNorm.apply(x, weight, 1e-6), F.rms_norm(x, (8,), weight, 1e-6)
    torch.testing.assert_close(ours, torchs, rtol=0, atol=1e-12)


def test_rmsnorm_of_zeros_is_zero_with_a_finite_gradient():
    norm = RMSNorm(8, 1e-6)
    torch.nn.init.ones_(norm.weight)
    x = torch.zeros(1, 2, 8, requires_grad=True)
    out = norm(x)
    out.sum().backward()
    assert out.abs().max() == 0 and torch.isfinite(x.grad).all()
