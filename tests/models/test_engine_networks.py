"""Continuous batching on the prepared networks: a sequence neither sees nor disturbs the others."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from generation import Emitted, finish, opened, said, sequence, text_of

from cosyserve.errors import StageFailed
from cosyserve.limits import PREFILL_CHUNK
from cosyserve.llm.decoder import VocabLayout
from cosyserve.llm.engine import Engine
from cosyserve.llm.graph_decoder import GraphDecoder, LlmNetworks
from cosyserve.llm.sequence import GenerationRequest
from cosyserve.runtimes.graph import Arrays, Outputs


def engine_of(networks: LlmNetworks, slots: int) -> Engine:
    return Engine(GraphDecoder(networks, slots + 1), networks.config, slots)


def alone(networks: LlmNetworks, made: GenerationRequest) -> Emitted:
    """Tokens of the same sequence alone."""
    return said(engine_of(networks, slots=1), made)


def poisoned(networks: LlmNetworks, call: int) -> LlmNetworks:
    """The same networks, whose graph returns nothing but NaN at one call."""
    calls = itertools.count(1)

    def graph(inputs: Arrays) -> Outputs:
        out = networks.graph(inputs)
        return Outputs({name: value * np.nan for name, value in out.items()}) if next(calls) == call else out

    return replace(networks, graph=graph)


@pytest.mark.parametrize("shuffle", range(8))
def test_tokens_do_not_depend_on_company(llm_networks: LlmNetworks, shuffle: int) -> None:
    random = np.random.default_rng(shuffle)
    # Prompts short and long, so that some take several chunks and the cache grows while others run.
    watched, found = sequence(0, text=6, prompt=40)
    company = [
        sequence(i, text=int(random.integers(1, 9)), prompt=int(random.choice([0, 3, 60, 130]))) for i in range(1, 9)
    ]
    engine = engine_of(llm_networks, slots=4)
    joining = random.permutation([0, *range(1, 9)]).tolist()
    while joining or engine.busy:
        if joining and (random.random() < 0.15 or not engine.busy):
            next_id = joining.pop()
            engine.admit(watched if next_id == 0 else company[next_id - 1][0])
        if random.random() < 0.03:
            engine.cancel(int(random.integers(1, 9)))
        engine.step()
    assert found == alone(llm_networks, watched)
    for other, emitted in company:
        complete = alone(llm_networks, other)
        assert emitted[-1] is None
        assert emitted[:-1] == complete[: len(emitted) - 1]


def test_scores_of_a_row_are_the_same_bits_in_any_company(llm_networks: LlmNetworks) -> None:
    random = np.random.default_rng(0)
    numbers = VocabLayout(llm_networks.config)
    lengths = np.array([90, 5, 64, 130, 1])
    prompts = [random.integers(0, numbers.start, length) for length in lengths]
    fed = random.integers(numbers.speech, numbers.start, (3, 5))
    together = GraphDecoder(llm_networks, 5)
    for row, prompt in enumerate(prompts):
        together.prefill(row, 0, prompt)
    steps = [together.step(ids, lengths + index) for index, ids in enumerate(fed)]
    for row, prompt in enumerate(prompts):
        single = GraphDecoder(llm_networks, 1)
        single.prefill(0, 0, prompt)
        for index, ids in enumerate(fed):
            one = single.step(ids[[row]], lengths[[row]] + index)
            np.testing.assert_array_equal(one.row(0), steps[index].row(row))


def test_a_prompt_in_chunks_scores_as_in_one_piece(llm_networks: LlmNetworks) -> None:
    prompt = np.random.default_rng(0).integers(0, VocabLayout(llm_networks.config).start, 150)
    wanted = GraphDecoder(llm_networks, 1).prefill(0, 0, prompt).row(0)
    for chunk in (1, 16, PREFILL_CHUNK, 149):
        decoder = GraphDecoder(llm_networks, 1)
        for start in range(0, len(prompt), chunk):
            found = decoder.prefill(0, start, prompt[start : start + chunk]).row(0)
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)


def test_seeds_decide_the_tokens(llm_networks: LlmNetworks) -> None:
    first, again, other = (alone(llm_networks, sequence(1, seed=seed)[0]) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_prompts_change_the_tokens(llm_networks: LlmNetworks) -> None:
    made, _ = sequence(1, prompt=5)
    for bare in (replace(made, prompt_text=made.prompt_text[:0]), replace(made, prompt_speech=made.prompt_speech[:0])):
        assert alone(llm_networks, bare) != alone(llm_networks, made)


def test_prompt_embeddings_stand_in_the_order_of_the_model(llm_networks: LlmNetworks) -> None:
    n = llm_networks
    embeds = n.embed(VocabLayout(n.config).prompt(np.array([1, 2]), np.array([3]), np.array([4, 5])))
    e = n.embed
    rows = [e.special[0], e.text[1], e.text[2], e.text[3], e.special[1], e.speech[4], e.speech[5]]
    np.testing.assert_array_equal(embeds, np.stack(rows))
    assert embeds.dtype == np.float32


def test_a_sequence_that_cannot_go_on_fails_alone(llm_networks: LlmNetworks) -> None:
    """Scores that are not finite must not affect other rows, nor the next sequence of the row."""
    expected = alone(llm_networks, sequence(2)[0])
    errors: list[Exception] = []
    engine = engine_of(poisoned(llm_networks, call=2), slots=1)
    engine.admit(replace(sequence(3)[0], fail=errors.append))
    good, emitted = sequence(2)
    engine.admit(good)
    finish(engine)
    assert [type(error) for error in errors] == [StageFailed]
    assert emitted == expected


def test_a_slot_can_be_used_again(llm_networks: LlmNetworks) -> None:
    engine = engine_of(llm_networks, slots=1)
    said(engine, sequence(1, text=9, prompt=60)[0])
    short, _ = sequence(2, text=2)
    assert said(engine, short) == alone(llm_networks, short)


def told_at_once(networks: LlmNetworks, made: GenerationRequest, text: np.ndarray[Any, np.dtype[np.int32]]) -> Emitted:
    """Tokens of an open sequence alone, with all its text at the start."""
    engine, emitted = engine_of(networks, slots=1), list[int | None]()
    engine.admit(replace(made, emit=emitted.append))
    engine.add_text(made.id, text, more=False)
    finish(engine)
    return emitted


@pytest.mark.parametrize("shuffle", range(4))
def test_open_sequences_do_not_depend_on_company_or_on_when_text_comes(llm_networks: LlmNetworks, shuffle: int) -> None:
    random = np.random.default_rng(shuffle)
    texts = {id: text_of(int(random.integers(1, 24)), id) for id in range(6)}
    made = {id: opened(id, prompt=int(random.choice([0, 7, 40]))) for id in texts}
    engine = engine_of(llm_networks, slots=4)
    left = dict(texts)
    for one, _, _ in made.values():
        engine.admit(one)
    company, heard = sequence(9, text=4, prompt=70)
    for step in itertools.count():
        if step == 20:
            engine.admit(company)
        if left and random.random() < 0.4:
            id = int(random.choice(list(left)))
            count = int(random.integers(0, 6))
            engine.add_text(id, left[id][:count], more=len(left[id]) > count)
            left[id] = left[id][count:]
            if not len(left[id]):
                del left[id]
        engine.step()
        if not left and not engine.busy:
            break
    assert heard == alone(llm_networks, company)
    for id, (one, emitted, _) in made.items():
        assert emitted == told_at_once(llm_networks, one, texts[id])
