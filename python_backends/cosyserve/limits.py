"""The bounds of the server, each with its reason. (Sizes of windows and buffers are with the code that has them.)"""

from __future__ import annotations

MAX_TEXT_CHARS = 4096
"""Characters of one request's text: OpenAI's speech endpoint uses the same bound."""

MAX_SESSION_CHARS = 4 * MAX_TEXT_CHARS
"""Characters of one session's text: some 20 minutes of speech, 60 MB that wait in Triton if nobody reads them."""

SESSION_IDLE_SECONDS = 30
"""Default (`session_idle`) for the longest pause of a writer, who holds a stream's place and memory: whoever calls a
tool in the middle of an answer takes 10 to 20 s."""

LIFETIME_SECONDS = 1800
"""Default (`lifetime`) for the longest time of an utterance, which holds a stream's place and memory:
`MAX_SESSION_CHARS` are spoken in 20 minutes, and clients give up a request after 10."""

MAX_WORD_CHARS = 32
"""Characters after which a word without an end is taken for complete, in text that arrives in pieces, so that a script
without spaces is not held back for long: a clause of Chinese has about ten."""

REMEMBERED_IDS = 1024
"""Failed sessions, and utterances stopped before they began, that are remembered: far more than have requests under
way."""

MAX_PROMPT_TEXT_CHARS = 1024
"""Characters of a prompt transcript: 30 s of fast speech has about 600."""

MAX_INSTRUCT_CHARS = 512
"""Characters of an instruction: trained instructions have under 60."""

MAX_VOICE_NAME_CHARS = 64
"""Characters of a voice name, which is also a file name."""

MIN_PROMPT_SECONDS = 0.5
"""Shortest usable prompt audio: below it the speaker model sees fewer than 50 frames."""

MAX_PROMPT_SECONDS = 30.0
"""Longest prompt audio: the speech tokenizer was trained on windows of 30 s."""

MIN_AUDIO_RATE = 16_000
"""Lowest sample rate of given audio in Hz: speaker model and speech tokenizer listen at 16 kHz."""

MAX_AUDIO_RATE = 192_000
"""Highest sample rate of given audio in Hz that an audio interface delivers."""

MAX_AUDIO_PEAK = 2.0
"""Largest sample value of given audio: float audio may overshoot 1.0, samples on an integer scale are far above."""

MIN_SPEED, MAX_SPEED = 0.5, 2.0
"""Speaking rates: beyond them interpolated mels smear or skip what tells sounds apart."""

SAMPLE_RATES = (8_000, 16_000, 24_000, 48_000)
"""Rates of the audio in Hz besides the bundle's own: telephony, wide band, CosyVoice 2 and 3, web and studio."""

SILENCE_PEAK = 1e-4
"""Given audio whose peak is below this (-80 dBFS) holds no voice."""

MAX_SOURCE_SECONDS = 300.0
"""Longest audio to convert: at 48 kHz in float32 it takes 58 MB, and a message may have 67."""

MAX_SOURCE_SEGMENT_SECONDS = 30.0
"""Longest piece of it that is converted as a whole: the window of the speech tokenizer."""

CACHED_PROMPTS = 32
"""Inline prompts, and registered voices, whose features are kept; each takes up to 0.5 MB."""

MAX_VOICES = 1000
"""Registered voices: each takes up to 0.5 MB of disk, and listing them opens every file."""

MAX_CONSENT_CHARS = 1024
"""Characters of the note on a speaker's consent: a paragraph, a link, a reference."""

FRONTEND_THREADS = 4
"""Requests that the frontend works on at once, so that a long source or prompt holds up no short text."""

MIN_TOKENS_PER_TEXT_TOKEN = 2
"""Speech tokens per text token before an end is allowed (upstream llm.py :: inference)."""

MAX_TOKENS_PER_TEXT_TOKEN = 20
"""Speech tokens per text token after which generation is cut (upstream llm.py :: inference)."""

MAX_SECONDS_AHEAD = 10.0
"""Speech that may wait for its audio when the language model begins a further segment of an utterance: enough that a
segment is there before the one before it ends, and all that is lost when the listener leaves. (Audio that a client does
not read waits in Triton: `MAX_TEXT_CHARS` come to some 5 minutes, 15 MB.)"""

PREFILL_CHUNK = 64
"""Prompt ids that the language model takes between two steps of those who speak: at full size on 2 CPU cores an id
costs 9.1 ms, 8.0 among 128, which hold the others up twice as long, and 13.6 among 16."""

