/** The llamaherd client for browsers: the same streams and conversations by gRPC-Web, through a proxy that speaks it. */
import { createGrpcWebTransport } from "@connectrpc/connect-web";

import { HerdClient, type Patience } from "./client.js";
import { keyed, type Link } from "./gateway.js";

export * from "./api.js";

/** What a client tells its proxies, and how long it tries. */
export interface ClientOptions extends Patience {
  readonly apiKey?: string;
}

/** Reaches a herd by the URLs of its proxies. Every method throws HerdError. */
export class Client extends HerdClient {
  /** @param urls of one proxy, or of several, any of which will do; default: where the page comes from. */
  constructor(urls: string | readonly string[] = location.origin, options: ClientOptions = {}) {
    super(
      [urls].flat().map((url) => overWeb(url, options)),
      options,
    );
  }
}

function overWeb(baseUrl: string, { apiKey }: ClientOptions): Link {
  const open = new AbortController();
  return {
    transport: createGrpcWebTransport({
      baseUrl,
      interceptors: keyed(apiKey),
      fetch: (input, { signal, ...rest } = {}) =>
        fetch(input, { ...rest, signal: AbortSignal.any([open.signal, ...(signal ? [signal] : [])]) }),
    }),
    close: () => open.abort(),
  };
}
