"""Continuous batching: a sequence neither sees nor disturbs the others."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from cosyserve.errors import InvalidInput, StageFailed
from cosyserve.llm.engine import Engine, LlmNetworks, Sequence
from cosyserve.runtimes.graph import Arrays, Outputs, flat

Emitted = list[int | None]


def failed(error: Exception) -> None:
    """No sequence here may fail unless its test says so."""
    raise error


def sequence(id: int, *, text: int = 4, prompt: int = 0, seed: int | None = None) -> tuple[Sequence, Emitted]:
    """A sequence of `text` text tokens behind `prompt` prompt tokens, and where its tokens go."""
    random = np.random.default_rng(id)
    emitted: Emitted = []
    made = Sequence(
        id=id,
        text=random.integers(0, 256, text).astype(np.int32),
        prompt_text=random.integers(0, 256, prompt).astype(np.int32),
        prompt_speech=random.integers(0, 6561, prompt).astype(np.int32),
        seed=id if seed is None else seed,
        emit=emitted.append,
        fail=failed,
    )
    return made, emitted


def finish(engine: Engine) -> None:
    for _ in range(2000):
        if not engine.busy:
            return
        engine.step()
    raise AssertionError("the engine does not come to an end")


def alone(networks: LlmNetworks, made: Sequence) -> Emitted:
    """What the same sequence says from its beginning with nobody beside it."""
    emitted: Emitted = []
    engine = Engine(networks, slots=1)
    engine.admit(replace(made, emit=emitted.append, sampler=None, position=0, last=0, emitted=0))
    finish(engine)
    return emitted


@dataclass
class Scripted:
    """A graph whose next id is a rule of the row's whole history: 1 + the number of positions so far, say."""

    rule: Callable[[int], int]
    vocab: int
    layers: int
    batches: list[tuple[int, int]] = field(default_factory=list)

    def __call__(self, inputs: Arrays) -> Outputs:
        given = flat(inputs)
        embeds, lengths, past = given["embeds"], given["lengths"], given["past_k_0"]
        rows, new = embeds.shape[:2]
        self.batches.append((rows, new))
        logits = np.full((rows, self.vocab), -100, np.float32)
        for row in range(rows):
            logits[row, self.rule(int(lengths[row]) + new)] = 100
        step = np.ones((rows, past.shape[1], new, past.shape[3]), np.float32)
        return Outputs(logits=logits, **{f"new_{n}_{i}": step for n in "kv" for i in range(self.layers)})


def scripted(networks: LlmNetworks, rule: Callable[[int], int]) -> LlmNetworks:
    return replace(networks, graph=Scripted(rule, networks.config.speech_vocab, networks.config.layers))


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
    # Texts short and long, so that the cache grows past several granules while others run.
    watched, found = sequence(0, text=6, prompt=5)
    company = [
        sequence(i, text=int(random.integers(1, 9)), prompt=int(random.choice([0, 3, 60, 130]))) for i in range(1, 9)
    ]
    engine = Engine(llm_networks, slots=4)
    joining = random.permutation([0, *range(1, 9)]).tolist()
    while joining or engine.busy:
        if joining and (random.random() < 0.15 or not engine.busy):
            next_id = joining.pop()
            engine.admit(watched if next_id == 0 else company[next_id - 1][0])
        if random.random() < 0.03:
            engine.stop(int(random.integers(1, 9)))
        engine.step()
    assert found == alone(llm_networks, watched)
    for other, emitted in company:
        complete = alone(llm_networks, other)
        assert emitted[-1] is None
        assert emitted[:-1] == complete[: len(emitted) - 1]


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
    embeds = n.prompt(np.array([1, 2]), np.array([3]), np.array([4, 5]))
    rows = [n.special[0], n.text[1], n.text[2], n.text[3], n.special[1], n.speech[4], n.speech[5]]
    np.testing.assert_array_equal(embeds, np.stack(rows)[None])
    assert embeds.dtype == np.float32


@pytest.mark.parametrize("special", [0, 1, 2])
def test_every_special_id_ends_but_not_before_the_least_length(llm_networks: LlmNetworks, special: int) -> None:
    networks = scripted(llm_networks, lambda position: llm_networks.config.speech_tokens + special)
    emitted = alone(networks, sequence(1, text=4)[0])
    assert len(emitted) == 2 * 4 + 1
    assert emitted[-1] is None
    assert all(token is not None and 0 <= token < llm_networks.config.speech_tokens for token in emitted[:-1])


