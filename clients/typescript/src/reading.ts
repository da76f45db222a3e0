/**
 * One generation as one unbroken stream, whatever happens to the calls that bring it. No I/O.
 *
 * Until `accepted` has come, the call to make is Generate with the same request_id, which attaches to the generation if
 * the first call did reach the service; afterwards it is Attach, from the next position and with the chain.
 */
import { create } from "@bufbuild/protobuf";
import type { CallOptions } from "@connectrpc/connect";

import type { TurnFinished } from "../gen/llamaherd/v1/chat_pb.js";
import type { Accepted, ChoiceFinished, Completed, Token } from "../gen/llamaherd/v1/common_pb.js";
import { AttachRequestSchema, type GenerateRequest, type GenerateResponse } from "../gen/llamaherd/v1/generation_pb.js";
import { CHAIN_START, extendChain } from "./chain.js";
import { broken, dataLoss, type HerdError } from "./errors.js";
import type { Gateway } from "./gateway.js";

/** What every stream's responses have. */
export type Part = Pick<GenerateResponse, "tokens" | "event">;

type Event = Part["event"];

/** Where a reading of a generation that another call has started begins. */
export interface Place {
  readonly generationId: string;
  readonly fromPosition?: number;
  /** Of the token before; the service then proves that nothing forked. */
  readonly chain?: number;
}

/**
 * What was read of a generation so far, and what to ask for next.
 *
 * Invariant: every token before `position`, from where the reading began, was given out once and in order, and
 * `#chains[i]` is the chain after position `#start + i`.
 */
export class Reading {
  generationId = "";
  accepted: Accepted | undefined;
  completed: Completed | undefined;
  turn: TurnFinished | undefined; // of a conversation
  attempt = 0;
  readonly finished = new Map<number, ChoiceFinished>();
  protected isLeft = false;
  protected wasCalled = false; // a call that starts the generation may have reached the service
  readonly #start: number;
  readonly #firstChain: number | undefined;
  readonly #chains: number[] = [];
  #queuePosition: number | undefined;

  /** @param request starts the generation, under a request_id; undefined reads one that another call has started. */
  constructor(
    readonly request: GenerateRequest | undefined,
    place?: Place,
  ) {
    this.generationId = place?.generationId ?? "";
    this.#start = place?.fromPosition ?? 0;
    this.#firstChain = this.#start === 0 ? CHAIN_START : place?.chain;
  }

  /** The position of the next token. */
  get position(): number {
    return this.#start + this.#chains.length;
  }

  /** The chain over all tokens before `position`; undefined if it was not told and no token has come yet. */
  get chain(): number | undefined {
    return this.#chains.at(-1) ?? this.#firstChain;
  }

  /** Whether the service has told of it, so that it can be ended for certain. */
  get isKnown(): boolean {
    return this.generationId !== "";
  }

  /** Whether there is more to read, and someone who reads it. */
  get goesOn(): boolean {
    return this.completed === undefined && !this.isLeft;
  }

  /** Make the call that goes on from here. */
  call(gateway: Gateway, options: CallOptions): AsyncIterable<Part> {
    if (this.request && !this.generationId) {
      this.wasCalled = true;
      return gateway.generation.generate(this.request, options);
    }
    const request = create(AttachRequestSchema, {
      generationId: this.generationId,
      fromPosition: this.position,
      chain: this.position > 0 ? this.chain : undefined,
    });
    return gateway.generation.attach(request, options);
  }

  /** What a part adds to what was given out; undefined if nothing. Throws DataLoss if it does not continue it. */
  take(part: Part): Part | undefined {
    const tokens = part.tokens.filter((token) => this.#isNew(token));
    const isNewEvent = this.#isNewEvent(part.event);
    if (tokens.length === 0 && !isNewEvent) return undefined;
    return { tokens, event: isNewEvent ? part.event : { case: undefined } };
  }

  /** The call ended with OK. Throws ConnectionBroken if that was too early. */
  ended(): void {
    if (!this.completed) throw broken("the stream ended before `completed`");
  }

  /**
   * The error to act on, for one that the call at hand ended with.
   * A generation that is gone before any of it came is started again: its record was lost with a tail of the log.
   */
  failed(error: HerdError): HerdError {
    if (error.facts.reason) this.wasCalled = false;
    if (error.kind !== "UnknownGeneration" || !this.request || this.position > 0) return error;
    this.generationId = "";
    this.accepted = undefined;
    this.attempt = 0;
    return broken("the generation was lost before its first token");
  }

  /** Read no more. Whether what this reading started may still be running. */
  leave(): boolean {
    const wasReading = this.goesOn;
    this.isLeft = true;
    return wasReading && this.request !== undefined && (this.generationId !== "" || this.wasCalled);
  }

  #isNew(token: Token): boolean {
    const offset = token.position - this.#start;
    if (offset > this.#chains.length) {
      throw dataLoss(`token ${token.position} came where ${this.position} was due`);
    }
    if (offset < this.#chains.length) {
      if (offset < 0 || this.#chains[offset] === token.chain) return false;
      throw dataLoss(`token ${token.position} is not the one that was delivered`);
    }
    const chain = this.chain;
    if (chain !== undefined && extendChain(chain, token.choice, token.id) !== token.chain) {
      throw dataLoss(`token ${token.position} does not continue what was delivered`);
    }
    this.#chains.push(token.chain);
    return true;
  }

  #isNewEvent(event: Event): boolean {
    switch (event.case) {
      case "accepted":
        return this.#isNewAcceptance(event.value);
      case "queued": {
        const isNew = this.attempt === 0 && event.value.position !== this.#queuePosition;
        this.#queuePosition = event.value.position;
        return isNew;
      }
      case "started": {
        const isNew = event.value.attempt > this.attempt;
        this.attempt = Math.max(this.attempt, event.value.attempt);
        return isNew;
      }
      case "choiceFinished": {
        const isNew = !this.finished.has(event.value.choice);
        if (isNew) this.finished.set(event.value.choice, event.value);
        return isNew;
      }
      case "completed":
        return this.#isNewCompletion(event.value);
      default:
        return false; // an event of a newer service
    }
  }

  #isNewAcceptance(accepted: Accepted): boolean {
    if (this.generationId && accepted.generationId !== this.generationId) {
      throw dataLoss(`generation ${this.generationId} came back as ${accepted.generationId}`);
    }
    const isNew = this.accepted === undefined;
    this.generationId = accepted.generationId;
    this.accepted = accepted;
    return isNew;
  }

  #isNewCompletion(completed: Completed): boolean {
    const due = completed.usage?.outputTokens ?? 0;
    if (this.position < due) throw dataLoss(`the stream is complete with ${this.position} of ${due} tokens`);
    const isNew = this.completed === undefined;
    this.completed = completed;
    return isNew;
  }
}
