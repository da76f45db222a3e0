/** The client of a herd: its methods, wherever it runs. */
import { create } from "@bufbuild/protobuf";

import {
  type CancelGenerationResponse,
  type CompleteResponse,
  type GenerateRequest,
  GenerateRequestSchema,
  type GetGenerationResponse,
} from "../gen/llamaherd/v1/generation_pb.js";
import type { Accepted } from "../gen/llamaherd/v1/common_pb.js";
import type { Model } from "../gen/llamaherd/v1/model_pb.js";
import { type Ask, Calls } from "./calls.js";
import { Chat, type ChatOptions } from "./chat.js";
import { broken } from "./errors.js";
import { Gateway, type Link } from "./gateway.js";
import { type Place, Reading } from "./reading.js";
import { buildSpec, type Input, type Knobs, newRequestId } from "./spec.js";
import { Stream } from "./stream.js";

const FAREWELL_TIMEOUT_MS = 3_000;

/** How long a client tries. */
export interface Patience {
  /** The deadline of a call that gives none itself, over all its attempts; default: none. */
  readonly timeoutMs?: number;
  /** How long to go on trying while one attempt after the other fails and nothing new comes. */
  readonly patienceMs?: number;
}

/** What any call can be told. */
export interface CallKnobs {
  /**
   * Until DeadlineExceeded, over all attempts; default: the client's. It ends the generation that the call has started,
   * unless that was given a requestId or a resumeWindowMs: then the call may be made again.
   */
  readonly timeoutMs?: number;
}

/** What a call that starts a generation can be told. */
export type StartKnobs = Knobs &
  CallKnobs & {
    /** Makes the call idempotent over processes too; without it, one is made for this call. */
    readonly requestId?: string;
  };

/** Reaches a herd over its links. Every method throws HerdError. */
export abstract class HerdClient implements Disposable {
  readonly #calls: Calls;

  protected constructor(links: readonly Link[], { timeoutMs, patienceMs = 60_000 }: Patience) {
    const gateways = links.map((link) => new Gateway(link));
    this.#calls = new Calls(gateways, timeoutMs, patienceMs);
  }

  /** Start a generation and stream it. */
  generate(prompt: Input, knobs: StartKnobs = {}): Stream {
    const request = create(GenerateRequestSchema, started(prompt, knobs));
    const farewell = ({ generationId }: Reading) =>
      generationId ? this.#cancelKnown(generationId) : this.#cancelStarted(request);
    const manner = { farewell, timeoutMs: knobs.timeoutMs, mayComeBack: mayComeBack(knobs) };
    return new Stream(this.#calls, new Reading(request), manner);
  }

  /** Read a generation that any call has started, running or finished. Leaving it leaves the generation as it is. */
  attach(place: string | Place, { timeoutMs }: CallKnobs = {}): Stream {
    const reading = new Reading(undefined, typeof place === "string" ? { generationId: place } : place);
    return new Stream(this.#calls, reading, { farewell: async () => {}, timeoutMs, mayComeBack: true });
  }

  /** Generate, and return everything at once. */
  async complete(prompt: Input, knobs: StartKnobs = {}): Promise<CompleteResponse> {
    const request = started(prompt, knobs);
    const ask: Ask<CompleteResponse> = (gateway, options) => gateway.generation.complete(request, options);
    if (mayComeBack(knobs)) return this.#calls.answer(ask, knobs.timeoutMs);
    return this.#calls.answerOrEnd(ask, knobs.timeoutMs, () => this.#cancelStarted(request));
  }

  /** Start a generation and return its id at once; `attach` or `get` reads it. */
  async submit(prompt: Input, knobs: StartKnobs = {}): Promise<Accepted> {
    return this.#submit(started(prompt, knobs), knobs.timeoutMs);
  }

  /** The state of a generation and its tokens so far. */
  get(generationId: string, { timeoutMs }: CallKnobs = {}): Promise<GetGenerationResponse> {
    return this.#calls.answer(
      (gateway, options) => gateway.generation.getGeneration({ generationId }, options),
      timeoutMs,
    );
  }

  /** End a generation; the answer says how it really ends. */
  cancel(generationId: string, { timeoutMs }: CallKnobs = {}): Promise<CancelGenerationResponse> {
    return this.#calls.answer(
      (gateway, options) => gateway.generation.cancelGeneration({ generationId }, options),
      timeoutMs,
    );
  }

  /** The models that live workers serve, by name; the first 1,000. */
  async models({ timeoutMs }: CallKnobs = {}): Promise<readonly Model[]> {
    const request = { pageSize: 1_000 };
    const { models } = await this.#calls.answer(
      (gateway, options) => gateway.model.listModels(request, options),
      timeoutMs,
    );
    return models;
  }

  /** A conversation kept by the service; with `handle`, one that has begun elsewhere. */
  chat(options: ChatOptions = {}): Promise<Chat> {
    return Chat.open(this.#calls, options);
  }

  /**
   * Leave every stream, whoever reads it, and end every connection; a program with open connections does not end. What was
   * started and still runs ends at the service too: resolves at once, or within a few seconds, when that knows. Whoever
   * waits is told Cancelled.
   */
  close(): Promise<void> {
    return this.#calls.close();
  }

  [Symbol.dispose](): void {
    void this.close();
  }

  async #submit(request: Started, timeoutMs: number | undefined): Promise<Accepted> {
    const { accepted } = await this.#calls.answer(
      (gateway, options) => gateway.generation.submitGeneration(request, options),
      timeoutMs,
    );
    if (!accepted) throw broken("the answer has no `accepted`");
    return accepted;
  }

  #cancelKnown(generationId: string): Promise<unknown> {
    return this.cancel(generationId, { timeoutMs: FAREWELL_TIMEOUT_MS });
  }

  /** Its `accepted` was not awaited: it is found by its request_id. */
  async #cancelStarted(request: Started): Promise<void> {
    const { generationId } = await this.#submit(request, FAREWELL_TIMEOUT_MS);
    await this.#cancelKnown(generationId);
  }
}

type Started = Pick<GenerateRequest, "spec" | "requestId">;

function started(prompt: Input, { requestId = newRequestId(), timeoutMs: _, ...knobs }: StartKnobs): Started {
  return { spec: buildSpec(prompt, knobs), requestId };
}

/** Whether the caller has a way to find what it has started. */
function mayComeBack({ requestId, resumeWindowMs }: StartKnobs): boolean {
  return requestId !== undefined || resumeWindowMs !== undefined;
}
