/** The chain over a generation's tokens: CRC-32 over (choice, id), as `Token.chain` defines it. */

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

/** The chain before a generation's first token. */
export const CHAIN_START = 0;

/** The chain with one more token. */
export function extendChain(chain: number, choice: number, tokenId: number): number {
  let crc = ~chain;
  for (const word of [choice, tokenId]) {
    for (let shift = 0; shift < 32; shift += 8) {
      crc = (crc >>> 8) ^ (TABLE[(crc ^ (word >>> shift)) & 0xff] ?? 0);
    }
  }
  return ~crc >>> 0;
}
