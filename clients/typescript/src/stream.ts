/** A generation to iterate over: its deltas while it runs, and its facts at any time. */
import type { CallOptions } from "@connectrpc/connect";

import type { TurnFinished } from "../gen/llamaherd/v1/chat_pb.js";
import type { Accepted, ChoiceFinished, Completed, Token } from "../gen/llamaherd/v1/common_pb.js";
import { type Calls, endsWhatItStarted, failure } from "./calls.js";
import { closed, HerdError } from "./errors.js";
import type { Part, Reading } from "./reading.js";
import type { Tries } from "./tries.js";

/** What came of one choice. */
export interface Delta {
  /** Which, from 0. */
  readonly choice: number;
  /** Goes at the end of the choice's text. */
  readonly text: string;
  /** What the text came with; empty if the choice's end released text that was held back. */
  readonly tokens: readonly Token[];
  /** Why the choice ended, with its last delta. */
  readonly finished?: ChoiceFinished;
}

/** How a stream behaves. */
export interface Manner {
  /** Ends what a reader leaves behind. */
  readonly farewell: (reading: Reading) => Promise<unknown>;
  readonly timeoutMs: number | undefined;
  /** Its caller has a way to, so the deadline alone ends nothing. */
  readonly mayComeBack: boolean;
}

/**
 * One generation, or one turn of a conversation. Nothing is sent before the iteration begins; it is iterated once.
 * It survives the loss of connections and gateways: no token is lost, none comes twice. Leaving it early, by `break` or
 * an exception, ends what it started; the loop is left once the service knows. So does its client's end, and its deadline,
 * passed or too near for another attempt, in the background, unless the call was given a requestId or a resumeWindowMs.
 * After another error it is left as it is, for others to attach.
 */
export class Stream implements AsyncIterable<Delta> {
  readonly #calls: Calls;
  readonly #reading: Reading;
  readonly #manner: Manner;
  #leaving: Promise<void> | undefined;
  #attempt: AbortController | undefined;
  #isCut = false; // by its client's end

  constructor(calls: Calls, reading: Reading, manner: Manner) {
    this.#calls = calls;
    this.#reading = reading;
    this.#manner = manner;
  }

  /** For `attach`, `get` and `cancel`; empty before `accepted`, and for a turn. */
  get generationId(): string {
    return this.#reading.generationId;
  }

  /** Prompt tokens, and the settings used with every default and the seed filled in. */
  get accepted(): Accepted | undefined {
    return this.#reading.accepted;
  }

  /** The position of the next token, over all choices: where another reader would go on. */
  get position(): number {
    return this.#reading.position;
  }

  /** Proves all tokens before `position`; goes into `attach` with it. */
  get chain(): number | undefined {
    return this.#reading.chain;
  }

  /** How each choice ended, of those that have. */
  get finished(): ReadonlyMap<number, ChoiceFinished> {
    return this.#reading.finished;
  }

  /** Counts, times and attempts, once everything has come. */
  get completed(): Completed | undefined {
    return this.#reading.completed;
  }

  /** Of a conversation's turn that is complete: its number, and how many of the oldest turns were left out. */
  get turn(): TurnFinished | undefined {
    return this.#reading.turn;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Delta, void, undefined> {
    let hasFailed = false;
    const tries = this.#calls.tries(this.#manner.timeoutMs);
    try {
      this.#calls.begin(this);
      while (this.#reading.goesOn) yield* this.#goOn(tries);
      if (this.#isCut && !this.completed) throw closed();
    } catch (error) {
      hasFailed = error instanceof HerdError;
      if (this.#endsWith(error, tries)) this.#leave();
      else if (hasFailed) this.#reading.leave();
      throw error;
    } finally {
      this.#calls.ended(this);
      if (!hasFailed) await this.close();
    }
  }

  /** Leave; resolves once the service knows, within a few seconds at most. */
  async close(): Promise<void> {
    this.#leave();
    this.#attempt?.abort();
    await this.#leaving;
  }

  /** Leave, because the client ends: whoever reads is told so. */
  cut(): void {
    this.#isCut = true;
    this.#leave();
    this.#attempt?.abort();
  }

  /** Whether a stream that fails so ends what it started: also if it gave up since its deadline is too near. */
  #endsWith(error: unknown, tries: Tries): boolean {
    const { mayComeBack } = this.#manner;
    const isLate = error instanceof HerdError && tries.isOutOfTime && this.#reading.isKnown;
    return (isLate && !mayComeBack) || endsWhatItStarted(error, mayComeBack);
  }

  #leave(): void {
    if (this.#reading.leave()) this.#leaving = this.#calls.say(this.#manner.farewell(this.#reading));
  }

  /** Go on by one call, as far as it comes; then wait, if there is to be another. Throws HerdError if not. */
  async *#goOn(tries: Tries): AsyncGenerator<Delta, void, undefined> {
    const gateway = this.#calls.next(tries);
    const attempt = (this.#attempt = new AbortController());
    try {
      const options: CallOptions = { signal: attempt.signal, timeoutMs: tries.remainingMs() };
      for await (const part of this.#reading.call(gateway, options)) {
        const fresh = this.#reading.take(part);
        if (!fresh) continue;
        tries.progressed();
        yield* deltasOf(fresh);
      }
      this.#reading.ended();
    } catch (error) {
      const isRead = this.#reading.goesOn;
      if (isRead) await this.#calls.pause(tries, this.#reading.failed(failure(error)), attempt.signal);
    } finally {
      attempt.abort();
    }
  }
}

/** The deltas of one part; accepted, queued, started and completed have none. */
function* deltasOf({ tokens, event }: Part): Generator<Delta> {
  for (let from = 0, to = 0; from < tokens.length; from = to) {
    const choice = tokens[from]?.choice ?? 0;
    while (tokens[to]?.choice === choice) to++;
    const group = tokens.slice(from, to);
    yield { choice, text: group.map((token) => token.text).join(""), tokens: group };
  }
  if (event.case === "choiceFinished") {
    yield { choice: event.value.choice, text: event.value.text, tokens: [], finished: event.value };
  }
}
