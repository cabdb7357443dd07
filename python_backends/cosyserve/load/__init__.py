"""From prepared weights to the objects that the models run.

One module for each process of a server, so that it imports what it runs and no more.
"""
