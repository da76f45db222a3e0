// The llamaherd API for Node, read from the .proto files at run time: stubs, message types, typed errors.
import { fileURLToPath } from "node:url";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const path = (relative) => fileURLToPath(new URL(relative, import.meta.url));

const definition = protoLoader.loadSync(
  ["llamaherd/v1/generation.proto", "llamaherd/v1/chat.proto", "llamaherd/v1/model.proto", "google/rpc/error_details.proto"],
  {
    includeDirs: [path("../../protos"), path("../../third_party/googleapis")],
    keepCase: true,
    // Enums by name, 64-bit integers as strings (a JavaScript number is exact to 2^53 only), empty lists and
    // zeros present, absent `optional` fields absent, and for each oneof the name of the field that is set.
    enums: String,
    longs: String,
    defaults: true,
    oneofs: true,
  },
);

/** Constructors of the service stubs: GenerationService, ChatService, ModelService. */
export const v1 = grpc.loadPackageDefinition(definition).llamaherd.v1;

/** Decodes one message: `decode("llamaherd.v1.GenerateResponse", bytes)`. */
export function decode(typeName, bytes) {
  return definition[typeName].deserialize(bytes);
}

/**
 * What an error of any call says, from its `google.rpc.Status` in the `grpc-status-details-bin` trailer.
 * Gives {code, message, reason, domain, fieldViolations: [{field, description}]}; reason and domain are "" if
 * the error did not come from the service itself (a lost connection, a deadline that passed on this side).
 */
export function readError(error) {
  const found = { code: grpc.status[error.code], message: error.details, reason: "", domain: "", fieldViolations: [] };
  const [trailer] = error.metadata?.get("grpc-status-details-bin") ?? [];
  for (const detail of trailer ? decode("google.rpc.Status", trailer).details : []) {
    const typeName = detail.type_url.split("/").pop();
    if (typeName === "google.rpc.ErrorInfo") {
      const { reason, domain } = decode(typeName, detail.value);
      Object.assign(found, { reason, domain });
    } else if (typeName === "google.rpc.BadRequest") {
      found.fieldViolations.push(...decode(typeName, detail.value).field_violations);
    }
  }
  return found;
}
