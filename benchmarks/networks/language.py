"""Transformers with random weights, each written in the manner of the code base that made it known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FusedAttention(nn.Module):
    """One projection for query, key and value, then PyTorch's own attention: the way of image transformers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        y = F.scaled_dot_product_attention(query, key, value)
        return self.out(y.transpose(1, 2).reshape(batch, tokens, width))


class PreNormBlock(nn.Module):
    """LayerNorm, attention, LayerNorm, two layers with GELU."""

    def __init__(self, width: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.norm2, self.attention = nn.LayerNorm(width), nn.LayerNorm(width), attention
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """ViT-Ti/16: Dosovitskiy et al. 2020, arXiv:2010.11929, with the sizes of DeiT."""

    def __init__(self, layers: int = 12, width: int = 192, heads: int = 3) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 16, 16)
        self.first = nn.Parameter(torch.randn(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, 197, width))
        self.blocks = nn.Sequential(*(PreNormBlock(width, FusedAttention(width, heads)) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class BertLayer(nn.Module):
    """Post-norm layer with separate projections and spelled-out attention (Devlin et al. 2018, arXiv:1810.04805)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out, self.norm1 = nn.Linear(width, width), nn.LayerNorm(width, eps=1e-12)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm2, self.heads = nn.LayerNorm(width, eps=1e-12), heads

    def split(self, x: Tensor) -> Tensor:
        return x.view(*x.size()[:-1], self.heads, -1).permute(0, 2, 1, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(query.size(-1)) + mask
        context = torch.matmul(torch.softmax(scores, dim=-1), value).permute(0, 2, 1, 3).contiguous()
        x = self.norm1(self.out(context.view(*context.size()[:-2], -1)) + x)
        return self.norm2(self.down(F.gelu(self.up(x))) + x)


class Bert(nn.Module):
    """BERT-base with its pooler."""

    def __init__(self, layers: int = 12, width: int = 768, heads: int = 12, words: int = 30522) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(words, width), nn.Embedding(512, width)
        self.kind = nn.Embedding(2, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(BertLayer(width, heads) for _ in range(layers))
        self.pooler = nn.Linear(width, width)
        self.register_buffer("positions", torch.arange(512)[None], persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, Tensor]:
        places = self.positions[:, : input_ids.size(1)]
        x = self.norm(self.word(input_ids) + self.kind(token_type_ids) + self.position(places))
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        for layer in self.layers:
            x = layer(x, mask)
        return x, torch.tanh(self.pooler(x[:, 0]))


class Conv1D(nn.Module):
    """A Linear whose weight lies the other way round."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(0.02 * torch.randn(inputs, outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        size = (*x.size()[:-1], self.bias.numel())
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


class GptBlock(nn.Module):
    """Block of GPT-2 (Radford et al. 2019): causal mask from a buffer, GELU by tanh from single operations."""

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = Conv1D(width, 3 * width), Conv1D(width, width)
        self.up, self.down, self.heads = Conv1D(width, 4 * width), Conv1D(4 * width, width), heads
        causal = torch.ones(context, context, dtype=torch.bool).tril()
        self.register_buffer("causal", causal.view(1, 1, context, context), persistent=False)

    def attend(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.view(*part.shape[:-1], self.heads, -1).permute(0, 2, 1, 3)
            for part in self.qkv(x).split(x.size(-1), dim=2)
        )
        scores = torch.matmul(query, key.transpose(-1, -2)) / value.size(-1) ** 0.5
        seen = self.causal[:, :, : query.size(-2), : key.size(-2)]
        lowest = torch.full([], torch.finfo(scores.dtype).min, dtype=scores.dtype)
        weights = torch.where(seen, scores, lowest).softmax(dim=-1)
        y = torch.matmul(weights, value).permute(0, 2, 1, 3).contiguous()
        return self.out(y.view(*y.shape[:-2], -1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        y = self.up(self.norm2(x))
        y = 0.5 * y * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (y + 0.044715 * torch.pow(y, 3.0))))
        return x + self.down(y)


class Gpt2(nn.Module):
    """GPT-2 small with its tied head."""

    def __init__(self, layers: int = 12, width: int = 768, heads: int = 12, words: int = 50257) -> None:
        super().__init__()
        self.word, self.position = nn.Embedding(words, width), nn.Embedding(1024, width)
        self.blocks = nn.ModuleList(GptBlock(width, heads, 1024) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        self.head.weight = self.word.weight
        nn.init.normal_(self.word.weight, std=0.02)

    def forward(self, input_ids: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
        x = self.word(input_ids) + self.position(places)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class RMSNorm(nn.Module):
    """Zhang and Sennrich 2019, arXiv:1910.07467."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = x.to(torch.float32)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * y.to(x.dtype)


def rotate_half(x: Tensor) -> Tensor:
    """Return the second half negated, then the first."""
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-second, first), dim=-1)


class LlamaLayer(nn.Module):
    """Grouped-query attention with rotary positions, gated feed-forward (Touvron et al. 2023, arXiv:2302.13971)."""

    def __init__(self, width: int, heads: int, groups: int, hidden: int) -> None:
        super().__init__()
        self.size, self.repeats = width // heads, heads // groups
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.query, self.out = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        self.key, self.value = (nn.Linear(width, groups * self.size, bias=False) for _ in range(2))
        self.gate, self.up = nn.Linear(width, hidden, bias=False), nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def repeat(self, x: Tensor) -> Tensor:
        batch, groups, tokens, size = x.shape
        x = x[:, :, None].expand(batch, groups, self.repeats, tokens, size)
        return x.reshape(batch, groups * self.repeats, tokens, size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        y = self.norm1(x)
        query, key, value = (
            part(y).view(batch, tokens, -1, self.size).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        query = query * cos + rotate_half(query) * sin
        key = key * cos + rotate_half(key) * sin
        y = F.scaled_dot_product_attention(query, self.repeat(key), self.repeat(value), attn_mask=mask)
        x = x + self.out(y.transpose(1, 2).reshape(batch, tokens, -1))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """A small model of Llama's kind: RMSNorm, rotary positions, grouped queries, SwiGLU."""

    def __init__(
        self, layers: int = 12, width: int = 768, heads: int = 12, groups: int = 4, words: int = 32000
    ) -> None:
        super().__init__()
        size = width // heads
        self.word = nn.Embedding(words, width)
        self.layers = nn.ModuleList(LlamaLayer(width, heads, groups, 2048) for _ in range(layers))
        self.norm, self.head = RMSNorm(width), nn.Linear(width, words, bias=False)
        inverse = 1.0 / (10000.0 ** (torch.arange(0, size, 2).float() / size))
        self.register_buffer("inverse", inverse, persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        tokens = input_ids.shape[1]
        x = self.word(input_ids)
        angles = torch.arange(tokens, device=x.device).float()[:, None] * self.inverse[None, :]
        angles = torch.cat((angles, angles), dim=-1)
        cos, sin = angles.cos()[None, None], angles.sin()[None, None]
        lowest = torch.finfo(x.dtype).min
        mask = torch.full((tokens, tokens), lowest, dtype=x.dtype, device=x.device).triu(1)[None, None]
        mask = mask.masked_fill(attention_mask[:, None, None, :] == 0, lowest)
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return self.head(self.norm(x))


class WhisperAttention(nn.Module):
    """Scale on query and key both, no bias on the key (Radford et al. 2022, arXiv:2212.04356)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.query, self.value, self.out = (nn.Linear(width, width) for _ in range(3))
        self.key, self.heads = nn.Linear(width, width, bias=False), heads

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.query(x), self.key(x), self.value(x)
        scale = (query.shape[-1] // self.heads) ** -0.25
        query = query.view(*query.shape[:2], self.heads, -1).permute(0, 2, 1, 3) * scale
        key = key.view(*key.shape[:2], self.heads, -1).permute(0, 2, 3, 1) * scale
        value = value.view(*value.shape[:2], self.heads, -1).permute(0, 2, 1, 3)
        weights = F.softmax((query @ key).float(), dim=-1).to(query.dtype)
        return self.out((weights @ value).permute(0, 2, 1, 3).flatten(start_dim=2))


def sinusoids(length: int, width: int) -> Tensor:
    """Return the position table of Whisper's encoder."""
    times = torch.exp(-math.log(10000) / (width // 2 - 1) * torch.arange(width // 2))
    angles = torch.arange(length)[:, None] * times[None, :]
    return torch.cat([torch.sin(angles), torch.cos(angles)], dim=1)


class WhisperEncoder(nn.Module):
    """The encoder of Whisper base, on a shorter clip."""

    def __init__(self, layers: int = 6, width: int = 512, heads: int = 8, frames: int = 1000) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(80, width, 3, padding=1), nn.Conv1d(width, width, 3, 2, padding=1)
        self.register_buffer("position", sinusoids(frames // 2, width))
        blocks: Sequence[nn.Module] = [PreNormBlock(width, WhisperAttention(width, heads)) for _ in range(layers)]
        self.blocks, self.norm = nn.ModuleList(blocks), nn.LayerNorm(width)

    def forward(self, mel: Tensor) -> Tensor:
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).permute(0, 2, 1)
        x = (x + self.position).to(x.dtype)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
