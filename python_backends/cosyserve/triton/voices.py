"""The model `voices`: registers, lists, describes and deletes. It stores files; the frontend computes the features."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

from cosyserve.contracts import ACTIONS, FRONTEND, VOICES, Tensors
from cosyserve.errors import InvalidInput
from cosyserve.load.voices import load_voices
from cosyserve.logs import request_id
from cosyserve.triton.adapter import REQUEST_ID, ErrorReply, public_error, read_inputs, read_settings, response, values
from cosyserve.triton.bls import BlsStages
from cosyserve.triton.watchdog import Watchdog
from cosyserve.voices import Card, Voice
from cosyserve.weights import Weights


class Voices:
    """Answers one request at a time. Several of these may share a folder of voices."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Called by Triton once, before any request."""
        settings = read_settings(args)
        weights = Weights(settings.folder)
        self._token_rate = weights.config.token_rate
        self._store = load_voices(weights)
        self._stages = BlsStages(settings)
        self._watchdog = Watchdog(self._stages.processes, lambda: False)  # a registration takes seconds

    async def execute(self, requests: list[Any]) -> list[Any]:
        """The cards of the voices that each request names."""
        return [await self._answer(request) for request in requests]

    async def _answer(self, request: Any) -> Any:
        id = request_id(request.request_id())
        REQUEST_ID.set(id)
        try:
            work = asyncio.create_task(self._cards(read_inputs(request, VOICES)))
            with self._watchdog.watching(work):
                cards = await work
            return response({"voices": np.array([self._described(card) for card in cards], np.object_)}, VOICES)
        except Exception as error:
            return await ErrorReply(request).response(public_error(error, id))

    async def _cards(self, inputs: Tensors) -> Sequence[Card]:
        given = values(inputs, VOICES)
        action, name = given["action"], given.get("voice")
        if action not in ACTIONS:
            raise InvalidInput("action", f"must be one of {', '.join(ACTIONS)}")
        if action == "list":
            return self._store.cards()
        if name is None:
            raise InvalidInput("voice", "is required")
        if action == "describe":
            return [self._store.card(name)]
        if action == "delete":
            return [self._store.delete(name)]
        return [await self._register(name, inputs, given)]

    async def _register(self, name: str, inputs: Tensors, given: dict[str, Any]) -> Card:
        replace = given.get("replace", False)
        self._store.check_new(name, replace=replace)
        prompt = {t.name: inputs[t.name] for t in FRONTEND.inputs if t.name in inputs and t.name != "voice"}
        features: dict[str, Any] = await self._stages.frontend({**prompt, "listen": np.array([True])})
        voice = Voice(
            name=name,
            prompt_text=given.get("prompt_text", "").strip(),
            speaker_embedding=features["speaker_embedding"],
            llm_prompt_tokens=features["llm_prompt_tokens"],
            flow_prompt_tokens=features["flow_prompt_tokens"],
            prompt_mel=features["prompt_mel"],
        )
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return self._store.save(voice, consent=given.get("consent", "").strip(), created=now, replace=replace)

    def _described(self, card: Card) -> bytes:
        described = asdict(card)
        described["prompt_seconds"] = described.pop("prompt_tokens") / self._token_rate
        return json.dumps(described, ensure_ascii=False).encode()
