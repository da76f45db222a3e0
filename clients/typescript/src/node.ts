/** The client for Node: gRPC over HTTP/2, straight to the gateways. */
import { createGrpcTransport } from "@connectrpc/connect-node";
import type { SecureClientSessionOptions } from "node:http2";

import { HerdClient, type Patience } from "./client.js";
import { keyed, type Link } from "./gateway.js";
import { Sessions } from "./sessions.js";

/** How a client speaks to its gateways, and how long it tries. */
export interface ClientOptions extends Patience {
  /** True trusts the system's authorities; or Node's own TLS options (`ca`, `cert`, `key`, `servername`). */
  readonly tls?: boolean | SecureClientSessionOptions;
  readonly apiKey?: string;
  /**
   * A gateway that is frozen still has its connection; only an unanswered ping tells, sent when a stream has been silent for
   * so long; default: 5,000. A gateway allows a ping every 4 s, and ends the connection of who asks more often.
   */
  readonly pingIntervalMs?: number;
  /** How long a gateway may take to answer it; default: 5,000. */
  readonly pingTimeoutMs?: number;
}

/** Reaches a herd by the addresses of its gateways. Every method throws HerdError. */
export class Client extends HerdClient {
  /** @param addresses HOST:PORT of one gateway, or of several, any of which will do. */
  constructor(addresses: string | readonly string[] = "127.0.0.1:50051", options: ClientOptions = {}) {
    super(
      [addresses].flat().map((address) => overHttp2(address, options)),
      options,
    );
  }
}

function overHttp2(address: string, options: ClientOptions): Link {
  const { tls = false, apiKey, pingIntervalMs = 5_000, pingTimeoutMs = 5_000 } = options;
  const baseUrl = `${tls ? "https" : "http"}://${address}`;
  const pings = { pingIntervalMs, pingTimeoutMs };
  const sessionManager = new Sessions(baseUrl, pings, typeof tls === "object" ? tls : undefined);
  return {
    transport: createGrpcTransport({ baseUrl, sessionManager, interceptors: keyed(apiKey) }),
    close: () => sessionManager.abort(),
  };
}
