/**
 * Whether, when and where to try a call again. No I/O.
 *
 * A retry goes to another gateway first; the wait starts at 50 ms, doubles, and is shortened by chance, so that clients
 * of a gateway that died do not return in step. What the service asks for goes first.
 */
import { Code } from "@connectrpc/connect";

import { HerdError } from "./errors.js";

const FIRST_WAIT_MS = 50;
const LONGEST_WAIT_MS = 2_000;
const AVOID_MS = 5_000; // how long a gateway that failed is asked after the others
const STOOD_MS = 5_000; // an attempt that took so long had reached the service: its failure is the first of a series

/** The gateways of one client, shared by all its calls: these take turns, and go around those that just failed. */
export class Targets {
  readonly #failedMs: number[];
  #turn: number;

  constructor(numTargets: number) {
    this.#failedMs = Array.from({ length: numTargets }, () => -Infinity);
    this.#turn = Math.floor(Math.random() * numTargets);
  }

  /** The number of the gateway to ask next; another than `last`, which just failed, if there is one. */
  pick(last: number | undefined): number {
    const num = this.#failedMs.length;
    const turns = this.#failedMs.map((_, n) => (this.#turn + n) % num);
    this.#turn = (this.#turn + 1) % num;
    const badSinceMs = performance.now() - AVOID_MS;
    const rank = (target: number) => Math.max(this.#failedMs[target] ?? 0, badSinceMs);
    // A stable sort: of equals, the one whose turn it is.
    return turns.sort((a, b) => Number(a === last) - Number(b === last) || rank(a) - rank(b))[0] ?? 0;
  }

  /** It broke or it drains: others are asked first for a while. */
  failed(target: number): void {
    this.#failedMs[target] = performance.now();
  }
}

/** The attempts at one call, all under the same deadline. */
export class Tries {
  readonly #targets: Targets;
  readonly #patienceMs: number;
  readonly #deadlineMs: number;
  #attemptMs = performance.now(); // when the one at hand began
  #failingSinceMs: number | undefined;
  #waitMs = FIRST_WAIT_MS;
  #target: number | undefined;
  #hasFailed = false;
  #isOutOfTime = false;

  /**
   * @param timeoutMs from now to the deadline of the whole call, however many attempts it takes.
   * @param patienceMs how long to go on trying while one attempt after the other fails and nothing new comes.
   */
  constructor(targets: Targets, timeoutMs: number | undefined, patienceMs: number) {
    this.#targets = targets;
    this.#patienceMs = patienceMs;
    this.#deadlineMs = performance.now() + (timeoutMs ?? Infinity);
  }

  /** Given up, since another attempt would begin after the deadline. */
  get isOutOfTime(): boolean {
    return this.#isOutOfTime;
  }

  /** The number of the gateway to ask now. */
  nextTarget(): number {
    this.#target = this.#targets.pick(this.#hasFailed ? this.#target : undefined);
    this.#attemptMs = performance.now();
    return this.#target;
  }

  /** What is left for the attempt about to begin, in whole milliseconds; undefined without a deadline. */
  remainingMs(): number | undefined {
    if (this.#deadlineMs === Infinity) return undefined;
    const remainingMs = Math.ceil(this.#deadlineMs - performance.now());
    if (remainingMs > 0) return remainingMs;
    throw deadlineExceeded();
  }

  /** Something new came: the next failure is a first one. */
  progressed(): void {
    this.#failingSinceMs = undefined;
    this.#waitMs = FIRST_WAIT_MS;
  }

  /** Milliseconds to wait before the next attempt. Throws `error` if there is to be none. */
  failed(error: HerdError): number {
    if (error.isOfGateway && this.#target !== undefined) this.#targets.failed(this.#target);
    this.#hasFailed = true;
    if (!error.mayRetry) throw error;
    const nowMs = performance.now();
    // A gateway that notices the deadline first just ends the call.
    if (nowMs >= this.#deadlineMs && !error.facts.reason) throw deadlineExceeded(error);
    if (this.#failingSinceMs === undefined || nowMs - this.#attemptMs >= STOOD_MS) this.#failingSinceMs = nowMs;
    const waitMs = Math.max(this.#waitMs * (0.5 + Math.random() / 2), error.facts.retryAfterMs ?? 0);
    this.#waitMs = Math.min(2 * this.#waitMs, LONGEST_WAIT_MS);
    this.#isOutOfTime = nowMs + waitMs > this.#deadlineMs;
    if (this.#isOutOfTime || nowMs + waitMs > this.#failingSinceMs + this.#patienceMs) throw error;
    return waitMs;
  }
}

function deadlineExceeded(cause?: HerdError): HerdError {
  return new HerdError("DeadlineExceeded", "the deadline has passed", Code.DeadlineExceeded, undefined, cause);
}
