/** HTTP/2 connections to one gateway, which come soon or are given up, and whose end is nobody's but their calls'. */
import { Code, ConnectError } from "@connectrpc/connect";
import { Http2SessionManager } from "@connectrpc/connect-node";
import type { ClientHttp2Stream, Http2Session } from "node:http2";

const CONNECT_TIMEOUT_MS = 3_000; // TLS included: a gateway that is frozen takes connections, and says nothing

/** What connect-node offers, but for two things: it connects for ever, and a session may fail when it no longer listens. */
export class Sessions extends Http2SessionManager {
  readonly #known = new WeakSet<Http2Session>();

  override async request(...how: Parameters<Http2SessionManager["request"]>): Promise<ClientHttp2Stream> {
    const timer = setInterval(() => this.#giveUp(), CONNECT_TIMEOUT_MS);
    try {
      const stream = await super.request(...how);
      this.#outlive(stream.session);
      return stream;
    } finally {
      clearInterval(timer);
    }
  }

  #giveUp(): void {
    if (this.state() !== "connecting") return; // it asks an idle session for a sign of life
    this.abort(new ConnectError(`no connection to ${this.authority} within 3 s`, Code.Unavailable));
  }

  /** An `error` event without a listener would end the program; each of the session's calls is told by its own. */
  #outlive(session: Http2Session | undefined): void {
    if (!session || this.#known.has(session)) return;
    this.#known.add(session);
    session.on("error", () => {});
  }
}
