"""Measure how fast a full server refuses: time and code of its first answer to each request.

    python loadtest/lab/refusals.py 127.0.0.1:8001 --count 1000
    python loadtest/lab/refusals.py 127.0.0.1:8001 --count 500 --at-once

Requests are sent one after another on one connection, or all at once, each on its own open connection. Another process
must occupy the slots, so that this one measures only the server. Prints JSON: ``answers``, by code (``OK`` is audio),
and ``milliseconds``, sorted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections import Counter
from typing import Any

import grpc
from tritonclient.grpc import service_pb2_grpc

from cosyserve.codes import CodedMessage
from cosyserve_client import wire
from cosyserve_client.types import SpeechRequest

PAUSE_SECONDS = 0.02
"""Maximum random pause between requests, so that they do not synchronise with the server's loop."""

PATIENCE_SECONDS = 60.0
"""Maximum seconds to wait for an answer."""


async def connect(url: str) -> Any:
    """Open a connection."""
    channel = grpc.aio.insecure_channel(url, options=wire.channel_options(wire.KEEPALIVE_SECONDS))
    await asyncio.wait_for(channel.channel_ready(), PATIENCE_SECONDS)
    return channel


async def first_answer(channel: Any) -> tuple[str, float]:
    """Send a request; return the code of the first answer, and the milliseconds until it arrived."""
    stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    message = wire.infer_request(SpeechRequest(text="Hello."))
    began = time.perf_counter()
    call = stub.ModelStreamInfer([message], timeout=PATIENCE_SECONDS)
    try:
        answer = await call.read()
        milliseconds = 1000 * (time.perf_counter() - began)
        if not answer.error_message:
            call.cancel()
            return "OK", milliseconds
        await call.read()  # the end
        coded = CodedMessage.decode(answer.error_message)
        return coded.status if coded else answer.error_message, milliseconds
    except grpc.aio.AioRpcError as error:
        return error.code().name, 1000 * (time.perf_counter() - began)


async def one_by_one(url: str, count: int) -> list[tuple[str, float]]:
    """Get `count` answers."""
    channel = await connect(url)
    answers = []
    for _ in range(count):
        answers.append(await first_answer(channel))
        await asyncio.sleep(random.uniform(0, PAUSE_SECONDS))
    await channel.close()
    return answers


async def at_once(url: str, count: int) -> list[tuple[str, float]]:
    """Get `count` answers."""
    channels = await asyncio.gather(*(connect(url) for _ in range(count)))
    answers = await asyncio.gather(*(first_answer(channel) for channel in channels))
    await asyncio.gather(*(channel.close() for channel in channels))
    return list(answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--at-once", action="store_true")
    options = parser.parse_args()
    answers = asyncio.run((at_once if options.at_once else one_by_one)(options.url, options.count))
    codes = Counter(code for code, _ in answers)
    print(json.dumps({"answers": codes, "milliseconds": sorted(round(each, 2) for _, each in answers)}))


if __name__ == "__main__":
    main()
