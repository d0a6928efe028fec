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
ROWS = 4096  # of a large vocabulary that are rounded at a time


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
    """Rows of 8-bit whole numbers, each with a scale, where no kernel takes fewer: w = scale * n.

    On a CPU in bfloat16 again; elsewhere widened at each call, which saves memory and not time.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        scale = (weight.float().abs().amax(1, keepdim=True).clamp(min=1e-12) / 127).to(weight)
        numbers = (weight.float() / scale.float()).round().clamp(-127, 127)
        self.copy = Packed(numbers * scale.float(), bias) if packs(weight) else None
        self.weight = None if self.copy else numbers.to(torch.int8)
        self.scale, self.bias = scale[:, 0], bias

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is None:
            return self.copy(x)  # type: ignore[no-any-return, misc]
        out = (x @ self.weight.to(x.dtype).T) * self.scale
        return out if self.bias is None else out + self.bias


class FourBits(nn.Module):
    """Weights of 8 or 4 `bits` as numbers of 4; those of a group share a scale and an offset:
    w = scale (n - 8) + offset.

    8 bits are the sum of two such numbers, and the input comes twice: torch's product of 8 bits
    computes for longer than memory takes to read.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, bits: int) -> None:
        super().__init__()
        self.n_out, self.terms, self.bias = len(weight), bits // 4, bias
        round_ = _eight_bits if bits == 8 else _four_bits
        parts = [round_(rows.float()) for rows in torch.split(weight, ROWS)]
        numbers, scale, offset = map(torch.cat, zip(*parts, strict=True))
        self.group = numbers.shape[1] // scale.shape[1]
        added = (0, 0, 0, -self.n_out % 16)  # rows, since the kernel takes sixteen at a time
        self.weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
            F.pad(numbers, added).to(torch.int32), 1
        )
        both = F.pad(torch.stack([scale, offset]), added).permute(2, 1, 0)  # [G, O, 2]
        self.scales = both.bfloat16().contiguous()
        self.copy = None
        if packs(weight):
            again = torch.cat([self._weights(*part).bfloat16() for part in parts])
            self.copy = Packed(again, bias)

    def _weights(self, numbers: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
        groups = numbers.view(*scale.shape, -1).float() - 8
        weights = groups * scale[..., None] + offset[..., None]
        return weights.view(len(numbers), self.terms, -1).sum(1)

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


Rounded = tuple[Tensor, Tensor, Tensor]  # numbers 0 to 15 [O, K]; scale and offset [O, G]


def _eight_bits(weight: Tensor) -> Rounded:
    """-119 to 119 as 16 high + low, both in -8 to 7: [O, I] -> numbers [O, 2 I]."""
    groups = weight.view(len(weight), -1, math.gcd(weight.shape[1], 256))
    scale = (groups.abs().amax(2).clamp(min=1e-12) / 119).bfloat16().float()
    numbers = (groups / scale[..., None]).round().clamp(-119, 119).flatten(1)
    high = ((numbers + 8) / 16).floor()
    halves, scales = torch.cat([high, numbers - 16 * high], 1), torch.cat([16 * scale, scale], 1)
    return (halves + 8).to(torch.uint8), scales, torch.zeros_like(scales)


def _four_bits(weight: Tensor) -> Rounded:
    """Of the ranges of a group of GROUP that are tried, the one with the least squared error."""
    groups = weight.view(len(weight), -1, GROUP)
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
    return numbers.flatten(1).to(torch.uint8), scale[..., 0], offset[..., 0]


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
        return FourBits(weight, bias, 8 if quantize == "int8" else 4)

    for module in list(model.modules()):
        if isinstance(module, Block):
            attn = module.attn
            attn.joined = packed(*attn.joined_weights())
            attn.q_proj = attn.k_proj = attn.v_proj = nn.Identity()  # type: ignore[assignment]
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and name != "output":
                setattr(module, name, packed(child.weight, child.bias))
    model.output = packed(model.output_weight, model.output_bias_or_none)  # type: ignore[assignment]
