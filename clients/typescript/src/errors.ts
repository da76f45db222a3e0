/** Every way a call can fail, named by its cause; the names are those of the Python client's classes. */
import { Code, ConnectError } from "@connectrpc/connect";

import { BadRequestSchema, ErrorInfoSchema, RetryInfoSchema } from "../gen/google/rpc/error_details_pb.js";

const DOMAIN = "llamaherd.dev";
const PUSHBACK = "grpc-retry-pushback-ms";

const KIND_BY_REASON = {
  INVALID_REQUEST: "InvalidRequest", // a field is wrong; `violations` tells which
  UNKNOWN_MODEL: "UnknownModel",
  UNKNOWN_GENERATION: "UnknownGeneration", // none of this id, or another caller's, or expired
  UNKNOWN_SESSION: "UnknownSession", // no such conversation, or another caller's, or expired
  SESSION_TAKEN: "SessionTaken",
  TURN_RUNNING: "TurnRunning",
  REQUEST_ID_REUSED: "RequestIdReused",
  QUOTA_EXCEEDED: "QuotaExceeded",
  UNAVAILABLE: "Unavailable",
  OVERLOADED: "Overloaded", // the model's queue is full; `retryAfterMs`
  DRAINING: "Draining",
  NO_WORKER: "NoWorker",
  BROKER_DOWN: "BrokerDown",
  READER_STALLED: "ReaderStalled", // this client read nothing for so long that the gateway ended the stream
  DEADLINE_PASSED: "DeadlineExceeded",
  DEADLINE_TOO_SHORT: "DeadlineTooShort", // the wait alone would outlast it; nothing was queued
  POSITION_AHEAD: "PositionAhead",
  LOG_BEHIND: "DataLoss", // going on would fork the text
  UNREADABLE: "DataLoss", // what the service keeps of it is damaged
  POISON_JOB: "PoisonJob",
  GENERATION_FAILED: "GenerationFailed",
  UNIMPLEMENTED: "Unimplemented",
  INTERNAL: "InternalError",
} as const;

/** The cause; `ConnectionBroken` is the transport's own, the last ones are of statuses that carry no reason. */
export type ErrorKind =
  | (typeof KIND_BY_REASON)[keyof typeof KIND_BY_REASON]
  | "ConnectionBroken"
  | "NotFound"
  | "NotAllowed"
  | "Cancelled"
  | "HerdError";

const KIND_BY_CODE: Partial<Record<Code, ErrorKind>> = {
  [Code.InvalidArgument]: "InvalidRequest",
  [Code.NotFound]: "NotFound",
  [Code.AlreadyExists]: "RequestIdReused",
  [Code.Unauthenticated]: "NotAllowed",
  [Code.PermissionDenied]: "NotAllowed",
  [Code.ResourceExhausted]: "QuotaExceeded",
  [Code.DeadlineExceeded]: "DeadlineExceeded",
  [Code.OutOfRange]: "PositionAhead",
  [Code.DataLoss]: "DataLoss",
  [Code.Unimplemented]: "Unimplemented",
};

/** What a status of a proxy or the transport means that is about the connection and not about the call. */
const BROKEN: readonly Code[] = [Code.Unavailable, Code.Canceled, Code.Aborted, Code.Internal, Code.Unknown];

/** The same call may succeed later: the client tries again, and tells when it has given up. */
const RETRIED: readonly ErrorKind[] = [
  "Unavailable",
  "Overloaded",
  "Draining",
  "NoWorker",
  "BrokerDown",
  "ReaderStalled",
  "ConnectionBroken",
];

/** One field that is wrong: its path in the request (`spec.sampling.temperature`) and the fact. */
export interface FieldViolation {
  readonly field: string;
  readonly description: string;
}

/** What a status says beside its code and text. */
export interface ErrorFacts {
  /** The service's own word for the cause; empty if a proxy or the transport made the status. */
  readonly reason: string;
  /** What goes with the reason, such as the number of attempts. */
  readonly metadata: Readonly<Record<string, string>>;
  readonly violations: readonly FieldViolation[];
  /** When a retry may succeed; undefined if that was not said. */
  readonly retryAfterMs: number | undefined;
  /** The service asks not to be asked again. */
  readonly forbidsRetry: boolean;
}

const NO_FACTS: ErrorFacts = { reason: "", metadata: {}, violations: [], retryAfterMs: undefined, forbidsRetry: false };

/** A call failed: why is `kind`, the gRPC status code is `code`. */
export class HerdError extends Error {
  override readonly name = "HerdError";

  constructor(
    readonly kind: ErrorKind,
    text: string,
    readonly code: Code,
    readonly facts: ErrorFacts = NO_FACTS,
    cause?: unknown,
  ) {
    super(`${kind}: ${text}`, { cause });
  }

  /** Whether the same call may succeed later. */
  get mayRetry(): boolean {
    return RETRIED.includes(this.kind) && !this.facts.forbidsRetry;
  }

  /** Whether other gateways should be asked first for a while. */
  get isOfGateway(): boolean {
    return this.kind === "ConnectionBroken" || this.kind === "Draining" || this.kind === "BrokerDown";
  }
}

/** What a call failed with, as an error of ours. */
export function typed(reason: unknown): HerdError {
  if (reason instanceof HerdError) return reason;
  const error = ConnectError.from(reason);
  const facts = factsOf(error);
  return new HerdError(kindOf(error, facts.reason), error.rawMessage, error.code, facts, error);
}

/** The service no longer has what was delivered. */
export function dataLoss(text: string): HerdError {
  return new HerdError("DataLoss", text, Code.DataLoss);
}

/** The connection ended, and nobody said so. */
export function broken(text: string): HerdError {
  return new HerdError("ConnectionBroken", text, Code.Unknown);
}

/** The client has ended. */
export function closed(): HerdError {
  return new HerdError("Cancelled", "the client is closed", Code.Canceled);
}

function kindOf(error: ConnectError, reason: string): ErrorKind {
  if (reason in KIND_BY_REASON) return KIND_BY_REASON[reason as keyof typeof KIND_BY_REASON];
  // A connection cut within a message is for Connect an invalid argument: only a status with trailers was sent to us.
  const wasSent = error.metadata.has("grpc-status");
  if (error.code === Code.DeadlineExceeded) return "DeadlineExceeded";
  if (!reason && (!wasSent || BROKEN.includes(error.code))) return "ConnectionBroken";
  return KIND_BY_CODE[error.code] ?? "HerdError";
}

function factsOf(error: ConnectError): ErrorFacts {
  const info = error.findDetails(ErrorInfoSchema).find((detail) => detail.domain === DOMAIN);
  const violations = error.findDetails(BadRequestSchema).flatMap((detail) => detail.fieldViolations);
  const delay = error.findDetails(RetryInfoSchema)[0]?.retryDelay;
  const pushback = error.metadata.get(PUSHBACK);
  // gRFC A6: a negative or unreadable delay forbids the retry.
  const forbidsRetry = pushback !== null && !/^\d+$/.test(pushback);
  let retryAfterMs = pushback !== null && !forbidsRetry ? Number(pushback) : undefined;
  if (delay) retryAfterMs = Number(delay.seconds) * 1e3 + delay.nanos / 1e6;
  return {
    reason: info?.reason ?? "",
    metadata: info?.metadata ?? {},
    violations: violations.map(({ field, description }) => ({ field, description })),
    retryAfterMs,
    forbidsRetry,
  };
}
