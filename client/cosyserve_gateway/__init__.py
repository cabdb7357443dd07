"""HTTP in front of a CosyServe server: OpenAI's speech endpoint, a WebSocket for text as it is written, a page.

    cosyserve-gateway --url 127.0.0.1:8001        # serves http://127.0.0.1:8080

    from openai import OpenAI

    client = OpenAI(base_url="http://127.0.0.1:8080/v1", api_key="none")
    with client.audio.speech.with_streaming_response.create(
        model="cosyvoice", voice="demo", input="Hello.", response_format="mp3"
    ) as response:
        response.stream_to_file("hello.mp3")

A client of the gRPC API like any other. `create_app` is the application for other ASGI servers.
"""

from cosyserve_gateway.app import create_app
from cosyserve_gateway.settings import Settings

__all__ = ["Settings", "create_app"]
