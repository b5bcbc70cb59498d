/** The model loader of sharded states: a directory that `shardloom shard` made. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { describeDirectory, readDirectoryConfig } from "../default-loader.js";
import type { ModelLoader } from "../model-loader.js";
import { MANIFEST_FILE } from "./manifest.js";
import { ShardedState } from "./sharded-state.js";

export const shardedStateLoader: ModelLoader = {
  format: "sharded_state",
  matches: (path) => existsSync(join(path, MANIFEST_FILE)),
  describe: async (path) => describeDirectory(path),
  readConfig: async (path) => readDirectoryConfig(path),
  open: async (path, _expected, reader = { rank: 0, worldSize: 1, verifyChecksums: false }) =>
    ShardedState.open(path, reader),
};
