/**
 * node-llama-cpp as it is installed in bench/peer. Its binary is llama.cpp for this CPU; what a Node.js program pays on top
 * of it is part of the comparison.
 */
import { existsSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { PeerStatus } from "../frame/result.js";
import type { BenchModel } from "../models/model-store.js";
import type { Capacity, Contestant } from "./contestant.js";
import { startProcess } from "./process-contestant.js";

export const NODE_LLAMA_CPP = "node-llama-cpp";

const root = fileURLToPath(new URL("../../../bench/peer/node_modules/node-llama-cpp/", import.meta.url));
const entry = `${root}dist/index.js`;

export function nodeLlamaCppStatus(): PeerStatus {
  if (!existsSync(entry)) return { name: NODE_LLAMA_CPP, version: null, absent: "not installed: npm run bench:peer" };
  const manifest: { version: string } = JSON.parse(readFileSync(`${root}package.json`, "utf8"));
  return { name: NODE_LLAMA_CPP, version: manifest.version, absent: null };
}

/** Starts it with `threads` threads in a process of its own. Rejects when it is not installed or cannot load the model. */
export function startNodeLlamaCpp(model: BenchModel, threads: number, capacity: Capacity): Promise<Contestant> {
  return startProcess({
    name: NODE_LLAMA_CPP,
    peer: true,
    script: new URL("./node-llama-cpp-process.js", import.meta.url),
    args: [entry, model.path, String(threads)],
    environment: { NODE_LLAMA_CPP_SKIP_DOWNLOAD: "true" },
    vocabulary: model.shape.vocabulary,
    capacity,
  });
}
