"""``cosyserve bench``: what listeners hear of a server under load.

playback     one stream as a player hears it: first audio, first audible sample, gaps
speaker      says utterances and times them
generator    closed and open loops of utterances
results      the utterances of one load, and their figures
environment  the client's machine and the server, as a report describes them
report       table and JSON
plot         PNG
command      the command line
"""
