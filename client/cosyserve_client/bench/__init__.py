"""``cosyserve bench``: what listeners hear of a server under load.

playback   one stream as a player hears it: first audio, first audible sample, gaps
speaker    says utterances and times them
load       closed and open loops of utterances
level      the utterances of one load, and their figures
facts      what was measured, on which machine, against which server
report     table and JSON
picture    PNG
command    the command line
"""
