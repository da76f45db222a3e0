"""How a process reports itself: spans, logs, and the names of both."""
