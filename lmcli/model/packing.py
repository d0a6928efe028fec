"""Weights of a model that only infers, laid out and rounded for its matrix-vector products.

Decoding one text reads every weight once a token, so its speed is bytes over bandwidth. On a CPU
torch's own bfloat16 product reaches half of that; oneDNN's packed layout, and weights of 8 and 4
bits, do better. The kernels of the latter take time for each row, so that prompts and batches
would be up to ten times slower than in bfloat16: these read a second, packed copy of the rounded
weights. Shapes: O out, I in, G groups of a row.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmcli.model.transformer import Block, Transformer

GROUP = 32  # weights that share a scale and an offset in 4 bits
FEW_ROWS = 2  # for which fewer bytes are faster


class Packed(nn.Module):
    """A linear layer in bfloat16, in oneDNN's layout."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.bfloat16(), 1)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return out


def packs(weight: Tensor) -> bool:
    """Whether this is a CPU that has what oneDNN's bfloat16 needs."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()  # type: ignore[no-any-return]


class Int8(nn.Module):
    """Rows of 8-bit whole numbers and a scale for each: w = scale * n."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        scale = weight.float().abs().amax(1).clamp(min=1e-12) / 127
        self.weight = (weight.float() / scale[:, None]).round().to(torch.int8)
        self.scale, self.bias = scale.to(weight.dtype), bias
        rounded = self.weight.float() * self.scale[:, None]
        self.copy = Packed(rounded, bias) if packs(weight) else None

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if self.copy is not None and len(rows) > FEW_ROWS:
            return self.copy(x)  # type: ignore[no-any-return]
        if x.device.type == "cpu":
            out = torch._weight_int8pack_mm(rows, self.weight, self.scale).view(*x.shape[:-1], -1)
        else:
            out = (x @ self.weight.to(x.dtype).T) * self.scale
        return out if self.bias is None else out + self.bias


class Int4(nn.Module):
    """Groups of GROUP weights in 4 bits, with a scale and an offset each: w = scale (n - 8) + zero.

    Of each group's range that is tried, the one with the least squared error is kept.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.n_out = len(weight)
        weight = F.pad(weight, (0, 0, 0, -self.n_out % 16))  # rows that the kernel takes
        n_out, n_in = weight.shape
        groups = weight.float().view(n_out, n_in // GROUP, GROUP)
        low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
        least = torch.full_like(low, torch.inf)
        numbers, scale, zero = groups, low, low
        for shrink in (1.0, 0.95, 0.9, 0.85, 0.8):
            step = ((high - low) * shrink / 15).clamp(min=1e-8).bfloat16().float()
            middle = ((high + low) / 2 + step / 2).bfloat16().float()
            tried = ((groups - middle) / step + 8).round().clamp(0, 15)
            error = ((tried - 8) * step + middle - groups).square().sum(2, keepdim=True)
            better = error < least
            least = torch.where(better, error, least)
            numbers = torch.where(better, tried, numbers)
            scale, zero = torch.where(better, step, scale), torch.where(better, middle, zero)
        both = torch.cat([scale, zero], 2).transpose(0, 1).contiguous()  # [G, O, 2]
        self.scales = both.bfloat16()
        flat = numbers.view(n_out, n_in).to(torch.int32)
        self.weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(flat, 1)
        self.bias = bias
        rounded = ((numbers - 8) * scale + zero).view(n_out, n_in)[: self.n_out]
        self.copy = Packed(rounded, bias) if packs(weight) else None

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if self.copy is not None and len(rows) > FEW_ROWS:
            return self.copy(x)  # type: ignore[no-any-return]
        product = torch.ops.aten._weight_int4pack_mm_for_cpu
        out: Tensor = product(rows, self.weight, GROUP, self.scales)[:, : self.n_out]
        out = out.view(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


@torch.no_grad()
def pack(model: Transformer, quantize: str = "none") -> None:
    """Replaces the matrices of a model that is in bfloat16; it cannot be trained or saved again.

    Matrices whose shape the 4-bit kernel does not take keep 8 bits. Embeddings stay as they are.
    """
    if quantize == "none" and not packs(model.embed.weight):
        return

    def packed(weight: Tensor, bias: Tensor | None) -> nn.Module:
        if quantize == "int4" and not weight.shape[1] % GROUP:
            return Int4(weight, bias)
        return Packed(weight, bias) if quantize == "none" else Int8(weight, bias)

    for module in list(model.modules()):
        if isinstance(module, Block):
            attn = module.attn
            attn.joined = packed(*attn.joined_weights())
            attn.q_proj = attn.k_proj = attn.v_proj = nn.Identity()  # type: ignore[assignment]
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and name != "output":
                setattr(module, name, packed(child.weight, child.bias))
    model.output = packed(model.output_weight, model.output_bias_or_none)  # type: ignore[assignment]
