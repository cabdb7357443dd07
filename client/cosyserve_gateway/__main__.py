"""``python -m cosyserve_gateway``."""

from cosyserve_gateway.cli import app

app()
