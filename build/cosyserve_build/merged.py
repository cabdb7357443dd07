"""Language model over one vocabulary of text and speech, as general-purpose engines need it.

CosyVoice has three embedding tables, for text, speech and two control rows, and a head for speech only. Here the tables
are stacked into one, in upstream's order (examples/grpo/cosyvoice2/pretrained_to_huggingface.py):

    0 .. n-1            the n tokens of the text tokenizer (151,663 in the official bundle)
    n + i               speech id i: <|s_0|> .. <|s_6560|>, then the three stop ids <|eos1|> <|eos2|> <|eos3|>
    then                <|sos|> <|task_id|>, and padding to a multiple of 128 rows

A prompt is <|sos|> text <|task_id|> prompt speech.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch
from tokenizers import AddedToken
from torch import Tensor

from cosyserve.config import LlmConfig, expect
from cosyserve.errors import BundleError, Unsupported
from cosyserve.text.tokenizer import Tokenizer
from cosyserve_build.bundles.bundle import Bundle, StateDict

STOPS = ("<|eos1|>", "<|eos2|>", "<|eos3|>")
SOS, TASK = "<|sos|>", "<|task_id|>"
PAD = "<|endoftext|>"

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{%- if message['role'] == 'user' %}{{- '<|sos|>' + message['content'] + '<|task_id|>' }}"
    "{%- elif message['role'] == 'assistant' %}{{- message['content'] }}"
    "{%- endif %}"
    "{%- endfor %}"
)
"""A user turn is text, of the prompt and then to speak; an assistant turn is the first speech tokens."""

ROWS = 128  # the number of rows is a multiple of this


@dataclass(frozen=True, slots=True)
class MergedLm:
    """Weights and tokenizer of the merged model; V rows, hidden size H, speech vocabulary S.

    Attributes:
        config: sizes.
        tokenizer: text tokenizer with all added tokens.
        ids: id of every token.
        offset: merged id of speech id 0, equal to the number of text tokens.
        tensors: float32 under the names of a Qwen2ForCausalLM: ``model.*``, ``model.embed_tokens.weight`` [V, H],
            ``lm_head.weight`` [V, H], zero in the rows of text.
        bias: bias of the speech rows of the head, float32 [S]; Qwen2's own head has no bias.
    """

    config: LlmConfig
    tokenizer: tokenizers.Tokenizer
    ids: dict[str, int]
    offset: int
    tensors: StateDict
    bias: Tensor

    @property
    def rows(self) -> int:
        """V, the padded size of the vocabulary."""
        return int(self.tensors["lm_head.weight"].shape[0])


def merge(opened: Bundle) -> MergedLm:
    """Merge the language model of a bundle.

    Raises:
        BundleError: the checkpoint or the tokenizer is invalid.
        Unsupported: the bundle's version is not 2.
    """
    state = _checkpoint(opened)
    config = expect(LlmConfig, opened.config.llm)
    text = Tokenizer.from_bundle(opened.tokenizer, opened.version)
    offset = len(text)
    if offset > config.vocab:
        raise BundleError(f"the tokenizer has {offset} ids, the text embedding only {config.vocab} rows")
    embedding = torch.cat(
        [
            state.pop("llm.model.model.embed_tokens.weight")[:offset],
            state.pop("speech_embedding.weight"),
            state.pop("llm_embedding.weight"),
        ]
    )
    embedding = torch.nn.functional.pad(embedding, (0, 0, 0, -len(embedding) % ROWS))
    head = torch.zeros_like(embedding)
    head[offset : offset + config.speech_vocab] = state.pop("llm_decoder.weight")
    bias = state.pop("llm_decoder.bias")
    tensors = _qwen2(state, embedding, head)
    tokenizer = _tokenizer(text, config.speech_tokens)
    return MergedLm(config, tokenizer, tokenizer.get_vocab(), offset, tensors, bias)


def speech_only(opened: Bundle) -> tuple[StateDict, Tensor]:
    """Return tensors and bias like those of `MergedLm`, but with S speech rows only; the caller embeds the text."""
    state = _checkpoint(opened)
    del state["llm.model.model.embed_tokens.weight"], state["llm_embedding.weight"]
    embedding, head, bias = (
        state.pop(name) for name in ("speech_embedding.weight", "llm_decoder.weight", "llm_decoder.bias")
    )
    return _qwen2(state, embedding, head), bias


def _checkpoint(opened: Bundle) -> StateDict:
    if not opened.description.llm.qwen2:
        raise Unsupported(f"the language model of CosyVoice version {opened.version} cannot be exported yet")
    return opened.llm()


def _qwen2(layers: StateDict, embedding: Tensor, head: Tensor) -> StateDict:
    tensors = {name.removeprefix("llm.model."): tensor for name, tensor in layers.items()}
    return tensors | {"model.embed_tokens.weight": embedding, "lm_head.weight": head}


def _tokenizer(text: Tokenizer, speech_tokens: int) -> tokenizers.Tokenizer:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "tokenizer.json"
        text.save(path)
        merged = tokenizers.Tokenizer.from_file(str(path))
    # Engines drop special tokens from their answers, so speech tokens must not be special.
    merged.add_tokens([AddedToken(f"<|s_{i}|>", normalized=False) for i in range(speech_tokens)])
    merged.add_special_tokens([AddedToken(token, normalized=False) for token in (*STOPS, SOS, TASK)])
    return merged
