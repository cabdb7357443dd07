"""Long silence is shortened before the flow, but stays in the language model's KV cache."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from test_engine import CONFIG, Scripted, finish, sequence

from cosyserve.config import CosyVoice3LlmConfig
from cosyserve.llm.decoder import VocabLayout
from cosyserve.llm.engine import Engine
from cosyserve.llm.silence import SilenceFilter

CONFIG3 = CosyVoice3LlmConfig(**asdict(CONFIG), end_of_prompt=9)


# As recorded from the original.
@pytest.mark.parametrize(
    ("sampled", "kept"),
    [
        ([7, 1, 2, 28, 29, 55, 248, 494, 9, *[1] * 8, 3], [7, 1, 2, 28, 29, 55, 9, *[1] * 5, 3]),
        ([1] * 12, [1] * 5),
        ([5, 6, 7], [5, 6, 7]),
        ([2241, 2242, 2322, 2323, 2241, 2242, 2322, 2323, 10, 2323], [2241, 2242, 2322, 2323, 2241, 10, 2323]),
        ([*[1] * 5, 8, *[1] * 6, 8], [*[1] * 5, 8, *[1] * 5, 8]),
    ],
)
def test_long_silence_is_cut_to_five_tokens(sampled: list[int], kept: list[int]) -> None:
    silence = SilenceFilter(CONFIG3)
    assert [token for token in sampled if silence.passes(token)] == kept


def test_version_2_keeps_every_token() -> None:
    silence = SilenceFilter(CONFIG)
    assert all(silence.passes(1) for _ in range(20))


def test_the_model_is_fed_the_silence_that_is_not_spoken() -> None:
    numbers = VocabLayout(CONFIG3)
    made, emitted = sequence(1, text=10)
    prompt = len(numbers.prompt(made.prompt_text, made.text, made.prompt_speech))
    silent = [1, 2, 28, 29, 55, 248, 494, 2241, 2242]  # no id twice, which the sampler would avoid
    drawn = [7, *silent, *range(100, 130)]
    decoder = Scripted(lambda length: [*drawn, CONFIG3.eos][length - prompt], speech_vocab=CONFIG3.speech_vocab)
    fed: list[int] = []
    decoder.on_release = fed.extend
    engine = Engine(decoder, CONFIG3, 1)
    engine.admit(made)
    finish(engine)
    assert emitted == [7, *silent[:5], *range(100, 130), None]
    assert fed[prompt:] == [numbers.speech + token for token in drawn]
