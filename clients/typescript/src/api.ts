/** What the client for Node and the client for browsers have in common. */
export type { CallKnobs, HerdClient, Patience, StartKnobs } from "./client.js";
export { Chat, type ChatOptions, type SayOptions } from "./chat.js";
export { type ErrorFacts, type ErrorKind, type FieldViolation, HerdError } from "./errors.js";
export type { Place } from "./reading.js";
export type { ChatKnobs, Input, Knobs, Message } from "./spec.js";
export { type Delta, Stream } from "./stream.js";
export { FinishReason, Priority } from "../gen/llamaherd/v1/common_pb.js";
export { GenerationState } from "../gen/llamaherd/v1/generation_pb.js";
