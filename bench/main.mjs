// Benches: npm run bench -- [decode|predict] [--model PATH] [--tp 1,2] [--tokens N] [--runs N] [--plugin NAME]
import { spawnSync } from "node:child_process";
import { cpus } from "node:os";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { decode } from "./decode.mjs";
import { predict } from "./predict.mjs";

const benches = { decode, predict };

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    model: { type: "string" },
    tp: { type: "string", default: "1,2" },
    tokens: { type: "string", default: "64" },
    runs: { type: "string", default: "5" },
    plugin: { type: "string", multiple: true, default: ["@shardloom/gguf"] },
  },
});

/** Path of the sample model, fetched if needed. */
function sampleModel() {
  const script = fileURLToPath(new URL("../scripts/fetch-sample-model.mjs", import.meta.url));
  const { status, stdout } = spawnSync(process.execPath, [script], {
    encoding: "utf8",
    stdio: ["ignore", "pipe", "inherit"],
  });
  if (status !== 0) process.exit(1);
  return stdout.trim();
}

const [name = "decode"] = positionals;
const bench = benches[name];
if (bench === undefined) {
  console.error(`expected a bench (${Object.keys(benches).join(", ")}) but received ${JSON.stringify(name)}`);
  process.exit(2);
}
const count = (option) => {
  const value = Number(values[option]);
  if (Number.isInteger(value) && value > 0) return value;
  console.error(`expected --${option} to be a whole number above 0 but received ${values[option]}`);
  process.exit(2);
};
console.log(`${cpus()[0]?.model ?? "unknown CPU"}, ${cpus().length} cores, Node.js ${process.version}`);
await bench({
  model: values.model ?? sampleModel(),
  worldSizes: values.tp.split(",").map(Number),
  tokens: count("tokens"),
  runs: count("runs"),
  plugins: values.plugin,
});
