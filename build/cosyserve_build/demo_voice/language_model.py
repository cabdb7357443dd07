"""Train the language model, text to speech tokens.

Sequences are those of upstream llm/llm.py :: Qwen2LM: single utterances; several of one voice, of which the first play
the prompt; and text and speech interleaved, for text that arrives in pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from cosyserve.config import LlmConfig
from cosyserve.networks.qwen2 import SpeechLM
from cosyserve.text.tokenizer import Tokenizer
from cosyserve_build.demo_voice.codebook import used_ids
from cosyserve_build.demo_voice.training import Run, device, train

LANGUAGE = Run("llm", steps=27_500, rate=2e-3, warmup=200, average=0.998, half=True)
_POSITIONS = 2_000  # in a batch, padding included
_SHORT_FIRST = 0.2  # share of the steps in which the maximum length grows
_SHORTEST, _LONGEST = 40, 400  # maximum positions of a sequence, at first and at the end
_ALONE = 0.25  # share of the steps with single utterances only, which make the alignment easier to learn
_POOL = 48  # sequences drawn, from which a batch takes those of similar length
_ROWED = 0.75  # share of sequences with several utterances of one voice
_MOST = 4  # utterances in one of these
_PARAGRAPHS = 0.6  # share of these tokenized as one paragraph; a prompt and the text after it are separate
_INTERLEAVED = 0.1
_CORRUPTED = 0.15  # share of input speech tokens that are replaced at random
_DROPOUT = 0.1
_NEVER = -30.0  # logit of ids that the codebook does not use

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Said:
    """An utterance.

    Attributes:
        text: text ids of the utterance alone.
        following: text ids where the text follows another in one paragraph.
        speech: speech tokens.
    """

    text: Ids
    following: Ids
    speech: Ids

    @classmethod
    def of(cls, tokenizer: Tokenizer, text: str, speech: Ids) -> Said:
        """Tokenize an utterance."""
        alone, behind = (np.asarray(tokenizer.encode_user(line)) for line in (text, " " + text))
        return cls(alone, behind, speech)


class LanguageModel(nn.Module):
    """Decoder with its embedding tables."""

    def __init__(self, config: LlmConfig) -> None:
        super().__init__()
        self.config = config
        self.decoder = SpeechLM(config)
        self.text = nn.Embedding(config.vocab, config.hidden)
        self.speech = nn.Embedding(config.speech_vocab, config.hidden)
        self.special = nn.Embedding(2, config.hidden)
        for table in (self.text, self.speech, self.special):
            nn.init.normal_(table.weight, std=0.3)
        used = [*used_ids().tolist(), config.eos, config.fill]
        self.register_buffer("used", torch.tensor(used))
        places = torch.full((config.speech_vocab,), -1)
        places[torch.tensor(used)] = torch.arange(len(used))
        self.register_buffer("places", places)

    def scores(self, ids: Tensor) -> Tensor:
        """Map ids [B, T] as `Sequences` numbers them to scores [B, T, used ids]."""
        config = self.config
        table = torch.cat([self.speech.weight, self.special.weight, self.text.weight])
        embeds = F.dropout(F.embedding(ids, table), _DROPOUT, self.training)
        past = [embeds.new_zeros(len(ids), config.kv_heads, 1, config.head_dim)] * config.layers
        hidden, *_ = self.decoder.hidden(
            embeds, torch.zeros(len(ids), dtype=torch.int64, device=ids.device), past, past
        )
        head, used = self.decoder.llm_decoder, self.get_buffer("used")
        return F.linear(F.dropout(hidden, _DROPOUT, self.training), head.weight[used], head.bias[used])

    def states(self) -> dict[str, Tensor]:
        """State dict of ``llm.pt``; a low bias keeps ids that the codebook does not use from being sampled."""
        state = self.decoder.state_dict()
        used = torch.zeros(self.config.speech_vocab, dtype=torch.bool)
        used[self.get_buffer("used").cpu()] = True
        for name in ("llm_decoder.weight", "llm_decoder.bias"):
            state[name] = state[name].clone()
            state[name][~used] = 0
        state["llm_decoder.bias"][~used] = _NEVER
        speech = self.speech.weight.detach().clone()
        speech[~used] = 0
        return state | {
            "speech_embedding.weight": speech,
            "llm_embedding.weight": self.special.weight.detach(),
            "llm.model.model.embed_tokens.weight": self.text.weight.detach(),
        }


class Sequences:
    """Training sequences: input ids, and the target speech id after each position, -1 for none.

    Input ids are rows of (speech | special | text).

    Args:
        config: special ids.
        speakers: utterances of each speaker, and how often it is drawn.
    """

    def __init__(self, config: LlmConfig, speakers: list[tuple[list[Said], float]]) -> None:
        self._config, self._speakers = config, [said for said, _ in speakers]
        self._shares = [share for _, share in speakers]
        self._start, self._task = config.start_row, config.task_row
        self._text = config.speech_vocab + 2
        self._codes = used_ids()

    def draw(self, rng: np.random.Generator, longest: int, *, alone: bool) -> tuple[Tensor, Tensor]:
        """Draw a batch of ids and targets [B, T] of similar length; `alone` allows single utterances only."""
        drawn = [self._sequence(rng, alone=alone) for _ in range(_POOL)]
        pool = sorted((row for row in drawn if len(row[0]) <= longest), key=lambda row: len(row[0]))
        if not pool:
            return self.draw(rng, longest, alone=alone)
        first = int(rng.integers(0, len(pool)))
        rows = [pool[first]]
        for row in pool[first + 1 :]:
            if (len(rows) + 1) * len(row[0]) > _POSITIONS:
                break
            rows.append(row)
        width = len(rows[-1][0])
        ids, targets = np.zeros((len(rows), width), np.int64), np.full((len(rows), width), -1)
        for at, (fed, wanted) in enumerate(rows):
            ids[at, : len(fed)], targets[at, : len(fed)] = fed, wanted
        return torch.from_numpy(ids).to(device()), torch.from_numpy(targets).to(device())

    def _sequence(self, rng: np.random.Generator, *, alone: bool) -> tuple[Ids, Ids]:
        kind = _ROWED if alone else rng.random()
        # Without a prompt nothing identifies the voice, so single utterances are those of the first speaker.
        who = int(rng.choice(len(self._speakers), p=self._shares)) if kind < _ROWED else 0
        said = self._speakers[who]
        count = int(rng.integers(2, _MOST + 1)) if kind < _ROWED else 1
        parts = [said[int(rng.integers(0, len(said)))] for _ in range(count)]
        paragraph = rng.random() < _PARAGRAPHS
        first, *others = parts
        text = np.concatenate([first.text, *(part.following if paragraph else part.text for part in others)])
        speech = np.concatenate([part.speech for part in parts])
        pieces = self._interleaved(text, speech) if kind > 1 - _INTERLEAVED else self._whole(text, speech)
        fed, wanted = (np.concatenate(column) for column in zip(*pieces, strict=True))
        wrong = (fed < self._config.speech_tokens) & (rng.random(len(fed)) < _CORRUPTED)
        fed[wrong] = rng.choice(self._codes, int(wrong.sum()))
        return fed, wanted

    def _whole(self, text: Ids, speech: Ids) -> list[tuple[Ids, Ids]]:
        opening = np.array([self._start, *(self._text + text)])
        return [(opening, np.full(len(opening), -1)), self._spoken(self._task, speech, self._config.eos)]

    def _interleaved(self, text: Ids, speech: Ids) -> list[tuple[Ids, Ids]]:
        texts, block = self._config.mix_ratio
        pieces = [(np.array([self._start]), np.array([-1]))]
        while len(text) >= texts and len(speech) > block:
            pieces.append((self._text + text[: texts - 1], np.full(texts - 1, -1)))
            pieces.append(self._spoken(self._text + int(text[texts - 1]), speech[:block], self._config.fill))
            text, speech = text[texts:], speech[block:]
        pieces.append((self._text + text, np.full(len(text), -1)))
        return [*pieces, self._spoken(self._task, speech, self._config.eos)]

    @staticmethod
    def _spoken(before: int, speech: Ids, after: int) -> tuple[Ids, Ids]:
        """Input and targets of speech that follows the id `before`; `after` is the target of the last token."""
        return np.array([before, *speech]), np.array([*speech, after])


def train_language_model(folder: Path, config: LlmConfig, sequences: Sequences, run: Run = LANGUAGE) -> LanguageModel:
    """Train the language model on sequences of the corpus."""
    torch.manual_seed(run.seed)
    module = LanguageModel(config).to(device())

    def loss(rng: np.random.Generator, done: float) -> Tensor:
        grown = min(1.0, done / _SHORT_FIRST)
        longest = int(_SHORTEST + grown * (_LONGEST - _SHORTEST))
        ids, targets = sequences.draw(rng, longest, alone=done < _ALONE)
        scores = module.scores(ids).float()
        wanted = torch.where(targets < 0, -1, module.get_buffer("places")[targets.clamp(min=0)])
        return F.cross_entropy(scores.flatten(0, 1), wanted.flatten(), ignore_index=-1)

    train(folder, run, module, loss)
    return module
