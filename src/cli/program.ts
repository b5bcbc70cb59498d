/** The commands together, and what `shardloom --help` says of all of them. */
import { Command } from "commander";
import { addBenchCommand } from "./bench.js";
import { addChatCommand } from "./chat.js";
import type { CommandContext } from "./context.js";
import { addDoctorCommand } from "./doctor.js";
import { addGenerateCommand } from "./generate.js";
import { readPackageManifest } from "./package-manifest.js";
import { addPlanCommand } from "./plan.js";
import { addProfileCommand } from "./profile.js";
import { addQuantizeCommand } from "./quantize.js";
import { addScoreCommand } from "./score.js";
import { addShardCommand } from "./shard.js";

const ENVIRONMENT_AND_EXIT_CODES = `
Examples:
  shardloom generate --model model.gguf --tp 2 --chat "Why is the sky blue?"
  shardloom chat --model HuggingFaceTB/SmolLM2-135M-Instruct --tp 2
  shardloom help generate

Environment variables:
  SHARDLOOM_PLUGINS         plugins to load, separated by commas, besides those of --plugin
  SHARDLOOM_LOG_LEVEL       level of the log on stderr, where no flag sets it (default: warn)
  SHARDLOOM_KERNELS         reference: compute in TypeScript, without the native addon
  SHARDLOOM_ISA             instruction set of the native kernels: portable, avx2, avx512, avx512vnni, avx512bf16, or on
                            Arm64 portable, neon, neondotprod, neoni8mm
  SHARDLOOM_NATIVE_ADDON    path of the native addon
  HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE
                            as the Hugging Face libraries use them

Exit codes:
  0  success, also when the reader of stdout has gone
  1  a bug in shardloom
  2  wrong command line, environment variable or request
  3  a model that is missing, damaged, not supported, or cannot be split into that many ranks
  4  a plugin that is missing, broken, or in conflict with another
  5  a rank or a collective failed, memory ran out, or results could not be written
  6  a limit that the command line sets is exceeded (profile --max-skew)
  130, 143  ended by SIGINT, SIGTERM

Errors are one line on stderr, shardloom: error[CODE]: message; docs/errors.md lists the codes.`;

/** Parses and runs command lines; throws CommanderError and what commands throw, and prints neither. */
export function createProgram(context: CommandContext): Command {
  const program = new Command("shardloom")
    .description("Tensor-parallel large language models on CPUs")
    .version(readPackageManifest().version)
    // Before the commands are added, which inherit both.
    .exitOverride()
    // Flags behind a command are that command's: profile and profile diff both have a --json.
    .enablePositionalOptions()
    .configureOutput({ outputError: () => {} })
    .addHelpText("after", ENVIRONMENT_AND_EXIT_CODES);
  addGenerateCommand(program, context);
  addChatCommand(program, context);
  addScoreCommand(program, context);
  addPlanCommand(program, context);
  addProfileCommand(program, context);
  addQuantizeCommand(program, context);
  addBenchCommand(program, context);
  addDoctorCommand(program, context);
  addShardCommand(program, context);
  return program;
}
