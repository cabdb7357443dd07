"""Continuous batching: a sequence neither sees nor disturbs the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from generation import finish, opened, said, sequence, text_of

from cosyserve.config import LlmConfig
from cosyserve.errors import InvalidInput
from cosyserve.limits import MAX_CYCLE, MAX_REPEATED_TOKENS, PREFILL_CHUNK
from cosyserve.llm.decoder import Ids, VocabLayout
from cosyserve.llm.engine import Engine
from cosyserve.llm.scores import LogitScores

CONFIG = LlmConfig(48, 128, 2, 3, 1, 16, 1e6, 1e-6, 440, 6561, (5, 15), 0.8, 25, 10, 0.1)
NUMBERS = VocabLayout(CONFIG)


@dataclass
class Scripted:
    """A decoder whose next token is a rule of the number of positions so far; it keeps the ids of each row.

    Attributes:
        calls: (rows, new ids) of each prefill and step.
        capacity: positions of a row; more is an error for everyone.
        speech_vocab: ids that it scores.
        on_release: called with the ids of a row that is emptied.
    """

    rule: Callable[[int], int]
    rows: dict[int, list[int]] = field(default_factory=dict)
    calls: list[tuple[int, int]] = field(default_factory=list)
    speech_vocab: int = CONFIG.speech_vocab
    on_release: Callable[[list[int]], None] = lambda ids: None
    capacity: int = 10_000
    prefill_chunk: int = PREFILL_CHUNK
    prefill_batch: int = 1

    def prefill(self, row: int, start: int, ids: Ids) -> LogitScores:
        return self.prefill_together([row], [start], [ids])

    def prefill_together(self, rows: list[int], starts: list[int], prompts: list[Ids]) -> LogitScores:
        for row, start, ids in zip(rows, starts, prompts, strict=True):
            assert len(self.rows.setdefault(row, [])) == start
            self.rows[row].extend(ids.tolist())
        self.calls.append((len(rows), max(map(len, prompts))))
        return self._scores(rows)

    def step(self, ids: Ids, lengths: Ids) -> LogitScores:
        for row, (id, length) in enumerate(zip(ids.tolist(), lengths.tolist(), strict=True)):
            assert len(self.rows[row]) == length < self.capacity
            self.rows[row].append(id)
        self.calls.append((len(ids), 1))
        return self._scores(list(range(len(ids))))

    def move(self, source: int, target: int, length: int) -> None:
        assert target not in self.rows
        assert len(self.rows[source]) == length
        self.rows[target] = list(self.rows[source])

    def release(self, row: int) -> None:
        self.on_release(self.rows.pop(row, []))

    def _scores(self, rows: list[int]) -> LogitScores:
        logits = np.full((len(rows), self.speech_vocab), -100, np.float32)
        for index, row in enumerate(rows):
            logits[index, self.rule(len(self.rows[row]))] = 100
        return LogitScores(logits, CONFIG.end)


def scripted(rule: Callable[[int], int], slots: int = 1, config: LlmConfig = CONFIG) -> tuple[Engine, Scripted]:
    decoder = Scripted(rule)
    return Engine(decoder, config, slots), decoder


@pytest.mark.parametrize("leaver", [None, 1, 2])
def test_a_new_sequence_with_a_long_prompt_does_not_delay_the_others(leaver: int | None) -> None:
    """Also while an earlier row is released: its half-fed prompt moves to that row."""
    engine, decoder = scripted(lambda position: position, slots=3)
    speakers = [sequence(1, text=40), sequence(2, text=40)]
    for one, _ in speakers:
        engine.admit(one)
        engine.step()
    newcomer, found = sequence(3, prompt=2 * PREFILL_CHUNK)
    engine.admit(newcomer)
    chunks = -(-(4 + 2 + 4 * PREFILL_CHUNK) // PREFILL_CHUNK)
    for step in range(chunks):
        if step == 2 and leaver:
            engine.cancel(leaver)
        assert found == []
        before = [len(emitted) for _, emitted in speakers]
        engine.step()
        for (one, emitted), length in zip(speakers, before, strict=True):
            assert len(emitted) == length + (emitted[-1] is not None), one.id
    assert len(found) == 2
    prompt = NUMBERS.prompt(newcomer.prompt_text, newcomer.text, newcomer.prompt_speech)
    fed = next(ids for ids in decoder.rows.values() if len(ids) > 2 * PREFILL_CHUNK)
    assert fed[: len(prompt)] == prompt.tolist()
    assert max(new for _, new in decoder.calls) == PREFILL_CHUNK


@pytest.mark.parametrize("leaver", [None, 1, 2, 3])
def test_prompts_of_several_newcomers_share_a_call_where_the_decoder_takes_them(leaver: int | None) -> None:
    def rule(position: int) -> int:
        return position

    alone = {id: said(scripted(rule)[0], sequence(id, prompt=20 * id)[0]) for id in (1, 2, 3, 4)}
    engine, decoder = scripted(rule, slots=4)
    decoder.prefill_batch, decoder.prefill_chunk = 3, 50
    made = {id: sequence(id, prompt=20 * id) for id in (1, 2, 3, 4)}
    for one, _ in made.values():
        engine.admit(one)
    engine.step()
    assert decoder.calls[0] == (3, 50)
    # Of 46, 86 and 126 ids one prompt has been fed whole.
    assert [id for id, (_, emitted) in made.items() if emitted] == [1]
    if leaver:
        engine.cancel(leaver)
    finish(engine)
    assert {id: emitted for id, (_, emitted) in made.items() if id != leaver} == {
        id: emitted for id, emitted in alone.items() if id != leaver
    }
    assert not any(decoder.rows.values())


@pytest.mark.parametrize("special", [0, 1, 2])
def test_every_special_id_ends_but_not_before_the_least_length(special: int) -> None:
    emitted = said(scripted(lambda position: CONFIG.end + special)[0], sequence(1, text=4)[0])
    assert len(emitted) == 2 * 4 + 1
    assert emitted[-1] is None
    assert all(token is not None and 0 <= token < CONFIG.end for token in emitted[:-1])


def test_generation_is_cut_at_the_greatest_length_and_counted() -> None:
    cuts: list[None] = []
    engine, _ = scripted(lambda position: position)
    engine.on_cut = lambda: cuts.append(None)
    # start, 3 text, task: the first token is sampled after 5 positions.
    assert said(engine, sequence(1, text=3)[0]) == [*range(5, 65), None]
    assert len(cuts) == 1


@pytest.mark.parametrize("cycle", range(1, MAX_CYCLE + 2))
def test_repetition_is_cut_and_counted(cycle: int) -> None:
    """A sampler without the repetition rule represents a model so certain that the rule has no effect."""
    cuts: list[None] = []
    engine, _ = scripted(lambda position: 7 if position < 20 else position % cycle, config=replace(CONFIG, tau_r=2.0))
    engine.on_cut = lambda: cuts.append(None)
    emitted = said(engine, sequence(1, text=12)[0])
    assert emitted[-1] is None
    assert len(cuts) == 1
    # start, 12 text, task: six sevens come first.
    assert len(emitted) - 1 == (6 + MAX_REPEATED_TOKENS if cycle <= MAX_CYCLE else 20 * 12)


def test_a_sequence_that_fills_its_row_is_cut_and_nobody_else_notices() -> None:
    engine, decoder = scripted(lambda position: position, slots=2)
    long, short = sequence(1, text=40, prompt=30), sequence(2, text=6)
    whole = said(engine, short[0])
    cuts: list[int] = []
    engine.on_cut = lambda: cuts.append(1)
    decoder.capacity = 130
    for made, _ in (long, short):
        engine.admit(made)
    finish(engine)
    assert long[1][-1] is None
    assert len(long[1]) < 130
    assert short[1] == whole  # cut too, by the length of its text
    assert len(cuts) == 2
    assert decoder.rows == {}


def test_a_prompt_that_leaves_no_room_for_speech_is_refused_before_it_begins() -> None:
    engine, decoder = scripted(lambda position: position)
    decoder.capacity = 50
    with pytest.raises(InvalidInput, match="text: with its prompt exceeds 50 positions"):
        engine.admit(sequence(1, text=40, prompt=30)[0])
    assert not engine.busy


def test_a_pause_is_not_cut() -> None:
    cuts: list[None] = []
    pause = range(20, 20 + MAX_REPEATED_TOKENS - 1)
    config = replace(CONFIG, tau_r=2.0)
    engine, _ = scripted(lambda n: 7 if n in pause else CONFIG.end if n == 110 else n, config=config)
    engine.on_cut = lambda: cuts.append(None)
    assert said(engine, sequence(1, text=12)[0]) == [*range(14, 20), *[7] * len(pause), *range(94, 110), None]
    assert not cuts


def test_sequences_stop_where_the_model_says() -> None:
    engine, _ = scripted(lambda position: CONFIG.end if position == 20 else position)
    assert said(engine, sequence(1)[0]) == [*range(6, 20), None]


def test_waiting_sequences_join_in_order_when_a_slot_is_free() -> None:
    engine, _ = scripted(lambda position: position, slots=2)
    made = [sequence(i, text=i) for i in range(1, 4)]
    for one, _ in made:
        engine.admit(one)
    engine.step()
    engine.step()
    assert [one.request.id for one in engine.scheduler.rows.running] == [1, 2]
    assert [one.request.id for one in engine.scheduler.waiting] == [3]
    assert made[2][1] == []
    finish(engine)
    assert [len(emitted) - 1 for _, emitted in made] == [20, 40, 60]
    assert not engine.scheduler.rows.running
    assert not engine.scheduler.waiting


def test_a_step_serves_all_running_sequences_in_one_call() -> None:
    engine, decoder = scripted(lambda position: position, slots=5)
    for id in range(1, 6):
        engine.admit(sequence(id)[0])
    for running in range(1, 6):
        engine.step()
        # One new sequence per step, so that a burst of them does not delay running ones.
        assert decoder.calls[-2:] == [(1, 6), (running, 1)]
    engine.step()
    assert decoder.calls[-1] == (5, 1)


def test_stop_ends_a_sequence_once_wherever_it_is() -> None:
    engine, decoder = scripted(lambda position: position, slots=3)
    made = {id: sequence(id, prompt=PREFILL_CHUNK * (id == 3)) for id in (1, 2, 3, 4)}
    for one, _ in made.values():
        engine.admit(one)
    for _ in range(3):
        engine.step()
    assert (len(engine.scheduler.rows.running), len(engine.scheduler.rows.parked), len(engine.scheduler.waiting)) == (
        2,
        1,
        1,
    )
    for _ in range(2):
        for id in (4, 3, 1, 99):
            engine.cancel(id)
    assert [made[id][1] for id in (4, 3)] == [[None], [None]]
    assert made[1][1] == [6, 7, 8, 9, None]
    assert [one.request.id for one in engine.scheduler.rows.running] == [2]
    assert list(decoder.rows) == [0]
    finish(engine)
    assert [made[id][1] for id in (4, 3)] == [[None], [None]]
    assert made[2][1] == [*range(6, 86), None]
    assert not decoder.rows


def test_an_id_of_a_running_sequence_is_refused() -> None:
    engine, _ = scripted(lambda position: position, slots=2)
    long, _ = sequence(1, prompt=PREFILL_CHUNK)
    engine.admit(long)
    for _ in range(4):  # waiting, joining, running
        with pytest.raises(InvalidInput, match="utterance"):
            engine.admit(sequence(1)[0])
        engine.step()


@pytest.mark.parametrize(
    ("name", "field", "id"),
    [
        ("text_tokens", "text", CONFIG.vocab),
        ("prompt_text_tokens", "prompt_text", -1),
        ("llm_prompt_tokens", "prompt_speech", CONFIG.end),
    ],
)
def test_ids_beyond_their_vocabulary_are_refused_by_name(name: str, field: str, id: int) -> None:
    engine, _ = scripted(lambda position: position)
    with pytest.raises(InvalidInput, match=f"{name}.*outside 0"):
        engine.admit(replace(sequence(1)[0], **{field: np.array([1, id], np.int32)}))
    assert not engine.busy


def run_dry(engine: Engine) -> None:
    """Run steps until all sequences have ended or wait for text."""
    for _ in range(2000):
        if not engine.busy:
            return
        engine.step()
    raise AssertionError("the engine does not come to rest")


def test_blocks_of_speech_follow_their_text() -> None:
    engine, decoder = scripted(lambda position: position)
    made, emitted, pauses = opened(1)
    engine.admit(made)
    engine.add_text(1, np.array([1, 2, 3, 4], np.int32), more=True)
    assert not engine.busy
    engine.add_text(1, np.array([5, 6], np.int32), more=True)
    run_dry(engine)
    speech = list(range(6, 21))
    assert (emitted, pauses) == (speech, [15])
    fed = [NUMBERS.start, 1, 2, 3, 4, 5, *(NUMBERS.speech + token for token in speech)]
    assert list(decoder.rows.values()) == [fed]
    engine.add_text(1, np.array([7], np.int32), more=True)
    assert not engine.busy
    engine.cancel(1)
    assert emitted == [*speech, None]
    assert not decoder.rows


def test_the_rest_of_the_text_is_followed_by_the_task_and_an_end() -> None:
    engine, decoder = scripted(lambda position: CONFIG.end if position > 60 else position)
    made, emitted, pauses = opened(1)
    engine.admit(made)
    engine.add_text(1, np.arange(12, dtype=np.int32), more=False)
    fed: list[int] = []
    while engine.busy:
        engine.step()
        fed = next(iter(decoder.rows.values()), fed)
    assert pauses == []
    assert fed[-12:] != fed
    task = fed.index(NUMBERS.task)
    assert fed[task - 2 : task] == [10, 11]
    # Held at first although the text had ended: two blocks of 15, and what follows the task.
    assert len(emitted) - 1 == 61 - (task + 1) + 30
    assert emitted[-1] is None


@pytest.mark.parametrize("special", [CONFIG.end, CONFIG.fill])
def test_neither_an_end_nor_a_question_comes_before_its_time(special: int) -> None:
    engine, _ = scripted(lambda position: special)
    made, emitted, pauses = opened(1)
    engine.admit(made)
    engine.add_text(1, np.arange(10, dtype=np.int32), more=True)
    run_dry(engine)
    assert pauses == [30]
    engine.add_text(1, np.arange(2, dtype=np.int32), more=False)
    finish(engine)
    assert emitted[-1] is None


def test_a_waiting_sequence_takes_no_part_in_steps() -> None:
    engine, decoder = scripted(lambda position: position, slots=3)
    slow, said_slowly, _ = opened(1)
    engine.admit(slow)
    engine.add_text(1, np.arange(5, dtype=np.int32), more=True)
    others = [sequence(id, text=9) for id in (2, 3)]
    for one, _ in others:
        engine.admit(one)
    for _ in range(25):
        engine.step()
    assert len(said_slowly) == 15
    decoder.calls.clear()
    engine.step()
    assert decoder.calls == [(2, 1)]
    finish(engine)
    assert [len(emitted) - 1 for _, emitted in others] == [180, 180]
    engine.add_text(1, np.arange(5, dtype=np.int32), more=True)
    run_dry(engine)
    assert len(said_slowly) == 30


def test_a_sequence_that_has_not_begun_takes_no_slot() -> None:
    engine, _ = scripted(lambda position: position)
    silent, nothing, _ = opened(1)
    engine.admit(silent)
    speaks, emitted = sequence(2)
    engine.admit(speaks)
    finish(engine)
    assert len(emitted) == 81
    engine.cancel(1)
    assert nothing == [None]


def test_the_last_phase_is_cut_when_it_outgrows_the_text() -> None:
    cuts: list[None] = []
    engine, _ = scripted(lambda position: position)
    engine.on_cut = lambda: cuts.append(None)
    made, emitted, _ = opened(1)
    engine.admit(made)
    engine.add_text(1, np.arange(6, dtype=np.int32), more=False)
    finish(engine)
    assert len(emitted) - 1 == 15 + 20 * 6
    assert len(cuts) == 1


def test_text_for_a_sequence_that_ended_is_ignored_and_after_its_end_refused() -> None:
    engine, _ = scripted(lambda position: position)
    engine.add_text(7, text_of(3), more=True)
    made, _, _ = opened(1)
    engine.admit(made)
    engine.add_text(1, text_of(3), more=False)
    with pytest.raises(InvalidInput, match="after the end"):
        engine.add_text(1, text_of(3), more=True)
    whole, _ = sequence(2)
    engine.admit(whole)
    with pytest.raises(InvalidInput, match="after the end"):
        engine.add_text(2, text_of(3), more=True)
    with pytest.raises(InvalidInput, match=r"text_tokens.*outside"):
        engine.add_text(1, np.array([CONFIG.vocab], np.int32), more=True)


def test_clear_forgets_in_silence() -> None:
    engine, decoder = scripted(lambda position: position, slots=2)
    made = [sequence(1), sequence(2, prompt=PREFILL_CHUNK), sequence(3)]
    for one, _ in made:
        engine.admit(one)
    engine.step()
    engine.step()
    heard = [list(emitted) for _, emitted in made]
    engine.clear()
    assert not engine.busy
    assert not decoder.rows
    engine.step()
    assert [emitted for _, emitted in made] == heard == [[6, 7, 8], [], []]
