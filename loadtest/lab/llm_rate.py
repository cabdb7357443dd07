"""Measure speech tokens per second of the LLM engine alone, at several batch sizes in one run.

    python loadtest/lab/llm_rate.py --weights .cache/demo-weights --batches 1,4,16
    python loadtest/lab/llm_rate.py --weights weights --runtime gguf

Every sequence has the same length of text, so all batches do the same work for each token. Batches are measured in
turns, so that a change of the machine's load affects all of them; the ratio of the medians is comparable between
machines.

With ``--runtime gguf`` it also prints the difference of the logits from the float32 graph's for the same random tokens.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cosyserve.config import LlmConfig
from cosyserve.llm.decoder import Decoder, Ids, VocabLayout
from cosyserve.llm.engine import Engine
from cosyserve.llm.scores import softmax
from cosyserve.llm.sequence import GenerationRequest
from cosyserve.load.llm import load_decoder
from cosyserve.settings import Settings

TEXT = 60  # text tokens, for at least 120 speech tokens: no sequence ends during a measurement


def tokens_per_second(engine: Engine, config: LlmConfig, sequences: int, steps: int) -> float:
    """Measure the rate of `sequences` that decode in one batch for `steps` steps."""
    random = np.random.default_rng(sequences)
    nothing = np.zeros(0, np.int32)
    for id in range(sequences):
        text = random.integers(0, config.vocab, TEXT).astype(np.int32)
        engine.admit(GenerationRequest(id, text, nothing, nothing, id, emit=lambda token: None, fail=_raise))
    while len(engine.scheduler.rows.running) < sequences:
        engine.step()
    began = time.perf_counter()
    for _ in range(steps):
        engine.step()
    seconds = time.perf_counter() - began
    assert len(engine.scheduler.rows.running) == sequences, "a sequence ended during the measurement"
    engine.clear()
    return sequences * steps / seconds


def error_against(exact: Decoder, decoder: Decoder, config: LlmConfig, positions: int = 200) -> str:
    """Compare the logits of two decoders for the same tokens, and describe the difference."""
    random, numbers, nothing = np.random.default_rng(0), VocabLayout(config), np.zeros(0, np.int32)
    prompt = numbers.prompt(nothing, random.integers(0, config.vocab, TEXT).astype(np.int32), nothing)
    fed = numbers.speech + random.integers(0, config.speech_tokens, positions)
    expected, found = (_forced(each, prompt, fed) for each in (exact, decoder))
    p, q = softmax(expected), softmax(found)
    divergence = np.sum(p * (np.log(p) - np.log(q)), axis=-1)
    error = np.abs(found - expected)
    return (
        f"against fp32 at {positions + 1} positions: logits differ by {error.max():.2g} at most, {error.mean():.2g} in "
        f"the mean of {np.abs(expected).mean():.2g}; KL {divergence.mean():.2g} nats; "
        f"same likeliest token at {np.mean(expected.argmax(-1) == found.argmax(-1)):.1%}"
    )


def _forced(decoder: Decoder, prompt: Ids, fed: Ids) -> NDArray[np.float32]:
    """Compute logits [1 + len(fed), V] after the prompt and after each further token."""
    logits = [decoder.prefill(0, 0, prompt).row(0)]
    logits += [decoder.step(fed[i : i + 1], np.asarray([len(prompt) + i])).row(0) for i in range(len(fed))]
    decoder.release(0)
    return np.stack(logits)


def _raise(error: Exception) -> None:
    raise error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="prepared weights")
    parser.add_argument("--batches", default="1,4,16", help="batch sizes; ratios are relative to the first")
    parser.add_argument("--runtime", choices=("onnx", "gguf"), default="onnx", help="gguf: prepare with --llm-gguf")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=50, help="steps of one measurement")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each batch")
    arguments = parser.parse_args()
    batches = [int(size) for size in arguments.batches.split(",")]
    graph = Settings(weights=str(arguments.weights), threads=arguments.threads, llm_slots=max(batches))
    settings = replace(graph, llm_runtime="gguf") if arguments.runtime == "gguf" else graph
    config, decoder = load_decoder(settings)
    if settings != graph:
        print(error_against(load_decoder(graph)[1], decoder, config))
    engine = Engine(decoder, config, settings.llm_slots)

    rates: dict[int, list[float]] = {size: [] for size in batches}
    for _ in range(arguments.rounds):
        for size in batches:
            rates[size].append(tokens_per_second(engine, config, size, arguments.steps))
    base = statistics.median(rates[batches[0]])
    for size in batches:
        rate = statistics.median(rates[size])
        step = 1000 * size / rate
        print(f"{size:3} sequences: {rate:8.1f} tokens/s, {step:7.2f} ms a step, {rate / base:5.2f} times the first")


if __name__ == "__main__":
    main()
