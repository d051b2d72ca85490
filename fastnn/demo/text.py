"""`--task text`: two models learn to continue a text, character by character.

The text is the language reference that Python itself carries for its `help()`, the module `pydoc_data.topics`:
79 pages, 460,000 characters in Python 3.11, a little more or less in other versions. Nothing is downloaded.
"""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch
import torch.nn.functional as F

from fastnn.demo.data import Data, MissingError, split
from fastnn.demo.task import Task

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))  # quotation marks of other alphabets are left out
LENGTH = 64  # characters that a model sees
EMBEDDING, HIDDEN = 64, 128
HEADS, LAYERS = 4, 2
_HELD_OUT = 0.05
_LEAST = 100_000  # characters: any whole copy of the text has four times as many
_TEMPERATURE = 0.7  # below 1, likely characters are drawn more often than the model says
_SEED = 0


def text() -> str:
    """The topics in the order of their names."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        topics = {}
    joined = "\n".join(topics[name] for name in sorted(topics))
    known = "".join(character for character in joined if character in ALPHABET)
    if len(known) < _LEAST:
        raise MissingError(
            "demo: this Python lacks the text of its help(), pydoc_data.topics: install its whole standard library"
        )
    return known


def encode(characters: str) -> torch.Tensor:
    """Places in the alphabet, int64."""
    return torch.tensor([ALPHABET.index(character) for character in characters])


def decode(places: list[int]) -> str:
    return "".join(ALPHABET[place] for place in places)


def load() -> Data:
    """Pieces of the text, N x LENGTH, and the character after each of theirs; the last short piece is left out."""
    places = encode(text())
    pieces = places.unfold(0, LENGTH + 1, LENGTH)
    return split(pieces[:, :-1], pieces[:, 1:], round(_HELD_OUT * len(pieces)))


def gru(nn: ModuleType, dropout: float) -> torch.nn.Module:
    """Embedding, GRU, linear; it has no dropout to set."""

    class GRUModel(nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(len(ALPHABET), EMBEDDING)
            self.gru = nn.GRU(EMBEDDING, HIDDEN, batch_first=True)
            self.output = nn.Linear(HIDDEN, len(ALPHABET))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            states, _ = self.gru(self.embedding(x))
            y: torch.Tensor = self.output(states)
            return y

    return GRUModel()


def transformer(nn: ModuleType, dropout: float) -> torch.nn.Module:
    """Embeddings of character and place, encoder layers in which no character sees a later one, linear."""

    class TransformerModel(nn.Module):  # type: ignore[name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(len(ALPHABET), EMBEDDING)
            self.place = nn.Embedding(LENGTH, EMBEDDING)
            self.layers = nn.ModuleList(
                nn.TransformerEncoderLayer(
                    EMBEDDING, HEADS, 4 * EMBEDDING, dropout, batch_first=True, norm_first=True
                )
                for _ in range(LAYERS)
            )
            self.output = nn.Linear(EMBEDDING, len(ALPHABET))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            T = x.shape[1]
            mask = nn.Transformer.generate_square_subsequent_mask(T)
            y: torch.Tensor = self.embedding(x) + self.place(torch.arange(T))
            for layer in self.layers:
                y = layer(y, src_mask=mask, is_causal=True)
            y = self.output(y)
            return y

    return TransformerModel()


def sample(model: torch.nn.Module, start: str = "The ", characters: int = 300, seed: int = _SEED) -> str:
    """`start` and what the model makes of it: each next character is drawn from the model's own probabilities."""
    generator = torch.Generator().manual_seed(seed)
    places = encode(start).tolist()
    training = model.training
    model.eval()
    with torch.no_grad():
        for _ in range(characters):
            outputs = model(torch.tensor([places[-LENGTH:]]))[0, -1]
            chances = F.softmax(outputs / _TEMPERATURE, dim=0)
            places.append(int(torch.multinomial(chances, 1, generator=generator)))
    model.train(training)
    return decode(places)


TEXT = Task(
    title="the text of Python's help()",
    unit="characters",
    load=load,
    models={"GRU": gru, "Transformer": transformer},
    optimizer=functools.partial(torch.optim.Adam, lr=3e-3),
    batch=32,
    dropout=0.0,  # the masks of fastnn and of torch differ: the losses would, too
    epochs=3,
    quick_epochs=1,
    least={"GRU": 0.55, "Transformer": 0.45},
    sample=sample,
)
