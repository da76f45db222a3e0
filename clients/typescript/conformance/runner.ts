/**
 * Runs scenarios in Node: each is a line of standard input; what was seen of it is a line of standard output.
 * Arguments: none, `tls AUTHORITIES` for gateways of the name localhost, or `web` for the browser's client by https.
 */
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

import { Client } from "llamaherd-client";
import { Client as WebClient } from "llamaherd-client/web";
import { type Dial, runScenario, type Scenario } from "./scenario.js";

const [way = "", authorities = ""] = process.argv.slice(2);

const dial: Dial = (addresses, behaviour) => {
  if (way === "web") {
    const urls = addresses.map((address) => `https://${address}`);
    return new WebClient(urls, behaviour);
  }
  const tls = way === "tls" && { ca: readFileSync(authorities), servername: "localhost" };
  return new Client(addresses, { ...behaviour, tls });
};

for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await runScenario(JSON.parse(line) as Scenario, dial)));
}
