/** How a client reaches its gateways: addresses, TLS, key, and the settings of each connection. */
import { type Client as Stub, createClient, type Interceptor } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import type { SecureClientSessionOptions } from "node:http2";

import { ChatService } from "../gen/llamaherd/v1/chat_pb.js";
import { GenerationService } from "../gen/llamaherd/v1/generation_pb.js";
import { ModelService } from "../gen/llamaherd/v1/model_pb.js";

// A gateway that is frozen still has its connection; only an unanswered ping tells, within the sum of these two.
const PING_INTERVAL_MS = 5_000; // a gateway allows a ping every 4 s and ends the connection of who asks more often
const PING_TIMEOUT_MS = 5_000;

/** How to speak to the gateways. */
export interface Reach {
  /** HOST:PORT of each gateway of the herd. */
  readonly addresses: readonly string[];
  /** True trusts the system's authorities; or Node's own TLS options (`ca`, `cert`, `key`, `servername`). */
  readonly tls?: boolean | SecureClientSessionOptions;
  readonly apiKey?: string;
}

/** One gateway: its stubs, over one connection that is made by the first call. */
export class Gateway {
  readonly generation: Stub<typeof GenerationService>;
  readonly chat: Stub<typeof ChatService>;
  readonly model: Stub<typeof ModelService>;
  readonly #sessions: Http2SessionManager;

  constructor(address: string, { tls = false, apiKey }: Reach) {
    const baseUrl = `${tls ? "https" : "http"}://${address}`;
    const pings = { pingIntervalMs: PING_INTERVAL_MS, pingTimeoutMs: PING_TIMEOUT_MS };
    this.#sessions = new Http2SessionManager(baseUrl, pings, typeof tls === "object" ? tls : undefined);
    const transport = createGrpcTransport({
      baseUrl,
      sessionManager: this.#sessions,
      interceptors: apiKey === undefined ? [] : [withKey(apiKey)],
    });
    this.generation = createClient(GenerationService, transport);
    this.chat = createClient(ChatService, transport);
    this.model = createClient(ModelService, transport);
  }

  /** End the connection, and what still runs over it. */
  close(): void {
    this.#sessions.abort();
  }
}

function withKey(apiKey: string): Interceptor {
  return (next) => (request) => {
    request.header.set("authorization", `Bearer ${apiKey}`);
    return next(request);
  };
}
