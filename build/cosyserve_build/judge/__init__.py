"""What can be told of speech without ears: the words that a recogniser hears in it, and the faults of its signal."""
