// Decodes one GenerateResponse from standard input and prints each of its tokens as a line of JSON.
import { readFileSync } from "node:fs";

import { decode } from "../../../clients/node/llamaherd.js";

for (const t of decode("llamaherd.v1.GenerateResponse", readFileSync(0)).tokens) {
  console.log(JSON.stringify([t.choice, t.index, t.position, t.id, t.text, t.chain, t.top_logprobs.map((top) => top.id)]));
}
