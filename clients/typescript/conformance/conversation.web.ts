/** The browser's conversation of the README, to the letter below this line. */
import { Client } from "llamaherd-client/web";

const herd = new Client(new URLSearchParams(location.search).getAll("herd")); // URL of one proxy, or of several
const chat = await herd.chat({ temperature: 0 });
for (const line of ["Count to ten", "Count to ten"]) {
  document.body.append(`> ${line}\n`);
  for await (const delta of chat.say(line)) document.body.append(delta.text);
  document.body.append("\n");
}
document.body.append(`${(await herd.chat({ handle: chat.handle })).numTurns} turns\n`);
