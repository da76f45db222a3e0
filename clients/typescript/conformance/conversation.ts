/** The conversation of the README, to the letter below this line. */
import { Client } from "llamaherd-client";

using herd = new Client(process.argv.slice(2)); // HOST:PORT of one gateway, or of several
const chat = await herd.chat({ temperature: 0 });
for (const line of ["Count to ten", "Count to ten"]) {
  process.stdout.write(`> ${line}\n`);
  for await (const delta of chat.say(line)) process.stdout.write(delta.text);
  process.stdout.write("\n");
}
process.stdout.write(`${(await herd.chat({ handle: chat.handle })).numTurns} turns\n`);
