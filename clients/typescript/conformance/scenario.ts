/** Runs one scenario of `tests/conformance/scenarios.yaml`. What is to be observed, that file says and the test checks. */
import type { ChoiceFinished, Token } from "../gen/llamaherd/v1/common_pb.js";
import {
  type Chat,
  type ChatOptions,
  FinishReason,
  type HerdClient,
  HerdError,
  type Patience,
  type StartKnobs,
  type Stream,
} from "../src/api.js";

interface Step {
  readonly do: "generate" | "complete" | "attach" | "open" | "say" | "resume" | "end";
  readonly at?: readonly string[];
  readonly patience_s?: number;
  readonly timeout_s?: number;
  readonly prompt?: string;
  readonly system_prompt?: string;
  readonly knobs?: Readonly<Record<string, unknown>>;
  readonly cancel_after?: number; // tokens, then `cancel` by another call
  readonly leave_after?: number; // tokens, then `break`
  readonly close_after?: number; // tokens, then the client ends; `complete` has none before its end
  readonly tell_after?: number; // tokens, then the generation's id is a line of standard output
  readonly from_position?: number; // of the generation that was observed last, with its chain
}

/** What there is to do, where each gateway is reached, and with which key. */
export interface Scenario {
  readonly gateways: Readonly<Record<string, string>>;
  readonly steps: readonly Step[];
  readonly api_key?: string;
  readonly ping_ms?: number; // how soon Node's client pings, and how long it waits
}

/** What was seen of one step. */
export interface Observation {
  texts: string[];
  ids: number[][];
  positions: number[];
  num_silent: number;
  reasons: string[];
  stop_strings: string[];
  prompt_tokens?: number;
  turn?: number;
  num_turns?: number;
  error?: { kind: string; reason: string; violations: string[]; has_retry_after: boolean };
}

/** How a client is told to behave, wherever it runs. */
export interface Behaviour extends Patience {
  readonly apiKey?: string;
  readonly pingIntervalMs?: number;
  readonly pingTimeoutMs?: number;
}

/** A client of these gateways. */
export type Dial = (gateways: readonly string[], behaviour: Behaviour) => HerdClient;

/** One observation for each step. */
export async function runScenario(scenario: Scenario, dial: Dial): Promise<Observation[]> {
  await using runner = new Runner(scenario, dial);
  const observations: Observation[] = [];
  for (const step of scenario.steps) observations.push(await runner.run(step));
  return observations;
}

/** One scenario's clients, its conversation, and what an `attach` goes on with. */
class Runner implements AsyncDisposable {
  readonly #clients: HerdClient[] = [];
  #chat: Chat | undefined;
  #generationId = "";
  #chains: number[] = [];

  constructor(
    readonly scenario: Scenario,
    readonly dial: Dial,
  ) {}

  async run(step: Step): Promise<Observation> {
    const seen: Observation = { texts: [], ids: [], positions: [], num_silent: 0, reasons: [], stop_strings: [] };
    const { gateways, api_key: apiKey, ping_ms: pingMs } = this.scenario;
    const addresses = (step.at ?? ["one", "two"]).map((name) => gateways[name] ?? name);
    const pings = { pingIntervalMs: pingMs, pingTimeoutMs: pingMs };
    const client = this.dial(addresses, { patienceMs: 1e3 * (step.patience_s ?? 60), apiKey, ...pings });
    this.#clients.push(client);
    try {
      await this.#act(client, step, seen);
    } catch (error) {
      if (!(error instanceof HerdError)) throw error;
      const { reason, violations, retryAfterMs } = error.facts;
      const fields = violations.map(({ field }) => field);
      seen.error = { kind: error.kind, reason, violations: fields, has_retry_after: retryAfterMs !== undefined };
    }
    return seen;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const client of this.#clients) await client.close();
  }

  async #act(client: HerdClient, step: Step, seen: Observation): Promise<void> {
    const { prompt = "" } = step;
    const knobs: StartKnobs = { ...camel(step.knobs ?? {}), timeoutMs: 1e3 * (step.timeout_s ?? 100) };
    switch (step.do) {
      case "generate":
        return this.#read(client.generate(prompt, knobs), step, seen, (id) => client.cancel(id));
      case "attach": {
        const fromPosition = step.from_position ?? 0;
        const place = { generationId: this.#generationId, fromPosition, chain: this.#chains[fromPosition - 1] };
        return this.#read(client.attach(place), step, seen, (id) => client.cancel(id));
      }
      case "complete": {
        const isClosed = step.close_after !== undefined;
        const [answer] = await Promise.all([client.complete(prompt, knobs), isClosed && client.close()]);
        for (const [choice, { text, tokens, finished }] of answer.choices.entries()) {
          add(seen, choice, text, tokens);
          end(seen, choice, finished);
        }
        seen.prompt_tokens = answer.usage?.promptTokens;
        return;
      }
      case "open":
        this.#chat = await client.chat({ ...camel(step.knobs ?? {}), systemPrompt: step.system_prompt } as ChatOptions);
        return;
      case "resume":
        this.#chat = await client.chat({ handle: this.#opened.handle });
        seen.num_turns = this.#chat.numTurns;
        return;
      case "end":
        return this.#opened.end();
      case "say":
        return this.#read(this.#opened.say(prompt), step, seen, () => this.#opened.interrupt());
    }
  }

  async #read(stream: Stream, step: Step, seen: Observation, stop: (id: string) => Promise<unknown>): Promise<void> {
    let isStopped = false;
    let isTold = false;
    this.#chains = [];
    for await (const { choice, text, tokens, finished } of stream) {
      add(seen, choice, text, tokens);
      end(seen, choice, finished);
      this.#chains.push(...tokens.map(({ chain }) => chain));
      this.#generationId = stream.generationId;
      if (seen.positions.length >= (step.tell_after ?? Infinity) && !isTold) {
        isTold = true;
        console.log(JSON.stringify(stream.generationId));
      }
      if (seen.positions.length >= (step.leave_after ?? Infinity)) break;
      if (seen.positions.length >= (step.close_after ?? Infinity)) await this.#clients.at(-1)?.close();
      if (seen.positions.length >= (step.cancel_after ?? Infinity) && !isStopped) {
        isStopped = true;
        await stop(stream.generationId);
      }
    }
    seen.prompt_tokens = stream.completed?.usage?.promptTokens;
    seen.turn = stream.turn?.turn;
  }

  get #opened(): Chat {
    if (!this.#chat) throw new Error("the scenario opens no conversation");
    return this.#chat;
  }
}

function add(seen: Observation, choice: number, text: string, tokens: readonly Token[]): void {
  seen.texts[choice] = (seen.texts[choice] ?? "") + text;
  (seen.ids[choice] ??= []).push(...tokens.map(({ id }) => id));
  seen.positions.push(...tokens.map(({ position }) => position));
  seen.num_silent += tokens.filter((token) => token.text === "").length;
}

function end(seen: Observation, choice: number, finished: ChoiceFinished | undefined): void {
  if (!finished) return;
  seen.reasons[choice] = FinishReason[finished.reason] ?? "";
  seen.stop_strings[choice] = finished.stopString;
}

/** Knobs by their names in the protos, as this client calls them. */
function camel(knobs: Readonly<Record<string, unknown>>): StartKnobs {
  const named = Object.entries(knobs).map(([name, value]) => [
    name.replace(/_(\w)/g, (_, letter: string) => letter.toUpperCase()),
    name === "seed" ? BigInt(value as number) : value,
  ]);
  return Object.fromEntries(named) as StartKnobs;
}
