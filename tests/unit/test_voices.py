"""Registered voices on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cosyserve.errors import BundleError, InvalidInput, VoiceNotFound, WeightsError
from cosyserve.voices import Voice, VoiceStore, voices_from_spk2info

TINY = Path(__file__).parents[1] / "data" / "cosyvoice2-tiny"


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
    assert not [file for file in (tmp_path / "voices").iterdir() if file.suffix not in (".json", ".safetensors")]


def test_names_work_where_python_takes_file_names_for_ascii(tmp_path: Path) -> None:
    """As Triton's stub does, whatever the locale."""
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
    store.save(voice(text="two"))
    assert store.get("anna").prompt_text == "two"


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
    VoiceStore(tmp_path).save(voice())
    tensors, card = tmp_path / "anna.safetensors", tmp_path / "anna.json"
    good = tensors.read_bytes()
    tensors.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(WeightsError, match="checksum"):
        VoiceStore(tmp_path).get("anna")
    tensors.write_bytes(good[:20])
    with pytest.raises(WeightsError, match="cannot be read"):
        VoiceStore(tmp_path).get("anna")
    tensors.unlink()
    with pytest.raises(WeightsError, match="cannot be read") as caught:
        VoiceStore(tmp_path).get("anna")
    assert str(tmp_path) not in str(caught.value)
    card.write_text(json.dumps([]))
    with pytest.raises(WeightsError, match="cannot be read"):
        VoiceStore(tmp_path).get("anna")


def test_voices_of_a_bundle() -> None:
    speakers = torch.load(TINY / "bundle" / "spk2info.pt", weights_only=True)
    arrays = {name: {key: value.numpy() for key, value in entry.items()} for name, entry in speakers.items()}
    arrays["plain"] = {"embedding": arrays["spk_tiny"]["embedding"]}
    stored, plain = voices_from_spk2info(arrays)
    entry = arrays["spk_tiny"]
    for field, key in {
        "prompt_text_tokens": "prompt_text",
        "llm_prompt_tokens": "llm_prompt_speech_token",
        "flow_prompt_tokens": "flow_prompt_speech_token",
        "prompt_mel": "prompt_speech_feat",
        "speaker_embedding": "flow_embedding",
    }.items():
        np.testing.assert_array_equal(getattr(stored, field), entry[key][0])
    assert (stored.has_prompt, stored.has_transcript) == (True, True)
    assert (plain.has_prompt, plain.has_transcript) == (False, False)
    np.testing.assert_array_equal(plain.speaker_embedding, stored.speaker_embedding)


def test_bundle_speakers_that_cannot_be_voices() -> None:
    with pytest.raises(BundleError, match="no embedding"):
        voices_from_spk2info({"anna": {"prompt_text": np.zeros((1, 3), np.int32)}})
    with pytest.raises(BundleError, match="voice name"):
        voices_from_spk2info({"../anna": {"embedding": np.zeros((1, 192), np.float32)}})
