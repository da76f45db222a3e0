/**
 * Runs one scenario of `tests/conformance/scenarios.yaml`: {gateways, steps} as JSON on standard input; one observation
 * for each step as JSON on standard output. What is to be observed, the file says and the test checks.
 */
import { text } from "node:stream/consumers";

import { Client, type ChatOptions, FinishReason, HerdError, type StartKnobs, type Stream } from "../src/index.js";
import { Chat } from "../src/index.js";
import type { ChoiceFinished, Token } from "../gen/llamaherd/v1/common_pb.js";

interface Step {
  readonly do: "generate" | "complete" | "attach" | "open" | "say" | "resume";
  readonly at?: readonly string[];
  readonly patience_s?: number;
  readonly timeout_s?: number;
  readonly prompt?: string;
  readonly system_prompt?: string;
  readonly knobs?: Readonly<Record<string, unknown>>;
  readonly cancel_after?: number; // tokens, then `cancel` by another call
  readonly leave_after?: number; // tokens, then `break`
  readonly from_position?: number; // of the generation that was observed last, with its chain
}

interface Observation {
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

/** One scenario's clients, its conversation, and what an `attach` goes on with. */
class Runner {
  #chat: Chat | undefined;
  #generationId = "";
  #chains: number[] = [];

  constructor(readonly gateways: Readonly<Record<string, string>>) {}

  async run(step: Step): Promise<Observation> {
    const seen: Observation = { texts: [], ids: [], positions: [], num_silent: 0, reasons: [], stop_strings: [] };
    const addresses = (step.at ?? ["one", "two"]).map((name) => this.gateways[name] ?? name);
    const client = new Client(addresses, { patienceMs: 1e3 * (step.patience_s ?? 60) });
    try {
      await this.#act(client, step, seen);
    } catch (error) {
      if (!(error instanceof HerdError)) throw error;
      const { reason, violations, retryAfterMs } = error.facts;
      const fields = violations.map(({ field }) => field);
      seen.error = { kind: error.kind, reason, violations: fields, has_retry_after: retryAfterMs !== undefined };
    } finally {
      if (step.do !== "open" && step.do !== "resume") client.close(); // the conversation goes on over it
    }
    return seen;
  }

  async #act(client: Client, step: Step, seen: Observation): Promise<void> {
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
        const answer = await client.complete(prompt, knobs);
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
      case "say":
        return this.#read(this.#opened.say(prompt), step, seen, () => this.#opened.interrupt());
    }
  }

  async #read(stream: Stream, step: Step, seen: Observation, stop: (id: string) => Promise<unknown>): Promise<void> {
    let isStopped = false;
    this.#chains = [];
    for await (const { choice, text, tokens, finished } of stream) {
      add(seen, choice, text, tokens);
      end(seen, choice, finished);
      this.#chains.push(...tokens.map(({ chain }) => chain));
      this.#generationId = stream.generationId;
      if (seen.positions.length >= (step.leave_after ?? Infinity)) break;
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

const { gateways, steps } = JSON.parse(await text(process.stdin)) as {
  gateways: Record<string, string>;
  steps: readonly Step[];
};
const runner = new Runner(gateways);
const observations: Observation[] = [];
for (const step of steps) observations.push(await runner.run(step));
process.stdout.write(JSON.stringify(observations), () => process.exit(0));
