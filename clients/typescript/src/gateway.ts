/** One gateway as the client sees it, over whatever brings calls to it: HTTP/2 in Node, gRPC-Web in a browser. */
import { type Client as Stub, createClient, type Interceptor, type Transport } from "@connectrpc/connect";

import { ChatService } from "../gen/llamaherd/v1/chat_pb.js";
import { GenerationService } from "../gen/llamaherd/v1/generation_pb.js";
import { ModelService } from "../gen/llamaherd/v1/model_pb.js";

/** Brings calls to one gateway, or to a proxy before several. It connects by its first call. */
export interface Link {
  readonly transport: Transport;
  /** End what still runs over it. */
  close(): void;
}

/** A gateway's stubs. */
export class Gateway {
  readonly generation: Stub<typeof GenerationService>;
  readonly chat: Stub<typeof ChatService>;
  readonly model: Stub<typeof ModelService>;
  readonly #link: Link;

  constructor(link: Link) {
    this.#link = link;
    this.generation = createClient(GenerationService, link.transport);
    this.chat = createClient(ChatService, link.transport);
    this.model = createClient(ModelService, link.transport);
  }

  /** End what still runs over it. */
  close(): void {
    this.#link.close();
  }
}

/** Gives each call the key, if there is one. */
export function keyed(apiKey: string | undefined): Interceptor[] {
  if (apiKey === undefined) return [];
  return [
    (next) => (request) => {
      request.header.set("authorization", `Bearer ${apiKey}`);
      return next(request);
    },
  ];
}
