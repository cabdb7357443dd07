"""Registered voices on disk."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cosyserve import limits
from cosyserve.errors import (
    BundleError,
    CosyServeError,
    InvalidInput,
    Overloaded,
    Unsupported,
    VoiceExists,
    VoiceNotFound,
    WeightsError,
)
from cosyserve.voices import Voice, VoiceStore, voices_from_spk2info


def voice(name: str = "anna", text: str = "你好") -> Voice:
    return Voice(
        name=name,
        prompt_text=text,
        speaker_embedding=np.arange(192, dtype=np.float32),
        llm_prompt_tokens=np.array([1, 2], np.int32),
        flow_prompt_tokens=np.array([3, 4], np.int32),
        prompt_mel=np.ones((4, 80), np.float32),
    )


def test_a_saved_voice_comes_back(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path / "voices")
    assert store.list() == []
    store.save(voice("中文女"))
    store.save(voice("anna"))
    assert store.list() == ["anna", "中文女"]
    for reader in (store, VoiceStore(tmp_path / "voices")):
        read = reader.get("中文女")
        assert (read.name, read.prompt_text) == ("中文女", "你好")
        assert read.digest == voice().digest
        for name, tensor in voice().tensors.items():
            np.testing.assert_array_equal(read.tensors[name], tensor)
            assert read.tensors[name].dtype == tensor.dtype
    assert {file.suffix for file in (tmp_path / "voices").iterdir()} == {".safetensors"}


def test_names_work_where_python_takes_file_names_for_ascii(tmp_path: Path) -> None:
    """Like Triton's stub, with any locale."""
    VoiceStore(tmp_path).save(voice("中文女"))
    code = (
        "import sys; from pathlib import Path; from cosyserve.voices import VoiceStore;"
        "assert sys.getfilesystemencoding() == 'ascii', sys.getfilesystemencoding();"
        f"store = VoiceStore(Path({str(tmp_path)!r})); (name,) = store.list();"
        "print(ascii(name), ascii(store.get(name).prompt_text))"
    )
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [ascii("中文女"), ascii("你好")], done.stderr


def test_a_replaced_voice_is_read_again(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path)
    store.save(voice(text="one"))
    first = store.get("anna")
    assert store.get("anna") is first
    store.save(voice(text="two"), replace=True)
    assert store.get("anna").prompt_text == "two"
    assert store.card("anna").prompt_text == "two"


def test_digest_depends_on_content_only() -> None:
    assert voice("a").digest == voice("b").digest
    changed = replace(voice(), prompt_mel=np.zeros((4, 80), np.float32))
    reshaped = replace(voice(), llm_prompt_tokens=np.zeros(0, np.int32))
    assert len({voice().digest, voice(text="x").digest, changed.digest, reshaped.digest}) == 4


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../anna", "a/b", "a\\b", "a\x00", "anna\n", " anna", ".anna", "a" * 65, "-rf", "é|"]
)
def test_impossible_names(name: str, tmp_path: Path) -> None:
    store = VoiceStore(tmp_path / "voices")
    with pytest.raises(VoiceNotFound):
        store.get(name)
    with pytest.raises(InvalidInput, match=r"^voice: "):
        store.save(voice(name))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["anna", "Anna B. 2", "zh-female_1", "中文女", "かな", "한국어", "x" * 64])
def test_possible_names(name: str, tmp_path: Path) -> None:
    store = VoiceStore(tmp_path)
    store.save(voice(name))
    assert store.get(name).name == name


def test_unknown_voice(tmp_path: Path) -> None:
    with pytest.raises(VoiceNotFound, match="'nobody'"):
        VoiceStore(tmp_path).get("nobody")


def test_damaged_files(tmp_path: Path) -> None:
    file = tmp_path / "anna.safetensors"
    VoiceStore(tmp_path).save(voice())
    VoiceStore(tmp_path).save(voice("berta"))
    good = file.read_bytes()
    for damaged, problem in (
        (good[:-1] + bytes([good[-1] ^ 1]), "checksum"),
        (good[:20], "cannot be read"),
        (good[:-20], "cannot be read"),
        (b"\xff" * 8, "cannot be read"),
        (b"", "cannot be read"),
        (good.replace(b"digest", b"digits"), "cannot be read"),
    ):
        file.write_bytes(damaged)
        with pytest.raises(WeightsError, match=problem) as caught:
            VoiceStore(tmp_path).get("anna")
        assert str(tmp_path) not in str(caught.value)
    # The others serve, and it can be removed.
    assert [card.name for card in VoiceStore(tmp_path).cards()] == ["berta"]
    assert VoiceStore(tmp_path).default() == "berta"
    VoiceStore(tmp_path).delete("anna")
    assert VoiceStore(tmp_path).list() == ["berta"]


