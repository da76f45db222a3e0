/** The I/O of calls that are tried again: gateways, deadlines, waits. */
import type { CallOptions } from "@connectrpc/connect";

import { closed, HerdError, typed } from "./errors.js";
import type { Gateway } from "./gateway.js";
import { sleep } from "./sleep.js";
import { Targets, Tries } from "./tries.js";

/** One call at one gateway. Repeating it changes nothing. */
export type Ask<T> = (gateway: Gateway, options: CallOptions) => Promise<T>;

/** What is left, and ends what it has started, when its client ends. */
export interface Leaver {
  cut(): void;
}

/** The gateways of one client, and how long it tries. */
export class Calls {
  readonly #gateways: readonly Gateway[];
  readonly #targets: Targets;
  readonly #running = new Set<Leaver>();
  readonly #farewells = new Set<Promise<void>>();
  readonly #closed = new AbortController();
  #isEnding = false;

  constructor(
    gateways: readonly Gateway[],
    readonly timeoutMs: number | undefined,
    readonly patienceMs: number,
  ) {
    if (gateways.length === 0) throw new RangeError("a client needs the address of a gateway");
    this.#gateways = gateways;
    this.#targets = new Targets(gateways.length);
  }

  /** The attempts at a call that begins now. */
  tries(timeoutMs: number | undefined): Tries {
    return new Tries(this.#targets, timeoutMs ?? this.timeoutMs, this.patienceMs);
  }

  /** Where the next attempt goes. Throws HerdError once the client is closed. */
  next(tries: Tries): Gateway {
    if (this.#closed.signal.aborted) throw closed();
    return this.#gateways[tries.nextTarget()] as Gateway; // the targets are as many
  }

  /** From now on `close` leaves it. Throws HerdError once the client ends. */
  begin(running: Leaver): void {
    if (this.#isEnding) throw closed();
    this.#running.add(running);
  }

  /** Nobody waits for it any more. */
  ended(running: Leaver): void {
    this.#running.delete(running);
  }

  /** Make a call, again where that is right. Throws HerdError, also once the signal says that nobody waits any more. */
  async answer<T>(ask: Ask<T>, timeoutMs: number | undefined, signal = this.#closed.signal): Promise<T> {
    const tries = this.tries(timeoutMs);
    for (;;) {
      if (signal.aborted) throw closed();
      const gateway = this.next(tries);
      try {
        return await ask(gateway, { timeoutMs: tries.remainingMs(), signal });
      } catch (error) {
        await this.pause(tries, failure(error), signal);
      }
    }
  }

  /** As `answer`, of a call that starts something: the farewell ends that when nobody waits for it any more. */
  async answerOrEnd<T>(
    ask: Ask<T>,
    timeoutMs: number | undefined,
    farewell: () => Promise<unknown>,
  ): Promise<T> {
    const left = new AbortController();
    const running = {
      cut: () => {
        void this.say(farewell());
        left.abort();
      },
    };
    this.begin(running);
    try {
      return await this.answer(ask, timeoutMs, left.signal);
    } catch (error) {
      if (endsWhatItStarted(error, false)) void this.say(farewell());
      throw error;
    } finally {
      this.ended(running);
    }
  }

  /** Wait until the next attempt is due, or nobody waits any more. Throws `error` if there is to be none. */
  async pause(tries: Tries, error: HerdError, signal: AbortSignal): Promise<void> {
    if (!signal.aborted) await sleep(tries.failed(error), signal);
  }

  /** Say it while the caller goes on; `close` waits for it. Resolves once it is said, or nobody answers. */
  say(farewell: Promise<unknown>): Promise<void> {
    const said = farewell.then(() => {}, unlessOurs).finally(() => this.#farewells.delete(said));
    this.#farewells.add(said);
    return said;
  }

  /** Leave what runs, and end every connection; at once, or as soon as the farewells under way are said. */
  async close(): Promise<void> {
    this.#isEnding = true;
    for (const running of this.#running) running.cut();
    this.#running.clear();
    if (this.#farewells.size > 0) await Promise.allSettled(this.#farewells);
    this.#closed.abort();
    for (const gateway of this.#gateways) gateway.close();
  }
}

/** What could not be ended ends by its resume window. */
function unlessOurs(error: unknown): void {
  if (!(error instanceof HerdError)) throw error;
}

/**
 * Whether a call that failed so ends what it started: its time is over. After any other failure that is left as it is.
 * @param mayComeBack its caller has a way to, so the deadline alone ends nothing.
 */
export function endsWhatItStarted(error: unknown, mayComeBack: boolean): boolean {
  return error instanceof HerdError && error.kind === "DeadlineExceeded" && !mayComeBack;
}

/** What a call failed with; anything but a failed call is a fault of this program and thrown on. */
export function failure(error: unknown): HerdError {
  if (error instanceof TypeError || error instanceof RangeError) throw error;
  return typed(error);
}
