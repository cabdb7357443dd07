"""Instruction and inline phones of version 3."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
from test_frontend import CONFIG, PROMPT, TEXT, TINY, Networks, inline, stored

from cosyserve.config import CosyVoice3LlmConfig
from cosyserve.errors import InvalidInput
from cosyserve.frontend import Frontend, Request
from cosyserve.limits import MAX_INSTRUCT_CHARS
from cosyserve.text.tokenizer import Tokenizer
from cosyserve.voices import VoiceStore

SYSTEM = "You are a helpful assistant."
CONFIG3 = replace(CONFIG, version=3, llm=CosyVoice3LlmConfig(**asdict(CONFIG.llm), end_of_prompt=0))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_bundle(TINY / "bundle" / "CosyVoice-BlankEN", 3)


@pytest.fixture
def frontend(tokenizer: Tokenizer, tmp_path: Path) -> Frontend:
    networks, store = Networks(), VoiceStore(tmp_path)
    store.save(stored("full", prompt_text="有3个", **PROMPT))
    store.save(stored("ids", prompt_text_tokens=[9, 8], **PROMPT))
    store.save(stored("opened", prompt_text_tokens=[7, tokenizer.special("<|endofprompt|>"), 8], **PROMPT))
    store.save(stored("plain"))
    return Frontend(CONFIG3, tokenizer, networks.speaker, networks.tokens, store)


@pytest.mark.parametrize(
    ("request_", "before"),
    [
        (Request(TEXT, voice="full"), f"{SYSTEM}<|endofprompt|>有三个"),
        (Request(TEXT, voice="full", mode="cross_lingual"), f"{SYSTEM}<|endofprompt|>"),
        (Request(TEXT, voice="plain"), f"{SYSTEM}<|endofprompt|>"),
        (inline(), f"{SYSTEM}<|endofprompt|>"),
        (inline(prompt_text="It is 3."), f"{SYSTEM}<|endofprompt|>It is three."),
        # As upstream's callers write it.
        (inline(prompt_text=f"{SYSTEM}<|endofprompt|>It is 3."), f"{SYSTEM}<|endofprompt|>It is three."),
        (Request(TEXT, voice="full", instruct="Speak slowly."), f"{SYSTEM} Speak slowly.<|endofprompt|>"),
        (Request(TEXT, voice="full", instruct=f"{SYSTEM} Slowly.<|endofprompt|>"), f"{SYSTEM} Slowly.<|endofprompt|>"),
        (inline(text=f"{SYSTEM} Slowly.<|endofprompt|>{TEXT}"), f"{SYSTEM} Slowly.<|endofprompt|>"),
    ],
)
def test_every_sequence_begins_with_an_instruction(
    frontend: Frontend, tokenizer: Tokenizer, request_: Request, before: str
) -> None:
    utterance = frontend(request_)
    assert utterance.prompt_text_tokens.tolist() == tokenizer.encode(before)
    assert [segment.tolist() for segment in utterance.segments] == [tokenizer.encode(TEXT)]


def test_a_transcript_known_by_its_ids_gets_an_instruction_if_it_has_none(
    frontend: Frontend, tokenizer: Tokenizer
) -> None:
    end = tokenizer.special("<|endofprompt|>")
    found = [frontend(Request(TEXT, voice=voice)).prompt_text_tokens.tolist() for voice in ("ids", "opened")]
    assert found == [[*tokenizer.encode(SYSTEM), end, 9, 8], [7, end, 8]]


def test_the_text_behind_an_instruction_is_normalised_and_split(frontend: Frontend, tokenizer: Tokenizer) -> None:
    sentence = "山上的雪还没有融化，河水已经开始流动，孩子们在河边玩耍，大人们在屋里喝茶聊天，有3个人。"
    segments = frontend(inline(text=f"{SYSTEM}<|endofprompt|>{sentence * 4}")).segments
    assert [part.tolist() for part in segments] == [tokenizer.encode(sentence.replace("3", "三") * 2)] * 2


def test_a_text_in_pieces_cannot_bring_an_instruction(frontend: Frontend) -> None:
    with pytest.raises(InvalidInput, match="^text: .* give it as instruct"):
        frontend(Request("a helpful assistant.<|endofprompt|>We", continues=3))


def test_phones_work_inside_a_text_and_keep_their_stress(frontend: Frontend, tokenizer: Tokenizer) -> None:
    text = "[HH][EH1][L][OW0] 12 [breath]"
    (segment,) = frontend(Request(text, voice="full")).segments
    assert segment.tolist() == tokenizer.encode("[HH][EH1][L][OW0] twelve [breath].")
    assert tokenizer.special("[EH1]") in segment


def test_control_tokens_stay_characters(frontend: Frontend, tokenizer: Tokenizer) -> None:
    for request in (Request(f"<|endofsystem|>{TEXT}", voice="full"), inline(prompt_text="<|im_end|>abc")):
        utterance = frontend(request)
        ids = {*utterance.prompt_text_tokens.tolist(), *utterance.segments[0].tolist()}
        assert not ids & {tokenizer.special("<|endofsystem|>"), tokenizer.special("<|im_end|>")}


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (Request(f"Slowly.<|endofprompt|>{TEXT}", voice="full", instruct="Fast."), "instruct"),
        (inline(text=f"{'a' * (MAX_INSTRUCT_CHARS + 1)}<|endofprompt|>{TEXT}"), "text"),
        (inline(text="Slowly.<|endofprompt|>"), "text"),
    ],
)
def test_a_wrong_instruction_is_named(frontend: Frontend, request_: Request, field: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        frontend(request_)
    assert raised.value.field == field
