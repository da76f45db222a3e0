/**
 * Runs a scenario in Node: it comes as JSON on standard input; what was seen goes as JSON to standard output.
 * Arguments: none, `tls AUTHORITIES` for gateways of the name localhost, or `web` for the browser's client by https.
 */
import { readFileSync } from "node:fs";
import { text } from "node:stream/consumers";

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

const scenario = JSON.parse(await text(process.stdin)) as Scenario;
const seen = await runScenario(scenario, dial);
process.stdout.write(JSON.stringify(seen), () => process.exit(0));
