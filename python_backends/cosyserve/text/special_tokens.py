"""Tokens with a meaning of their own, which several versions share."""

from __future__ import annotations

END_OF_PROMPT = "<|endofprompt|>"

SPEECH_TAGS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", END_OF_PROMPT),
    *("[breath]", "<strong>", "</strong>", "[noise]", "[laughter]", "[cough]", "[clucking]", "[accent]"),
    *("[quick_breath]", "<laughter>", "</laughter>", "[hissing]", "[sigh]", "[vocalized-noise]", "[lipsmack]"),
    "[mn]",
)
"""Special tokens of CosyVoice2, in id order: Qwen2's own, then CosyVoice's."""

END_OF_INSTRUCTION = "<endofprompt>"
"""What ends an instruction to CosyVoice 1, in plain characters (upstream's frontend appended it when that model came
out; later callers were told to write ``<|endofprompt|>``, which this version's tokenizer does not know either)."""

LANGUAGE_TAGS = ("<|zh|>", "<|en|>", "<|ja|>", "<|yue|>", "<|ko|>")
"""The languages that CosyVoice 1 was taught to tell apart, as tags before a text."""
