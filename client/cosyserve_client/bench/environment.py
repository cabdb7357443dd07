"""What a run can say about itself: this machine, and the server as it describes itself."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from tritonclient.grpc import service_pb2

from cosyserve.contracts import MODELS
from cosyserve_client.aio import AsyncClient
from cosyserve_client.errors import NotFound


def machine() -> dict[str, Any]:
    """CPU model, cores and system of the machine that runs this client."""
    return {"cpu": _cpu(), "cores": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()}


async def server(client: AsyncClient) -> dict[str, Any]:
    """Name and version of the server, and the configured parameters of each model that it serves.

    Environment variables of the server that override a parameter are not visible to a client.

    Raises:
        CosyServeClientError: the server cannot be reached.
    """
    described = await client._unary("ServerMetadata", service_pb2.ServerMetadataRequest())
    models = {}
    for model in MODELS:
        with suppress(NotFound):  # a model of another version of CosyVoice
            models[model.name] = await _parameters(client, model.name)
    return {"name": described.name, "version": described.version, "models": models}


async def _parameters(client: AsyncClient, model: str) -> dict[str, str]:
    response = await client._unary("ModelConfig", service_pb2.ModelConfigRequest(name=model))
    return {key: value.string_value for key, value in sorted(response.config.parameters.items())}


def _cpu() -> str:
    listed = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*: (.*)$", listed.read_text(), re.MULTILINE) if listed.exists() else None
    return found[1] if found else platform.processor()
