/** Runs scenarios in a browser: the page asks the server that it came from for one after the other, and tells what it saw. */
import { Client } from "llamaherd-client/web";
import { runScenario, type Scenario } from "./scenario.js";

/** Another page to be opened, and to be read once it shows this. */
interface Visit {
  readonly visit: string;
  readonly until: string;
}

async function done(task: Scenario | Visit): Promise<unknown> {
  if ("visit" in task) return textOf(task);
  return runScenario(task, (addresses, behaviour) => {
    const urls = addresses.map((address) => `http://${address}`);
    return new Client(urls, behaviour);
  });
}

async function textOf({ visit, until }: Visit): Promise<string> {
  const frame = document.createElement("iframe");
  frame.src = visit;
  const loaded = new Promise((resolve) => frame.addEventListener("load", resolve));
  document.body.append(frame);
  await loaded;
  const { body } = frame.contentDocument as Document;
  while (!body.textContent?.includes(until)) await changed(body);
  return body.textContent;
}

function changed(element: HTMLElement): Promise<unknown> {
  return new Promise((resolve) => new MutationObserver(resolve).observe(element, { childList: true }));
}

for (;;) {
  const task = (await (await fetch("/task")).json()) as Scenario | Visit;
  const told = await done(task).then(
    (seen) => ({ seen }),
    (fault: unknown) => ({ fault: fault instanceof Error ? (fault.stack ?? fault.message) : String(fault) }),
  );
  await fetch("/told", { method: "POST", body: JSON.stringify(told) });
}
