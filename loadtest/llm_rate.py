"""Speech tokens per second of the LLM engine alone, at several numbers of sequences in one run.

    python loadtest/llm_rate.py --weights .cache/demo-weights --batches 1,4,16

Every sequence has the same length of text, so all batches do the same work for each token. Batches take turns, so that
a change of the machine's load meets all of them; the ratio of the medians means the same on any machine.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

from cosyserve.config import LlmConfig
from cosyserve.llm.engine import Engine, Sequence
from cosyserve.load import load_decoder
from cosyserve.settings import Settings

TEXT = 60  # text tokens, 120 speech tokens at least: no sequence ends during a measurement


def tokens_per_second(engine: Engine, config: LlmConfig, sequences: int, steps: int) -> float:
    """Rate of `sequences` that decode side by side for `steps` steps."""
    random = np.random.default_rng(sequences)
    nothing = np.zeros(0, np.int32)
    for id in range(sequences):
        text = random.integers(0, config.vocab, TEXT).astype(np.int32)
        engine.admit(Sequence(id, text, nothing, nothing, id, emit=lambda token: None, fail=_raise))
    while len(engine.running) < sequences:
        engine.step()
    began = time.perf_counter()
    for _ in range(steps):
        engine.step()
    seconds = time.perf_counter() - began
    assert len(engine.running) == sequences, "a sequence ended during the measurement"
    engine.clear()
    return sequences * steps / seconds


def _raise(error: Exception) -> None:
    raise error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="prepared weights")
    parser.add_argument("--batches", default="1,4,16", help="sequences side by side, the first is the base of ratios")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=50, help="steps of one measurement")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each batch")
    arguments = parser.parse_args()
    batches = [int(size) for size in arguments.batches.split(",")]
    settings = Settings(weights=str(arguments.weights), threads=arguments.threads, llm_slots=max(batches))
    config, decoder = load_decoder(settings)
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
