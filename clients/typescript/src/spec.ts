/** What to generate: from a prompt and flat knobs to a GenerationSpec. */
import { create } from "@bufbuild/protobuf";

import {
  ChatInputSchema,
  ChatMessageSchema,
  type GenerationSpec,
  GenerationSpecSchema,
  OutputOptionsSchema,
  type OutputOptions,
  Role,
  SamplingSchema,
  type Sampling,
  StoppingSchema,
  type Stopping,
  TokenIdsSchema,
} from "../gen/llamaherd/v1/common_pb.js";

type Fields<M> = Partial<Omit<M, "$typeName" | "$unknown">>;

/** How a conversation's turns are drawn and when they end; what is left out is the model's default. */
export type ChatKnobs = Fields<Omit<Sampling, "n">> & Fields<Stopping> & { readonly model?: string };

/** Everything a generation can be told. Bounds and defaults stand in `protos/llamaherd/v1/common.proto`. */
export type Knobs = ChatKnobs &
  Fields<OutputOptions> &
  Fields<Pick<Sampling, "n">> &
  Fields<Pick<GenerationSpec, "priority" | "resumeWindowMs">> & {
    /** Allow the chat format's tags inside messages. */
    readonly allowFormatTags?: boolean;
  };

/** One message of a conversation. */
export interface Message {
  /** The system's only first; then the user's and the assistant's in turn. */
  readonly role: "system" | "user" | "assistant";
  readonly content: string;
}

/** Plain text to continue; a conversation; or token ids, used exactly as given. */
export type Input = string | readonly Message[] | { readonly tokenIds: readonly number[] };

const ROLES = { system: Role.SYSTEM, user: Role.USER, assistant: Role.ASSISTANT };

/** The spec; knobs go where they belong, wherever that is. */
export function buildSpec(prompt: Input, knobs: Knobs): GenerationSpec {
  return create(GenerationSpecSchema, {
    model: knobs.model ?? "",
    input: inputOf(prompt, knobs),
    ...partsOf(knobs),
    output: create(OutputOptionsSchema, knobs),
    priority: knobs.priority,
    resumeWindowMs: knobs.resumeWindowMs,
  });
}

/** Of knobs: how to draw, and when to end. Each message takes the fields that it has. */
export function partsOf(knobs: ChatKnobs): { sampling: Sampling; stopping: Stopping } {
  return { sampling: create(SamplingSchema, knobs), stopping: create(StoppingSchema, knobs) };
}

/** 128 random bits. Not `crypto.randomUUID`, which pages have only by https. */
export function newRequestId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function inputOf(prompt: Input, { allowFormatTags = false }: Knobs): GenerationSpec["input"] {
  if (typeof prompt === "string") return { case: "prompt", value: prompt };
  if ("tokenIds" in prompt) return { case: "tokenIds", value: create(TokenIdsSchema, { ids: [...prompt.tokenIds] }) };
  const messages = prompt.map(({ role, content }) => create(ChatMessageSchema, { role: ROLES[role], content }));
  return { case: "chat", value: create(ChatInputSchema, { messages, allowFormatTags }) };
}
