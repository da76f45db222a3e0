"""Status codes of gRPC and HTTP, both ways."""

from __future__ import annotations

from http import HTTPStatus
from random import Random

from training.corpus.dialogue import Split, Turn
from training.corpus.phrasing import Phrases

GRPC_CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE",
    "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
# Phrases that no Python version has renamed, so that every machine draws the same corpus.
_HTTP_CODES = (100, 101, 200, 201, 202, 204, 206, 301, 302, 304, 307, 308, 400, 401, 403, 404, 405, 406, 408, 409, 410,
    412, 415, 418,
               429, 500, 501, 502, 503, 504)  # fmt: skip

BY_NUMBER = Phrases(
    seen=(
        "what is {p} [status |status code |code |error ]{n}?", "{p} [status|code|status code|error] {n}",
        "{p} {n}", "what does {p} {n} mean?", "what does {p} [status|code|error] {n} mean?",
        "which {p} [status|code] is {n}?", "explain {p} [status|code|error] {n}",
        "name of {p} [status|code] {n}", "what is the name of {p} [status|code] {n}?",
        "I got {p} [status|error|code] {n}", "meaning of {p} {n}", "tell me {p} [status|code] {n}",
        "[status|code|error] {n} in {p}",
    ),
    held_out=("what is the meaning of {p} status {n}?", "can you tell me what {p} code {n} is?",
        "what is the {p} error {n}?"),
)  # fmt: skip
BY_NAME = Phrases(
    seen=(
        "what is the number of {x}?", "[number|code] of {x}",
        "what is the {p} [code|number|status code] of {x}?", "which {p} [code|number] is {x}?",
        "which number has {x}?", "which [code|status code] is {x}?", "what [code|number] is {x}?",
        "what is the code for {x}?", "{p} [code|status code|number] for {x}",
        "tell me the {p} [code|number] of {x}", "{x}: which number?", "which {p} status is {x}?",
    ),
    held_out=("can you tell me the code of {x}?", "what is the {p} status code for {x}?"),
)  # fmt: skip


def status_code(rng: Random, split: Split) -> Turn:
    """A code for its name, or a name for its code."""
    if rng.random() < 0.6:
        protocol, number = "gRPC", rng.randrange(len(GRPC_CODES))
        name = GRPC_CODES[number]
    else:
        protocol, number = "HTTP", rng.choice(_HTTP_CODES)
        name = "I'm a Teapot" if number == 418 else HTTPStatus(number).phrase
    answer = f"{protocol} status {number} is {name}."
    shown = protocol.lower() if rng.random() < 0.2 else protocol
    if name == "OK" or rng.random() < 0.6:  # OK is a code of both
        return Turn(BY_NUMBER.draw(rng, split, p=shown, n=number), answer, name)
    typed = rng.choice((name, name, name.lower()))
    return Turn(BY_NAME.draw(rng, split, p=shown, x=typed), answer, str(number))
