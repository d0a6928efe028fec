"""Weights of a model that only infers, laid out and rounded for its matrix-vector products.

Decoding one text reads every weight once a token, so its speed is bytes over bandwidth. On a CPU
torch's own bfloat16 product reaches half of that; oneDNN's packed layout, and weights of 8 and 4
bits, do better. The kernels of the latter take time for each row, so that prompts and batches
would be up to ten times slower than in bfloat16: these read a second, packed copy of the rounded
weights. Shapes: O out, I in, G groups of a row.
"""

import math

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
    """Rows of 8-bit whole numbers, each with a scale, where no kernel is better: w = scale * n."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        scale = (weight.float().abs().amax(1).clamp(min=1e-12) / 127).to(weight.dtype)
        self.weight = (weight.float() / scale.float()[:, None]).round().clamp(-127, 127).char()
        self.scale, self.bias = scale, bias

    def forward(self, x: Tensor) -> Tensor:
        out = (x @ self.weight.to(x.dtype).T) * self.scale
        return out if self.bias is None else out + self.bias


class FourBits(nn.Module):
    """Numbers of 4 bits; those of a group share a scale and an offset: w = scale (n - 8) + offset.

    `numbers` [O, K], `scale` and `offset` [O, G] in bfloat16's precision. Where K is `terms` times
    the input's width, a weight is the sum of so many numbers.
    """

    def __init__(
        self, numbers: Tensor, scale: Tensor, offset: Tensor, bias: Tensor | None, terms: int = 1
    ) -> None:
        super().__init__()
        self.n_out, self.bias, self.terms = len(numbers), bias, terms
        self.group = numbers.shape[1] // scale.shape[1]
        rows = (0, 0, 0, -self.n_out % 16)  # added, since the kernel takes sixteen at a time
        self.weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
            F.pad(numbers, rows).to(torch.int32), 1
        )
        both = F.pad(torch.stack([scale, offset]), rows).permute(2, 1, 0)  # [G, O, 2]
        self.scales = both.bfloat16().contiguous()
        groups = numbers.view(*scale.shape, -1) - 8
        rounded = groups * scale[..., None] + offset[..., None]
        rounded = rounded.view(self.n_out, terms, -1).sum(1)
        self.copy = Packed(rounded, bias) if packs(rounded) else None

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        if self.copy is not None and len(rows) > FEW_ROWS:
            return self.copy(x)  # type: ignore[no-any-return]
        if self.terms > 1:
            rows = rows.repeat(1, self.terms)
        product = torch.ops.aten._weight_int4pack_mm_for_cpu
        out: Tensor = product(rows, self.weight, self.group, self.scales)[:, : self.n_out]
        out = out.view(*x.shape[:-1], -1)
        return out if self.bias is None else out + self.bias


def int8(weight: Tensor, bias: Tensor | None) -> FourBits:
    """Whole numbers n = 16 high + low of -119 to 119, as two terms of 4 bits: torch's product of
    8 bits computes for longer than memory takes to read."""
    groups = weight.float().view(len(weight), -1, math.gcd(weight.shape[1], 256))
    scale = (groups.abs().amax(2).clamp(min=1e-12) / 119).bfloat16().float()
    numbers = (groups / scale[..., None]).round().clamp(-119, 119).flatten(1)
    high = ((numbers + 8) / 16).floor()  # so that both are in -8 to 7
    halves, scales = torch.cat([high, numbers - 16 * high], 1), torch.cat([16 * scale, scale], 1)
    return FourBits(halves + 8, scales, torch.zeros_like(scales), bias, terms=2)


def int4(weight: Tensor, bias: Tensor | None) -> FourBits:
    """Groups of GROUP weights in 4 bits. Of each group's range that is tried, the one with the
    least squared error is kept."""
    groups = weight.float().view(len(weight), -1, GROUP)
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    least = torch.full_like(low, torch.inf)
    numbers, scale, offset = groups, low, low
    for shrink in (1.0, 0.95, 0.9, 0.85, 0.8):
        step = ((high - low) * shrink / 15).clamp(min=1e-8).bfloat16().float()
        middle = ((high + low) / 2 + step / 2).bfloat16().float()
        tried = ((groups - middle) / step + 8).round().clamp(0, 15)
        error = ((tried - 8) * step + middle - groups).square().sum(2, keepdim=True)
        better = error < least
        least = torch.where(better, error, least)
        numbers = torch.where(better, tried, numbers)
        scale, offset = torch.where(better, step, scale), torch.where(better, middle, offset)
    return FourBits(numbers.flatten(1), scale[..., 0], offset[..., 0], bias)


@torch.no_grad()
def pack(model: Transformer, quantize: str = "none") -> None:
    """Replaces the matrices of a model that is in bfloat16; it cannot be trained or saved again.

    Matrices whose shape the 4-bit kernel does not take keep 8 bits. Embeddings stay as they are.
    """
    if quantize == "none" and not packs(model.embed.weight):
        return

    def packed(weight: Tensor, bias: Tensor | None) -> nn.Module:
        if quantize == "none":
            return Packed(weight, bias)
        if weight.device.type != "cpu" or weight.shape[1] % GROUP:
            return Int8(weight, bias)
        return int8(weight, bias) if quantize == "int8" else int4(weight, bias)

    for module in list(model.modules()):
        if isinstance(module, Block):
            attn = module.attn
            attn.joined = packed(*attn.joined_weights())
            attn.q_proj = attn.k_proj = attn.v_proj = nn.Identity()  # type: ignore[assignment]
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and name != "output":
                setattr(module, name, packed(child.weight, child.bias))
    model.output = packed(model.output_weight, model.output_bias_or_none)  # type: ignore[assignment]
