/** The llamaherd client for Node: generations and conversations as unbroken streams. */
export * from "./api.js";
export { Client, type ClientOptions } from "./node.js";
