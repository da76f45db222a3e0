"""What crosses a process border: keys, messages, errors, trace context and the Redis scripts.

Imported by both `service` and `worker`; imports neither.
"""
