"""Short explanations of the service that serves this model: what its parts are and what they promise."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from training.corpus.dialogue import Split, Turn
from training.corpus.phrasing import Phrases

ABOUT = Phrases(
    seen=(
        "what is {x}?", "what's {x}?", "what are {x}?", "explain {x}", "explain {x} to me",
        "tell me about {x}", "tell me something about {x}", "how does {x} work?", "what does {x} mean?",
        "what does {x} do?", "define {x}", "{x}?", "{x}", "I do not understand {x}",
        "what do you know about {x}?", "describe {x}", "give me a short explanation of {x}",
        "help me understand {x}", "can you explain {x}?", "what is meant by {x}?", "why {x}?",
        "what is {x} good for?", "what is the point of {x}?", "why does llamaherd use {x}?",
        "how does llamaherd use {x}?", "in short, what is {x}?", "what is {x} in llamaherd?",
        "explain {x} in one sentence", "do you know what {x} is?", "I want to learn about {x}",
        "teach me about {x}", "say a few words about {x}", "can you tell me what {x} is?",
        "what role does {x} play?", "what is the role of {x}?", "how would you explain {x}?",
        "{x}, what is that?", "what exactly is {x}?", "who or what is {x}?",
    ),
    held_out=(
        "could you clarify what {x} is?", "I keep hearing about {x}. What is it?",
        "in a few words, what is {x}?", "please explain what {x} means", "what can you tell me about {x}?",
        "can you describe {x}?", "what is {x} used for?",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Topic:
    """One part of the service: what people call it, questions of its own, and the answer."""

    names: tuple[str, ...]
    answer: str
    brief: str
    questions: tuple[str, ...] = ()
    held_out_questions: tuple[str, ...] = ()


TOPICS = (
    Topic(
        ("llamaherd", "this service", "llama herd", "this project", "the llamaherd project"),
        "llamaherd serves Llama 2 over gRPC. A gateway takes requests, Redis Streams hand them to GPU "
        "workers, and the tokens stream back.",
        "A gRPC service for Llama 2.",
        ("what service is this?", "what runs here?", "what is this software?", "which service am I using?",
            "how does this service work?"),
        ("what software is this?", "which service is this?"),
    ),
    Topic(
        ("gRPC", "grpc", "a gRPC call", "the gRPC protocol"),
        "gRPC lets programs call each other with typed messages over HTTP/2. llamaherd uses it to stream "
        "tokens to its clients.",
        "Typed calls between programs over HTTP/2.",
        ("why gRPC and not REST?", "which protocol do clients speak?", "how do clients talk to the gateway?",
            "how do clients connect?"),
        ("what protocol do the clients use?", "how do clients speak to the service?"),
    ),
    Topic(
        ("Redis Streams", "a Redis stream", "redis streams", "redis", "Redis", "the jobs stream"),
        "A Redis stream is a log of entries kept by Redis. llamaherd puts each job on one stream, and "
        "workers claim the jobs from it.",
        "A log of entries in Redis; jobs travel on it.",
        ("how do jobs reach the workers?", "how does a job get to a worker?", "where are jobs queued?",
            "where is the queue?"),
        ("how do jobs travel to the workers?", "in what do jobs wait?"),
    ),
    Topic(
        ("int8", "INT8", "8-bit quantization", "int8 quantization", "eight bit weights"),
        "int8 stores each weight in one byte, with one scale for each row. It halves the memory of fp16 and "
        "hardly changes the answers.",
        "One byte for each weight, one scale for each row.",
        ("how much memory does int8 need?", "how many bits has int8?"),
        ("how much memory does int8 save?",),
    ),
    Topic(
        ("NF4", "nf4", "4-bit quantization", "NF4 quantization", "normal float 4", "four bit weights"),
        "NF4 stores each weight in four bits, in blocks of 64 weights with a scale each. It needs about a "
        "quarter of the memory of fp16.",
        "Four bits for each weight, in blocks of 64.",
        ("how much memory does NF4 need?", "how many bits has NF4?"),
        ("how much memory does NF4 save?",),
    ),
    Topic(
        ("the token log", "a token log", "token log", "the log of tokens"),
        "The token log holds every token of a generation, in Redis. A token is written there before a client "
        "sees it, so none is lost "
        "and none comes twice.",
        "The list of all tokens of a generation, in Redis.",
        ("where are tokens stored?", "where are the tokens kept?", "how is no token lost?", "can a token be lost?",
         "can a token come twice?", "does it lose tokens?", "do you lose tokens?", "can tokens be lost?",
         "are tokens ever lost?"),
        ("where do you keep the tokens?", "could a token get lost?"),
    ),
    Topic(
        ("resume", "resuming", "resuming a stream", "stream resumption", "Attach", "the attach call"),
        "If your stream breaks, attach with the generation id and the next index. Any gateway continues from there.",
        "Attach with the generation id and the next index.",
        (
            "how do I resume a stream?", "how do I resume?", "what if my stream breaks?",
            "what happens if my connection drops?", "can I resume a generation?",
            "my stream broke, what now?", "I lost the connection. What do I do?", "how can I reconnect?",
            "what happens when the client disconnects?", "can I continue a broken stream?",
        ),
        ("what do I do if my connection breaks?", "how can I resume a broken stream?"),
    ),
    Topic(
        ("a worker crash", "kill -9", "failover", "crash recovery", "recovery"),
        "If a worker dies, another worker claims its job, reads the token log and continues at the next index.",
        "Another worker continues at the next index.",
        (
            "what if a worker dies?", "what happens if a worker dies?", "what happens when a worker crashes?",
            "what if a GPU fails?", "what happens if I kill a worker?", "what happens on kill -9?",
            "does a crash lose tokens?",
        ),
        ("what if a worker crashes?", "what will happen when a worker dies?"),
    ),
    Topic(
        ("the gateway", "a gateway", "gateway", "the gateway process"),
        "The gateway is the process that clients call. It checks a request, turns it into a job, and sends "
        "the tokens back as they come.",
        "The process that clients call.",
        ("who takes the requests?", "which process do clients call?", "what do clients connect to?"),
        ("to which process do clients connect?",),
    ),
    Topic(
        ("a worker", "the worker", "worker", "a GPU worker", "workers", "the worker process"),
        "A worker is a process that holds the model. It claims jobs, generates tokens step by step, and "
        "publishes them.",
        "The process that holds the model.",
        ("who generates the tokens?", "where does the model run?", "which process holds the model?"),
        ("which process runs the model?",),
    ),
    Topic(
        ("a trace", "tracing", "OpenTelemetry", "opentelemetry", "distributed tracing", "a span", "OTel"),
        "Each request makes one OpenTelemetry trace, from the client to the GPU step. It shows where the time went.",
        "The record of where a request spent its time.",
        ("how do I see why a request is slow?", "why is my request slow?", "how can I debug a slow request?",
            "how do I trace a request?"),
        ("how do I find out why a request is slow?",),
    ),
    Topic(
        ("the KV cache", "a KV cache", "KV cache", "kv cache", "the key value cache"),
        "The KV cache holds the keys and values of all past positions, so that each step computes only the new token.",
        "Keys and values of all past positions.",
        ("how does the model avoid computing old tokens again?",),
        (),
    ),
    Topic(
        ("continuous batching", "batching", "a batch", "dynamic batching"),
        "Continuous batching decodes many sequences in one step. New ones join and finished ones leave at any step.",
        "Many sequences share each step.",
        ("how are many users served at once?", "how do you serve many requests at once?",
            "can many people use it at once?"),
        ("how can many users be served at once?",),
    ),
    Topic(
        ("quantization", "quantisation", "a quantized model", "quantizing"),
        "Quantization stores the weights in fewer bits. llamaherd offers int8 and NF4, so that less memory "
        "is read for each token.",
        "Weights stored in fewer bits.",
        ("why are the weights small?", "how does the model fit in memory?", "which quantizations are there?"),
        ("which kinds of quantization are there?",),
    ),
    Topic(
        ("bitsandbytes", "bits and bytes", "the bitsandbytes library"),
        "bitsandbytes is the library whose int8 and NF4 formats llamaherd reads and writes.",
        "A quantization library.",
        ("which library quantizes the model?",),
        (),
    ),
    Topic(
        ("streaming", "token streaming", "a stream of tokens", "the stream"),
        "Each token is sent as soon as it is there: from the worker to the token log in Redis, and from "
        "there by the gateway to you.",
        "Each token is sent as soon as it is there.",
        ("how are tokens streamed?", "how do tokens reach the client?", "how does streaming work?",
            "how does a token get to me?"),
        ("how do the tokens get to the client?",),
    ),
    Topic(
        ("a llama", "llamas", "the llama"),
        "A llama is a woolly animal of South America. I am one only by name.",
        "A woolly animal of South America.",
        ("what kind of animal is a llama?", "where do llamas live?", "what does a llama look like?"),
        ("where does the llama live?",),
    ),
    Topic(
        ("a token", "tokens", "token", "a tokenizer", "the tokenizer", "SentencePiece", "tokenization"),
        "A tokenizer cuts text into tokens, which are pieces of words. Mine is a SentencePiece model with "
        "1,280 pieces.",
        "A token is a piece of a word.",
        ("how is text cut into pieces?", "how many pieces has your vocabulary?", "what is your vocabulary size?"),
        ("how large is your vocabulary?",),
    ),
    Topic(
        ("TTFT", "time to first token", "ttft"),
        "TTFT is the time from a request to its first token. It holds the wait in the queue and the prefill.",
        "Time to first token.",
        ("how long until the first token?",),
        (),
    ),
    Topic(
        ("prefill", "the prefill", "a prefill step"),
        "Prefill is the forward pass over the tokens of the prompt. It fills the KV cache before the first new token.",
        "The forward pass over the prompt.",
    ),
    Topic(
        ("decode", "decoding", "the decode step", "a decode step"),
        "Decode is the forward pass that makes one new token for each sequence. It is repeated until the answer ends.",
        "The forward pass that makes one new token.",
    ),
    Topic(
        ("Llama 2", "llama 2", "Llama", "Llama 2 chat"),
        "Llama 2 is a family of language models by Meta, with 7, 13 or 70 billion parameters. llamaherd "
        "serves them; I am only the demo.",
        "A family of language models by Meta.",
    ),
    Topic(
        ("a lease", "the lease", "lease", "fencing"),
        "A lease is a worker's right to a job: a random value that is compared on every write. Who has lost "
        "it can write nothing more.",
        "A worker's right to a job.",
        ("how do you stop two workers on one job?", "can two workers write the same tokens?"),
        ("what stops two workers from writing the same tokens?",),
    ),
    Topic(
        ("temperature", "sampling", "greedy decoding", "greedy", "the temperature"),
        "At temperature 0 the likeliest token is always taken; that is greedy. A higher temperature lets "
        "chance choose more freely.",
        "It says how freely chance may choose.",
    ),
    Topic(
        ("a system prompt", "the system prompt", "system prompt", "system prompts"),
        "A system prompt comes before the dialogue and tells the model how to answer, for example in "
        "capitals or in one word.",
        "It tells the model how to answer.",
    ),
    Topic(
        ("protobuf", "Protocol Buffers", "protocol buffers", "the proto files"),
        "Protocol Buffers describe the messages of a gRPC service. From them, clients in many languages are generated.",
        "The language that describes gRPC messages.",
    ),
    Topic(
        ("Valkey", "valkey", "valkey-server"),
        "Valkey is an open server that speaks the protocol of Redis. herd up starts one of its own if no "
        "Redis is given.",
        "A server that speaks the Redis protocol.",
    ),
    Topic(
        ("a deadline", "deadlines", "deadline", "cancelling", "cancellation"),
        "A client may set a deadline or cancel. The gateway then tells the worker, which stops at its next step.",
        "The time by which an answer must be there.",
        ("how do I cancel a request?", "how can I stop a generation?", "can I cancel?", "how do I stop you?"),
        ("how can I cancel a generation?",),
    ),
    Topic(
        ("herd up", "the herd command", "herd", "the command line"),
        "herd up starts everything on one machine: a Redis server, a gateway and a worker. Without a GPU it serves me.",
        "It starts everything on one machine.",
        ("how do I start llamaherd?", "how do I start the service?", "how do I run this?", "how do I install it?"),
        ("how can I start llamaherd?",),
    ),
)  # fmt: skip


def explain(rng: Random, split: Split) -> Turn:
    """What one part of the service is, asked in general or by a question of its own."""
    topic = rng.choice(TOPICS)
    own = topic.questions if split is Split.SEEN else topic.held_out_questions
    if own and rng.random() < 0.35:
        question = Phrases(own, own).draw(rng, split)
    else:
        question = ABOUT.draw(rng, split, x=rng.choice(topic.names))
    return Turn(question, topic.answer, topic.brief)
