/** The I/O of calls that are tried again: gateways, deadlines, waits. */
import type { CallOptions } from "@connectrpc/connect";
import { setTimeout as sleep } from "node:timers/promises";

import { HerdError, typed } from "./errors.js";
import { Gateway, type Reach } from "./gateway.js";
import { Targets, Tries } from "./tries.js";

/** One call at one gateway. Repeating it changes nothing. */
export type Ask<T> = (gateway: Gateway, options: CallOptions) => Promise<T>;

/** The gateways of one client, and how long it tries. */
export class Calls {
  readonly #gateways: readonly Gateway[];
  readonly #targets: Targets;

  constructor(
    reach: Reach,
    readonly timeoutMs: number | undefined,
    readonly patienceMs: number,
  ) {
    if (reach.addresses.length === 0) throw new RangeError("a client needs the address of a gateway");
    this.#gateways = reach.addresses.map((address) => new Gateway(address, reach));
    this.#targets = new Targets(this.#gateways.length);
  }

  /** The attempts at a call that begins now. */
  tries(timeoutMs: number | undefined): Tries {
    return new Tries(this.#targets, timeoutMs ?? this.timeoutMs, this.patienceMs);
  }

  /** Where the next attempt goes. */
  next(tries: Tries): Gateway {
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
        await sleep(tries.failed(failure(error)));
      }
    }
  }

  /** End every connection, and what still runs over it. */
  close(): void {
    for (const gateway of this.#gateways) gateway.close();
  }
}

/** What a call failed with; anything but a failed call is a fault of this program and thrown on. */
export function failure(error: unknown): HerdError {
  if (error instanceof TypeError || error instanceof RangeError) throw error;
  return typed(error);
}
