// Prints the path of the sample model and nothing else, fetching it if needed; what is going on goes to stderr.
import { sampleModel } from "./sample-model.mjs";

try {
  console.log(await sampleModel((line) => console.error(`shardloom: ${line}`)));
} catch (error) {
  console.error(`shardloom: ${error.message}`);
  process.exitCode = 1;
}
