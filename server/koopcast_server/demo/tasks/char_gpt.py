"""A small character transformer: decoder only, pre-norm, no dropout."""

from __future__ import annotations

from functools import cache
from typing import Final

import torch
from torch import Tensor, nn

from koopcast_server.demo.tasks.batches import drawn, watched
from koopcast_server.demo.tasks.data import load_bible
from koopcast_server.demo.tasks.task import Problem, Task

__all__ = ["CHAR_GPT", "CharacterTransformer"]

_CONTEXT: Final = 64
_WIDTH: Final = 64
_LAYERS: Final = 2
_HEADS: Final = 4
_BATCH: Final = 16
_PROBE_BATCHES: Final = 4
_VALIDATION_SEQUENCES: Final = 64
_VALIDATION_SHARE: Final = 0.1
_DEVIATION: Final = 0.02
"""Standard deviation of the first weights, as in GPT-2."""


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.inner_norm = nn.LayerNorm(_WIDTH), nn.LayerNorm(_WIDTH)
        self.queries_keys_values = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.projection = nn.Linear(_WIDTH, _WIDTH)
        self.inner = nn.Sequential(nn.Linear(_WIDTH, 4 * _WIDTH), nn.GELU(), nn.Linear(4 * _WIDTH, _WIDTH))

    def forward(self, stream: Tensor) -> Tensor:
        batch, length, _ = stream.shape
        heads = self.queries_keys_values(self.attention_norm(stream)).view(batch, length, 3, _HEADS, -1)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        stream = stream + self.projection(mixed.transpose(1, 2).reshape(batch, length, _WIDTH))
        attended: Tensor = stream + self.inner(self.inner_norm(stream))
        return attended


class CharacterTransformer(nn.Module):
    """Logits of the next character at every place.

    Args:
        characters: of the alphabet.
    """

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(characters, _WIDTH), nn.Embedding(_CONTEXT, _WIDTH)
        self.blocks = nn.Sequential(*(_Block() for _ in range(_LAYERS)))
        self.norm = nn.LayerNorm(_WIDTH)
        self.head = nn.Linear(_WIDTH, characters, bias=False)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=_DEVIATION)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, text: Tensor) -> Tensor:
        """float32 (batch, length, characters) for int64 (batch, length)."""
        stream = self.characters(text) + self.places.weight[: text.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(stream)))
        return logits


@cache
def _text() -> tuple[Tensor, Tensor, int]:
    """Text to train on, text to validate on, and the alphabet's size."""
    text, alphabet = load_bible()
    training = int((1.0 - _VALIDATION_SHARE) * len(text))
    return text[:training], text[training:], len(alphabet)


def _sequences(text: Tensor, count: int, seed: int) -> Tensor:
    """int64 (count, context + 1), from random places."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(len(text) - _CONTEXT, (count, 1), generator=generator)
    return text[starts + torch.arange(_CONTEXT + 1)]


def _loss(model: CharacterTransformer, sequences: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(sequences[:, :-1]).flatten(0, 1), sequences[:, 1:].flatten())


def _make(seed: int) -> Problem:
    training, validation, characters = _text()
    model = drawn(lambda: CharacterTransformer(characters), seed)
    validated = _sequences(validation, _VALIDATION_SEQUENCES, seed=0)
    probed = _sequences(training, _PROBE_BATCHES * _BATCH, seed=1)

    def target_loss() -> float:
        with watched(model):
            return float(_loss(model, validated))

    return Problem(
        model,
        batch_loss=lambda step: _loss(model, _sequences(training, _BATCH, 1_000_003 * (seed + 1) + step)),
        target_loss=target_loss,
        probe=lambda: _loss(model, probed),
        probe_cost_steps=_PROBE_BATCHES,
    )


CHAR_GPT: Final = Task(
    name="char-gpt",
    title="King James Bible in characters, transformer of 2 layers of width 64, batches of 16 × 64",
    kind="stochastic",
    budget_steps=500,
    target="validation loss",
    make=_make,
)
