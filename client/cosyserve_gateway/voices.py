"""``/v1/audio/voices`` and ``/v1/models``."""

from __future__ import annotations

import asyncio
import io

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cosyserve_client import AsyncClient, InvalidArgument, Voice, read_prompt
from cosyserve_gateway.errors import VOICES_FIXED, invalid
from cosyserve_gateway.limits import MAX_FORM_FIELDS
from cosyserve_gateway.settings import Settings
from cosyserve_gateway.speech import MODELS


class Voices:
    """Endpoints of the registered voices, which all callers share."""

    def __init__(self, server: AsyncClient, settings: Settings) -> None:
        self._server = server
        self._changes = settings.voice_changes
        self._reading = asyncio.Lock()  # a prompt of 30 s at 192 kHz takes 23 MB a channel while it is read

    async def list(self, request: Request) -> Response:
        """Registered voices: name, seconds of prompt, date; and `changes`, whether callers may change them."""
        voices = [_described(voice) for voice in await self._server.list_voices()]
        return JSONResponse({"object": "list", "data": voices, "changes": self._changes})

    async def register(self, request: Request) -> Response:
        """Registers a voice from a form: `name`, `audio_sample` (a file), `consent`, optionally `prompt_text`; 201."""
        self._check_changes()
        async with request.form(max_files=1, max_fields=MAX_FORM_FIELDS) as form:
            sample = form.get("audio_sample")
            if not isinstance(sample, UploadFile):
                raise invalid("audio_sample", "must be a file")
            data = await sample.read()
            name, consent, prompt_text = (form.get(field) for field in ("name", "consent", "prompt_text"))
        if not isinstance(name, str):
            raise invalid("name", "is missing")
        if not isinstance(consent, str) or not consent.strip():
            raise invalid("consent", "state that the speaker agrees, and where the agreement is recorded")
        async with self._reading:
            samples, rate = await asyncio.to_thread(read_prompt, io.BytesIO(data))
        transcript = prompt_text if isinstance(prompt_text, str) and prompt_text else None
        try:
            voice = await self._server.add_voice(name, samples, rate, prompt_text=transcript, consent=consent)
        except InvalidArgument as error:
            field, _, problem = error.message.partition(": ")
            raise invalid("name", problem) if field == "voice" else error from None
        return JSONResponse(_described(voice), 201)

    async def remove(self, request: Request) -> Response:
        """Deletes a voice."""
        self._check_changes()
        voice = await self._server.remove_voice(request.path_params["name"])
        return JSONResponse({"id": voice.name, "deleted": True})

    def _check_changes(self) -> None:
        if not self._changes:
            raise VOICES_FIXED("this gateway does not allow changes to voices")


def _described(voice: Voice) -> dict[str, object]:
    # Neither transcript nor consent, which are between the speaker and who registered the voice.
    return {
        "id": voice.name,
        "object": "voice",
        "name": voice.name,
        "prompt_seconds": voice.prompt_seconds,
        "created": voice.created,
    }


async def models(request: Request) -> Response:
    """Names of the one model."""
    return JSONResponse(
        {
            "object": "list",
            "data": [{"id": name, "object": "model", "created": 0, "owned_by": "cosyserve"} for name in MODELS],
        }
    )
