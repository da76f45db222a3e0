/**
 * A conversation that lives in the service, and each of its turns as something to read.
 *
 * Each turn is one SendTurn call. A turn that broke is asked for again under its request_id, at any gateway, and
 * nothing is held open between turns. So nothing needs the bidirectional Chat, which no browser could speak.
 */
import { create } from "@bufbuild/protobuf";
import type { CallOptions } from "@connectrpc/connect";

import {
  ChatSetupSchema,
  type SendTurnRequest,
  SendTurnRequestSchema,
  type SendTurnResponse,
  type SessionReady,
} from "../gen/llamaherd/v1/chat_pb.js";
import { CompletedSchema, type Settings } from "../gen/llamaherd/v1/common_pb.js";
import type { Calls } from "./calls.js";
import { broken, HerdError } from "./errors.js";
import type { Gateway } from "./gateway.js";
import { type Part, Reading } from "./reading.js";
import { type ChatKnobs, newRequestId, partsOf } from "./spec.js";
import { Stream } from "./stream.js";

const FAREWELL_TIMEOUT_MS = 3_000;

/** How a conversation begins. */
export type ChatOptions = ChatKnobs & {
  /** Instructions for the whole conversation. */
  readonly systemPrompt?: string;
  /** Of a conversation to go on with; everything else is then as it was. */
  readonly handle?: string;
  /** Seconds without a turn after which the conversation expires; default: 3,600. */
  readonly ttlS?: number;
};

/** What one turn can be told. */
export interface SayOptions {
  /** Makes the turn idempotent over processes too; without it, one is made for this turn. */
  readonly requestId?: string;
  readonly timeoutMs?: number;
}

/** An open conversation; `await using` interrupts what still runs at the block's end, and keeps the conversation. */
export class Chat implements AsyncDisposable {
  readonly #calls: Calls;
  readonly #ready: SessionReady;
  #turn: { readonly reading: TurnReading; readonly stream: Stream } | undefined;

  private constructor(calls: Calls, ready: SessionReady) {
    this.#calls = calls;
    this.#ready = ready;
  }

  /** Begin a conversation, or go on with that of the handle. Throws HerdError. */
  static async open(calls: Calls, { systemPrompt = "", handle = "", ttlS, ...knobs }: ChatOptions): Promise<Chat> {
    const setup = create(ChatSetupSchema, {
      model: knobs.model ?? "",
      systemPrompt,
      ...partsOf(knobs),
      resumptionHandle: handle,
      ttlS,
    });
    const { ready } = await calls.answer((gateway, options) => gateway.chat.openSession({ setup }, options), undefined);
    if (!ready) throw broken("the answer has no `ready`");
    return new Chat(calls, ready);
  }

  /** Goes on with the conversation at any gateway and from any program, until it expires. Keep it like a key. */
  get handle(): string {
    return this.#ready.resumptionHandle;
  }

  /** Turns in the history when it was opened here. */
  get numTurns(): number {
    return this.#ready.numTurns;
  }

  /** A turn that somebody had begun and not read to its end when it was opened here: `attach` reads it. */
  get runningGenerationId(): string {
    return this.#ready.generationId;
  }

  /** What its turns use. */
  get settings(): Settings | undefined {
    return this.#ready.settings;
  }

  /** The next turn: iterate over the result for the answer's deltas. Leaving it early interrupts the turn. */
  say(content: string, { requestId, timeoutMs }: SayOptions = {}): Stream {
    const mayComeBack = requestId !== undefined;
    const userMessage = { content, requestId: requestId ?? newRequestId() };
    const request = create(SendTurnRequestSchema, { sessionHandle: this.handle, userMessage });
    const reading = new TurnReading(request, this.#turn?.reading);
    // What the user has seen is what was read.
    const farewell = () => this.interrupt(reading.position, FAREWELL_TIMEOUT_MS);
    const stream = new Stream(this.#calls, reading, { farewell, timeoutMs, mayComeBack });
    this.#turn = { reading, stream };
    return stream;
  }

  /**
   * End the running turn; what was said stays in the history. Resolves with whether a turn was running.
   * @param numTokensShown how much of it the user has seen; default: all that was sent.
   */
  async interrupt(numTokensShown?: number, timeoutMs?: number): Promise<boolean> {
    const request = { sessionHandle: this.handle, numTokensShown };
    const answer = await this.#calls.answer((gateway, options) => gateway.chat.interrupt(request, options), timeoutMs);
    return answer.wasRunning;
  }

  /** Interrupt the running turn, if there is one. The conversation is kept. */
  async close(): Promise<void> {
    await this.#turn?.stream.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** End the conversation for good; the service deletes what was said. */
  async end(): Promise<void> {
    await this.close();
    const request = { sessionHandle: this.handle };
    await this.#calls.answer((gateway, options) => gateway.chat.endSession(request, options), undefined);
  }
}

/** One turn, as a generation with one choice. */
class TurnReading extends Reading {
  readonly #sent: SendTurnRequest;
  readonly #after: TurnReading | undefined;
  #isTold = false;

  /** @param after the turn before; if its reader has left it, it may be running for a moment yet. */
  constructor(sent: SendTurnRequest, after: TurnReading | undefined) {
    super(undefined);
    this.#sent = sent;
    this.#after = after?.completed ? undefined : after;
  }

  override get isKnown(): boolean {
    return this.#isTold;
  }

  /** The same every time: the service finds the turn by the message's request_id, and tells it from its start. */
  override async *call(gateway: Gateway, options: CallOptions): AsyncIterable<Part> {
    this.wasCalled = true;
    for await (const response of gateway.chat.sendTurn(this.#sent, options)) {
      this.#isTold = true;
      if (response.event.case === "turnFinished") this.turn = response.event.value;
      yield* partsOfTurn(response);
    }
  }

  override failed(error: HerdError): HerdError {
    if (error.kind !== "TurnRunning" || !this.#after) return error;
    return new HerdError("Unavailable", "the turn that was interrupted ends", error.code);
  }

  override leave(): boolean {
    const wasReading = this.goesOn;
    this.isLeft = true;
    return wasReading && this.wasCalled;
  }
}

/** The same as a generation's parts. */
function* partsOfTurn({ tokens, event }: SendTurnResponse): Generator<Part> {
  if (tokens.length > 0) yield { tokens, event: { case: undefined } };
  if (event.case === "queued" || event.case === "started") yield { tokens: [], event };
  if (event.case !== "turnFinished") return;
  const { finished, usage, timings } = event.value;
  if (finished) yield { tokens: [], event: { case: "choiceFinished", value: finished } };
  yield { tokens: [], event: { case: "completed", value: create(CompletedSchema, { usage, timings }) } };
}