def test_generation_is_cut_at_the_greatest_length(llm_networks: LlmNetworks) -> None:
    emitted = alone(scripted(llm_networks, lambda position: position), sequence(1, text=3)[0])
    # start, 3 text, task: the first token is sampled after 5 positions.
    assert emitted == [*range(5, 65), None]


def test_sequences_stop_where_the_model_says(llm_networks: LlmNetworks) -> None:
    end = llm_networks.config.end
    emitted = alone(scripted(llm_networks, lambda position: end if position == 20 else position), sequence(1)[0])
    assert emitted == [*range(6, 20), None]


def test_waiting_sequences_join_in_order_when_a_slot_is_free(llm_networks: LlmNetworks) -> None:
    networks = scripted(llm_networks, lambda position: position)
    engine = Engine(networks, slots=2)
    made = [sequence(i, text=i) for i in range(1, 4)]
    for one, _ in made:
        engine.admit(one)
    engine.step()
    engine.step()
    assert [s.id for s in engine.running] == [1, 2]
    assert [s.id for s in engine.waiting] == [3]
    assert made[2][1] == []
    finish(engine)
    assert [len(emitted) - 1 for _, emitted in made] == [20, 40, 60]
    assert not engine.running
    assert not engine.waiting


def test_a_step_serves_all_running_sequences_in_one_call(llm_networks: LlmNetworks) -> None:
    networks = scripted(llm_networks, lambda position: position)
    engine = Engine(networks, slots=5)
    for id in range(1, 6):
        engine.admit(sequence(id)[0])
    graph = networks.graph
    assert isinstance(graph, Scripted)
    for running in range(1, 6):
        engine.step()
        # One newcomer a step, so that a burst of them does not hold up those who speak.
        assert graph.batches[-2:] == [(1, 6), (running, 1)]
    engine.step()
    assert graph.batches[-1] == (5, 1)


def test_stop_ends_a_waiting_and_a_running_sequence_once(llm_networks: LlmNetworks) -> None:
    engine = Engine(scripted(llm_networks, lambda position: position), slots=2)
    made = {id: sequence(id) for id in (1, 2, 3)}
    for one, _ in made.values():
        engine.admit(one)
    engine.step()
    engine.step()
    for _ in range(2):
        engine.stop(3)
        engine.stop(1)
        engine.stop(99)
    assert made[3][1] == [None]
    assert made[1][1] == [6, 7, 8, None]
    assert [s.id for s in engine.running] == [2]
    finish(engine)
    assert made[1][1] == [6, 7, 8, None]
    assert made[3][1] == [None]
    assert made[2][1] == [*range(6, 86), None]


def test_an_id_that_runs_is_refused(llm_networks: LlmNetworks) -> None:
    engine = Engine(llm_networks, slots=2)
    engine.admit(sequence(1)[0])
    with pytest.raises(InvalidInput, match="utterance"):
        engine.admit(sequence(1)[0])


def test_a_sequence_that_cannot_go_on_fails_alone(llm_networks: LlmNetworks) -> None:
    """Ids beyond the vocabulary, and logits that are not finite: neither may reach the neighbours."""
    expected = alone(llm_networks, sequence(2)[0])
    errors: list[Exception] = []
    engine = Engine(poisoned(llm_networks, call=2), slots=1)
    wrong = replace(sequence(1)[0], text=np.array([10**9], np.int32), fail=errors.append)
    poison = replace(sequence(3)[0], fail=errors.append)
    good, emitted = sequence(2)
    for one in (wrong, poison, good):
        engine.admit(one)
    finish(engine)
    assert [type(error) for error in errors] == [InvalidInput, StageFailed]
    assert emitted == expected


def test_a_slot_can_be_used_again(llm_networks: LlmNetworks) -> None:
    engine = Engine(llm_networks, slots=1)
    long, _ = sequence(1, text=9, prompt=60)
    short, found = sequence(2, text=2)
    engine.admit(long)
    finish(engine)
    engine.admit(short)
    finish(engine)
    assert found == alone(llm_networks, short)


def test_clear_forgets_in_silence(llm_networks: LlmNetworks) -> None:
    engine = Engine(llm_networks, slots=1)
    (one, first), (two, second) = sequence(1), sequence(2)
    engine.admit(one)
    engine.admit(two)
    engine.step()
    said = list(first)
    engine.clear()
    assert not engine.busy
    engine.step()
    assert first == said
    assert None not in said
    assert second == []
