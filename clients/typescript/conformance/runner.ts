/**
 * Runs a scenario in Node: it comes as JSON on standard input; what was seen goes as JSON to standard output.
 * With a file of certificates as argument the gateways are reached by TLS, under the name localhost.
 */
import { readFileSync } from "node:fs";
import { text } from "node:stream/consumers";

import { Client } from "llamaherd-client";
import { runScenario, type Scenario } from "./scenario.js";

const [authorities] = process.argv.slice(2);
const tls = authorities !== undefined && { ca: readFileSync(authorities), servername: "localhost" };
const scenario = JSON.parse(await text(process.stdin)) as Scenario;
const seen = await runScenario(scenario, (addresses, behaviour) => new Client(addresses, { ...behaviour, tls }));
process.stdout.write(JSON.stringify(seen), () => process.exit(0));
