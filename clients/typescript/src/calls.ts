/** The I/O of calls that are tried again: gateways, deadlines, waits. */
import { type CallOptions, Code } from "@connectrpc/connect";

import { HerdError, typed } from "./errors.js";
import type { Gateway } from "./gateway.js";
import { sleep } from "./sleep.js";
import { Targets, Tries } from "./tries.js";

/** One call at one gateway. Repeating it changes nothing. */
export type Ask<T> = (gateway: Gateway, options: CallOptions) => Promise<T>;

/** The gateways of one client, and how long it tries. */
export class Calls {
  readonly #gateways: readonly Gateway[];
  readonly #targets: Targets;
  readonly #farewells = new Set<Promise<void>>();
  #isClosed = false;

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
    if (this.#isClosed) throw new HerdError("Cancelled", "the client is closed", Code.Canceled);
    return this.#gateways[tries.nextTarget()] as Gateway; // the targets are as many
  }

  /** Make a call, again where that is right. Throws HerdError. */
  async answer<T>(ask: Ask<T>, timeoutMs: number | undefined): Promise<T> {
    const tries = this.tries(timeoutMs);
    for (;;) {
      const gateway = this.next(tries);
      try {
        return await ask(gateway, { timeoutMs: tries.remainingMs() });
      } catch (error) {
        await this.pause(tries, failure(error));
      }
    }
  }

  /** Wait until the next attempt is due. Throws `error` if there is to be none; a closed client has nothing to wait for. */
  async pause(tries: Tries, error: HerdError): Promise<void> {
    if (!this.#isClosed) await sleep(tries.failed(error));
  }

  /** Say it while the caller goes on; `close` waits for it. Resolves once it is said, or nobody answers. */
  say(farewell: Promise<unknown>): Promise<void> {
    const said = farewell.then(() => {}, unlessOurs).finally(() => this.#farewells.delete(said));
    this.#farewells.add(said);
    return said;
  }

  /** End every connection, and what still runs over it; at once, or as soon as the farewells under way are said. */
  async close(): Promise<void> {
    if (this.#farewells.size > 0) await Promise.allSettled(this.#farewells);
    this.#isClosed = true;
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
