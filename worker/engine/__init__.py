"""The inference engine: knows no Redis, no gRPC, no asyncio.

Shapes are written with these letters: B sequences, T new tokens, S cache positions, H heads, D head size, V vocabulary.
"""