def test_a_card_tells_what_was_said_at_registration(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path)
    saved = store.save(voice(), consent="signed 2026-11-01", created="2026-11-25T10:00:00+00:00")
    card = VoiceStore(tmp_path).card("anna")
    assert card == saved
    assert (card.name, card.prompt_tokens, card.prompt_text) == ("anna", 2, "你好")
    assert (card.consent, card.created) == ("signed 2026-11-01", "2026-11-25T10:00:00+00:00")
    assert card.digest == voice().digest
    with pytest.raises(InvalidInput, match=r"^consent: "):
        store.save(voice("berta"), consent="x" * (limits.MAX_CONSENT_CHARS + 1))
    assert store.list() == ["anna"]


def test_a_name_is_taken_until_it_is_replaced_or_deleted(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path)
    store.save(voice(text="one"))
    with pytest.raises(VoiceExists, match="'anna'"):
        store.save(voice(text="two"))
    assert store.get("anna").prompt_text == "one"
    assert store.delete("anna").prompt_text == "one"
    with pytest.raises(VoiceNotFound):
        store.get("anna")
    with pytest.raises(VoiceNotFound):
        store.delete("anna")
    store.save(voice(text="two"))
    assert store.get("anna").prompt_text == "two"


def test_a_new_voice_never_becomes_the_default(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path)
    assert store.default() is None
    store.save(voice("mona"), created="2026-11-25T10:00:00+00:00")
    store.save(voice("anna"), created="2026-11-25T11:00:00+00:00")
    assert store.default() == "mona"
    store.save(voice("zoe"))  # of the bundle
    assert store.default() == "zoe"
    store.delete("zoe")
    assert store.default() == "mona"


def test_the_number_of_voices_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_VOICES", 2)
    store = VoiceStore(tmp_path)
    store.save(voice("a"))
    store.save(voice("b"))
    with pytest.raises(Overloaded):
        store.save(voice("c"))
    store.save(voice("a", "new"), replace=True)
    store.delete("b")
    store.save(voice("c"))
    assert store.list() == ["a", "c"]


def test_the_cache_of_voices_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CACHED_PROMPTS", 2)
    store = VoiceStore(tmp_path)
    for name in ("a", "b", "c"):
        store.save(voice(name))
    kept = store.get("c")
    store.get("a")
    assert store.get("c") is kept
    store.get("b")
    assert len(store._read) == 2
    assert store.get("c") is kept


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.EROFS, Unsupported), (errno.EACCES, Unsupported), (errno.ENOSPC, Overloaded)]
)
def test_a_folder_that_cannot_be_written(
    number: int, expected: type[CosyServeError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = VoiceStore(tmp_path)
    store.save(voice())

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path))

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    monkeypatch.setattr(os, "unlink", refuse)
    changes: list[Callable[[], object]] = [
        lambda: store.save(voice("new")),
        lambda: store.save(voice(), replace=True),
        lambda: store.delete("anna"),
    ]
    for change in changes:
        with pytest.raises(expected) as caught:
            change()
        assert str(tmp_path) not in str(caught.value)
    assert VoiceStore(tmp_path).get("anna").digest == voice().digest


def replace_often(folder: Path, seed: int) -> None:
    """Write and delete voices; several processes do this in one folder."""
    store, chance = VoiceStore(folder), random.Random(seed)
    for _ in range(60):
        name = chance.choice(["anna", "berta"])
        with suppress(VoiceExists, VoiceNotFound):
            store.save(voice(name, text=str(seed)), replace=chance.random() < 0.7)
            if chance.random() < 0.3:
                store.delete(name)


def test_readers_see_whole_voices_while_other_processes_write(tmp_path: Path) -> None:
    store = VoiceStore(tmp_path)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=replace_often, args=(tmp_path, seed)) for seed in range(2)]
    for writer in writers:
        writer.start()
    read = 0
    while any(writer.is_alive() for writer in writers):
        for name in ("anna", "berta"):
            with suppress(VoiceNotFound):
                assert store.get(name).prompt_text in ("0", "1")
                read += 1
    assert read
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert {file.suffix for file in tmp_path.iterdir()} <= {".safetensors"}


def test_one_of_several_concurrent_registrations_of_a_name_succeeds(tmp_path: Path) -> None:
    outcomes: list[str] = []
    start = threading.Barrier(8)

    def register(text: str) -> None:
        start.wait()
        with suppress(VoiceExists):
            VoiceStore(tmp_path).save(voice(text=text))
            outcomes.append(text)

    threads = [threading.Thread(target=register, args=(str(i),)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [VoiceStore(tmp_path).get("anna").prompt_text] == outcomes


def test_bundle_speakers_that_cannot_be_voices() -> None:
    with pytest.raises(BundleError, match="no embedding"):
        voices_from_spk2info({"anna": {"prompt_text": np.zeros((1, 3), np.int32)}})
    with pytest.raises(BundleError, match="voice name"):
        voices_from_spk2info({"../anna": {"embedding": np.zeros((1, 192), np.float32)}})