MAX_CYCLE = 4
"""Longest cycle of speech tokens that counts as going in circles."""

MAX_REPEATED_TOKENS = 75
"""Tokens of one short cycle after which generation is cut: 3 s, where pauses of one silent token last up to 2."""

MAX_PROMPT_TEXT_TOKENS = 8 * MAX_PROMPT_TEXT_CHARS
"""Text ids before a text: a character is up to four, an instruction comes on top. They cost the language model memory
in every row, so that one caller with a million of them would take all there is."""

MAX_PROMPT_TOKENS = 1500
"""Speech tokens of a prompt: 30 s at the 50 Hz of CosyVoice 1."""

MAX_PROMPT_FRAMES = 3000
"""Mel frames of a prompt: 30 s at up to 100 a second."""

MAX_NOISE_FRAMES = 15_000
"""Mel frames of the fixed flow noise: 300 s of prompt and speech in one segment."""

MAX_STREAMS = 64
"""Most utterances in progress at once in each entry model; the setting `max_streams` lowers it."""

MAX_SEQUENCES = 2 * MAX_STREAMS
"""Most sequences of flow and hift: tts and the model of upstream's contract each bound their own streams."""

MAX_LLM_SLOTS = MAX_STREAMS
"""Default for sequences in one LLM step: one for each stream of tts, so that none waits for another's
segment to end."""

STAGE_TIMEOUT_SECONDS = 240
"""Default (`stage_timeout`) for the longest wait in seconds for one answer of a stage: 30 s of audio in one piece take
111 s at full size on two cores, and others may be before them."""

MAX_STAGE_TIMEOUT_SECONDS = 280
"""Longest such wait that can be set: the state behind it would be taken for lost."""

SEQUENCE_IDLE_SECONDS = 300
"""Idle time after which the flow and vocoder state of a lost stream is dropped: longer than any step may take."""

LEAVE_SECONDS = 2.0
"""Longest wait for a stage to take note that an utterance is given up: it takes milliseconds, and a stage that hangs
must not hold back what the client is told."""

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""Largest gRPC message: a 30 s prompt at 192 kHz in float32 is 23 MB."""

MAX_CONNECTION_SECONDS = 300
"""Age at which a connection is asked to end, its streams first: who comes back finds servers that have come since."""

READY_SECONDS = 300.0
"""Longest wait for a server to be ready: full-size weights load in well under a minute from a warm disk."""

EXIT_SECONDS = 5
"""Longest that Triton waits when it is told to stop. It cuts streams off at once, but takes the flow and vocoder state
they leave behind for requests under way, which nothing can end any more."""

STOP_POLL_SECONDS = 0.1
"""Between two looks of an entry model whether the server is told to stop."""

STOP_NOTICE_SECONDS = 3 * STOP_POLL_SECONDS
"""Time in which the entry models tell their callers that the server stops, before Triton is told to."""

STILL_SECONDS = 2.0
"""Time without any answer of a stage, while some are waited for, after which it is asked for a sign of life."""

SIGN_OF_LIFE_SECONDS = 4.0
"""Longest wait for that sign of a stage whose process computes nothing meanwhile: it takes milliseconds."""

STILL_CPU_SECONDS = 0.05
"""Processor time in it below which a process computes nothing. One of fifty on two cores gets more."""

STOP_SECONDS = EXIT_SECONDS + 5.0
"""Longest wait for Triton to stop before it is killed."""

CACHED_VOICES = 64
"""Flow states of recent voices, besides their bound in bytes: each also takes address space."""

MAX_SEGMENT_TEXT_TOKENS = 256
"""Text tokens of one segment: its flow state grows with each frame (4.6 MB at full size), and is freed at its end."""

GGUF_POSITIONS = 4096
"""Positions of a sequence in llama.cpp, 100 MB at full size: 30 s of prompt with its transcript, a segment's text, and
100 s of speech."""

RESERVED_FRAMES = 500
"""Most mel frames of flow state that a new stream needs room for, besides its prompt: 10 s, a long sentence."""

EXPECTED_TOKENS_PER_TEXT_TOKEN = 12
"""Speech tokens that a text token is expected to become at most: English takes some 8, Chinese 9."""

WAITING_LOG_LINES = 1000
"""Lines of a log that wait to be written when nobody reads it; further ones are dropped, and speech goes on."""

LOG_FLUSH_SECONDS = 1.0
"""Longest wait for them at the end."""

LAST_SPANS_SECONDS = 2.0
"""Longest wait at the end for a collector to take the last spans: Triton gives models `EXIT_SECONDS` in all."""
