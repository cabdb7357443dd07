"""Load test of a CosyServe server with Locust: voice users, and thresholds that set the exit code.

    locust -f loadtest/locustfile.py --headless --users 8 --run-time 1m --max-p95-first-audio 500
    locust -f loadtest/locustfile.py --headless --users 4 --run-time 1m ClonedVoice BargeIn

Arguments select user classes by name. Each class reports, in milliseconds, ``first audio``, ``gap`` (the longest pause
of a stream, only for streams with an underrun), ``utterance`` (until its last response) and ``refused`` (by a full
server). With ``--stop-timeout`` the utterances that run at the end are completed.
"""

from __future__ import annotations

import logging

# Must precede the first channel: without it a user who waits for audio would block all others.
from grpc.experimental import gevent as grpc_gevent

grpc_gevent.init_gevent()

from locust import events  # noqa: E402
from locust.env import Environment  # noqa: E402
from locust.runners import WorkerRunner  # noqa: E402
from thresholds import Thresholds, add_threshold_options  # noqa: E402
from voice_users import BargeIn, ClonedVoice, KnownVoice, LongText, TextIn, add_voice_options  # noqa: E402

__all__ = ["BargeIn", "ClonedVoice", "KnownVoice", "LongText", "TextIn"]

events.init_command_line_parser.add_listener(add_voice_options)
events.init_command_line_parser.add_listener(add_threshold_options)


@events.quitting.add_listener
def judge(environment: Environment, **_: object) -> None:
    """Log every missed threshold, and set the exit code to 1 if there is one."""
    options, runner = environment.parsed_options, environment.runner
    if options is None or runner is None or isinstance(runner, WorkerRunner):
        return  # the master has the figures of its workers
    kinds = [kind for kind, users in runner.target_user_classes_count.items() if users]
    thresholds = Thresholds(options.max_p95_first_audio, options.min_gapless, options.max_errors)
    misses = [miss for kind in kinds for miss in thresholds.misses(environment.stats, kind)]
    for miss in misses:
        logging.error("failed: %s", miss)
    environment.process_exit_code = 1 if misses else 0
