"""`herd chat`: a conversation in the terminal, or one line of standard input after the other."""

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from herd.complain import complain
from herd.private import NoHerd, private_herd
from herd.reach import Reach
from herd.show_error import show_error
from llamaherd.client import Chat, ChatKnobs, HerdError, Stream, UnknownSession
from telemetry import names
from telemetry.setup import start_tracing

PATIENCE_S = 20.0  # a gateway may restart meanwhile; Ctrl-C gives up sooner
HELP = """\
/stats   tokens and times of the last answer, and of every one from now on
/handle  what goes on with this conversation elsewhere: herd chat --handle ...
/quit    leave, as Ctrl-D does; Ctrl-C interrupts an answer"""


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """What `herd chat` was asked for; the command line documents each."""

    reach: Reach
    start: bool
    system: str
    handle: str
    stats: bool
    timeout_s: float
    knobs: ChatKnobs


def run_chat(options: ChatOptions) -> int:
    """Talk until the input ends; the exit status (1: something was not answered)."""
    stop_tracing = start_tracing("llamaherd-client")
    try:
        with ExitStack() as stack:
            reach = Reach((stack.enter_context(private_herd()),)) if options.start else options.reach
            client = stack.enter_context(reach.client(patience_s=PATIENCE_S))
            chat = client.chat(system_prompt=options.system, handle=options.handle, **options.knobs)
            return _Talk(stack.enter_context(chat), options).run()
    except BrokenPipeError:
        raise  # of whoever reads our output, and has had enough
    except (UnicodeDecodeError, UnicodeEncodeError) as error:  # of an argument
        complain("chat", f"what is asked must be UTF-8: {error.reason}")
        return 2
    except (NoHerd, OSError) as error:
        complain("chat", error)
        return 1
    except HerdError as error:
        show_error(error, begins_line=True)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        stop_tracing()


class _Talk:
    """Lines in, answers out. Answers go to standard output, all else to standard error."""

    def __init__(self, chat: Chat, options: ChatOptions) -> None:
        self._chat = chat
        self._timeout_s = options.timeout_s
        self._shows_stats = options.stats
        self._is_terminal = sys.stdin.isatty()
        self._pace: _Pace | None = None
        self._is_over = False
        self._has_failed = False

    def run(self) -> int:
        """Until the input ends."""
        for line in self._lines():
            if self._is_terminal and line.startswith("/"):
                self._obey(line.strip())
            elif line.strip():
                self._answer(line)
            if self._is_over:
                break
        return int(self._has_failed)

    def _lines(self) -> Iterator[str]:
        if not self._is_terminal:
            # what is no UTF-8 passes as a surrogate, so that only its own line fails
            yield from (line.decode(errors="surrogateescape").rstrip("\r\n") for line in sys.stdin.buffer)
            return
        import readline  # noqa: F401  gives `input` its editing and its history

        print("Ctrl-C interrupts an answer, Ctrl-D leaves, /help has more.", file=sys.stderr)
        while True:
            try:
                line = input("> ")
            except EOFError:
                print(file=sys.stderr)
                return
            except KeyboardInterrupt:  # a fresh line, as in a shell
                print(file=sys.stderr)
                continue
            yield line

    def _answer(self, text: str) -> None:
        tracer = trace.get_tracer("llamaherd")
        with tracer.start_as_current_span(names.SPAN_CLIENT, kind=SpanKind.CLIENT) as span:
            self._pace = pace = _Pace()
            try:
                with self._chat.send(text, timeout_s=self._timeout_s) as stream:
                    for delta in stream:
                        pace.note(len(delta.tokens))
                        sys.stdout.write(delta.text)
                        sys.stdout.flush()
                pace.ended(stream)
                print(flush=True)
                _tell_dropped(stream)
            except KeyboardInterrupt:
                print("\n(interrupted; the conversation goes on)", file=sys.stderr)
            except UnicodeEncodeError:
                complain("chat", "this line is no UTF-8 and was not sent")
                self._has_failed = True
            except HerdError as error:
                span.set_status(Status(StatusCode.ERROR, error.code.name))
                show_error(error)
                self._has_failed = True
                self._is_over = isinstance(error, UnknownSession)
        if self._shows_stats:
            print(pace, file=sys.stderr)

    def _obey(self, command: str) -> None:
        match command:
            case "/stats":
                self._shows_stats = True
                print(self._pace or "nothing was answered yet", file=sys.stderr)
            case "/handle":
                print(self._chat.handle, file=sys.stderr)
            case "/quit":
                self._is_over = True
            case _:
                print(HELP, file=sys.stderr)


class _Pace:
    """How fast one answer came, by this terminal's clock."""

    def __init__(self) -> None:
        self._sent_s = time.monotonic()
        self._first_s: float | None = None
        self._last_s = self._sent_s
        self._num_first = 0
        self._num_tokens = 0
        self._prompt = ""

    def note(self, num_tokens: int) -> None:
        """So many came just now."""
        self._last_s = time.monotonic()
        if self._first_s is None:
            self._first_s, self._num_first = self._last_s, num_tokens
        self._num_tokens += num_tokens

    def ended(self, stream: Stream) -> None:
        """The answer is complete."""
        if stream.usage is not None:
            self._prompt = f"prompt of {stream.usage.prompt_tokens} tokens; "

    def __str__(self) -> str:
        if self._first_s is None:
            return "no token came"
        elapsed_s = self._last_s - self._first_s
        rate = f", then {(self._num_tokens - self._num_first) / elapsed_s:.1f} tokens/s" if elapsed_s > 0 else ""
        first_ms = (self._first_s - self._sent_s) * 1000
        return f"{self._prompt}{self._num_tokens} tokens, the first after {first_ms:.0f} ms{rate}"


def _tell_dropped(stream: Stream) -> None:
    if stream.turn is not None and (dropped := stream.turn.num_turns_dropped):
        which = "oldest turn" if dropped == 1 else f"{dropped} oldest turns"
        print(f"(more than the model holds; left out: the {which})", file=sys.stderr)
