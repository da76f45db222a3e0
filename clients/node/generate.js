#!/usr/bin/env node
// Sends one message to a llamaherd service and prints the answer as it comes.
import { parseArgs } from "node:util";

import grpc from "@grpc/grpc-js";

import { readError, v1 } from "./llamaherd.js";

const { values: flags, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    address: { type: "string", default: "127.0.0.1:50051" },
    temperature: { type: "string" },
    "timeout-s": { type: "string", default: "60" },
  },
});

const spec = { chat: { messages: [{ role: "ROLE_USER", content: positionals.join(" ") || "Count to ten" }] } };
if (flags.temperature !== undefined) spec.sampling = { temperature: Number(flags.temperature) };

const client = new v1.GenerationService(flags.address, grpc.credentials.createInsecure());
try {
  await generate({ spec });
} catch (error) {
  if (error.code === undefined) throw error;
  const { code, message, reason, domain, fieldViolations } = readError(error);
  console.error(`${code}: ${message}`);
  if (reason) console.error(`reason ${reason} (${domain})`);
  for (const { field, description } of fieldViolations) console.error(`field ${field}: ${description}`);
  process.exitCode = 1;
} finally {
  client.close();
}

/** Prints the text of every token; an OK stream that did not end with `completed` would be a bug of the service. */
async function generate(request) {
  let event = "";
  const deadline = Date.now() + 1000 * Number(flags["timeout-s"]);
  for await (const response of client.Generate(request, { deadline })) {
    for (const token of response.tokens) process.stdout.write(token.text);
    event = response.event ?? event;
  }
  process.stdout.write("\n");
  if (event !== "completed") throw new Error(`the stream ended with ${event || "nothing"}, not with completed`);
}
