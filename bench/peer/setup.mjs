// Installs the peer: node-llama-cpp and its prebuilt binary for the CPU of this platform, nothing of its hundreds of
// megabytes for graphics cards. Downloads come from the npm registry only; no install script runs.
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

const BINARIES = {
  "linux-x64": "linux-x64",
  "linux-arm64": "linux-arm64",
  "darwin-x64": "mac-x64",
  "darwin-arm64": "mac-arm64-metal",
  "win32-x64": "win-x64",
  "win32-arm64": "win-arm64",
};

const folder = fileURLToPath(new URL(".", import.meta.url));
const version = JSON.parse(readFileSync(`${folder}package.json`, "utf8")).dependencies["node-llama-cpp"];
const platform = `${process.platform}-${process.arch}`;
const binary = BINARIES[platform];
if (binary === undefined) {
  console.error(`expected one of the platforms ${Object.keys(BINARIES).join(", ")} but received ${platform}`);
  process.exit(1);
}
const npm = (...args) => {
  const options = ["--omit=optional", "--ignore-scripts", "--no-audit", "--no-fund"];
  // npm is a script that only a shell can start on Windows.
  execFileSync("npm", [...args, ...options], { cwd: folder, stdio: "inherit", shell: process.platform === "win32" });
};
npm("install");
npm("install", "--no-save", "--no-package-lock", `@node-llama-cpp/${binary}@${version}`);
