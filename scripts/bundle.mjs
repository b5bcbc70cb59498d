// Bundles what users run into few files: a process starts in the time that its modules take to be found, read and linked, and
// so does the thread of every rank (docs/decisions/0024-bundled-modules.md). Input is what tsc wrote to dist/.
//
// All entries of the package are one build that shares chunks, so that a thread has one instance of every module whichever
// entries it imports. A plugin is a build of its own: what it has of shardloom it imports as `shardloom/plugin`.
import { chmodSync, cpSync, existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const root = dirname(dirname(fileURLToPath(import.meta.url)));

/** Packages that are part of the bundle, since every start needs them; others are found when they are used. */
const BUNDLED = ["comlink", "commander", "@huggingface/jinja", "@huggingface/tokenizers"];

/** As in dist/, two folders below the bundle's root: see src/core/package-files.ts. */
const CHUNKS = "src/lib";

/** The entries that a package exports: each is bundled from what it is under the condition for modules to what it is by default. */
function exportedEntries({ exports }) {
  return Object.values(exports)
    .filter((target) => typeof target === "object")
    .map(({ "@shardloom/modules": module, default: bundled }) => ({
      in: module,
      out: bundled.replace(/^\.\/bundle\//, "").replace(/\.js$/, ""),
    }));
}

/** Of every file of workers/ a thread may begin in. */
function workerEntries() {
  return readdirSync(join(root, "workers")).map((name) => {
    const out = `workers/${basename(name, ".ts")}`;
    return { in: `dist/${out}.js`, out };
  });
}

function readManifest(folder) {
  return JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
}

const common = {
  bundle: true,
  format: "esm",
  platform: "node",
  target: "node20.19",
  // For stack traces, of who asks for them (--enable-source-maps): nothing reads them otherwise.
  sourcemap: true,
  logLevel: "warning",
};

async function bundleLibrary() {
  const manifest = readManifest(root);
  const outdir = join(root, "bundle");
  rmSync(outdir, { recursive: true, force: true });
  const { metafile } = await build({
    ...common,
    absWorkingDir: root,
    entryPoints: [
      ...exportedEntries(manifest),
      { in: "dist/src/cli/main.js", out: `${CHUNKS}/main` },
      ...workerEntries(),
    ],
    outdir,
    splitting: true,
    chunkNames: `${CHUNKS}/[name]-[hash]`,
    external: Object.keys(manifest.dependencies),
    metafile: true,
    // What is bundled of CommonJS requires modules of Node.js.
    banner: {
      js: 'import { createRequire as requireFrom } from "node:module";\nvar require = requireFrom(import.meta.url);',
    },
  });
  chmodSync(join(outdir, CHUNKS, "main.js"), 0o755);
  cpSync(join(root, "dist", "viewer"), join(outdir, "viewer"), {
    recursive: true,
    filter: (path) => !path.endsWith(".d.ts"),
  });
  writeFileSync(join(outdir, "LICENSES.txt"), licenses(Object.keys(metafile.inputs)));
}

/** Licences of the packages that inputs of the bundle come from. */
function licenses(inputs) {
  const packages = new Set(inputs.map((path) => /^node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1]));
  const names = [...packages].filter((name) => name !== undefined).sort();
  if (names.join() !== [...BUNDLED].sort().join()) {
    throw new Error(`expected the bundle to hold ${BUNDLED.join(", ")} but received ${names.join(", ")}`);
  }
  return names
    .map((name) => {
      const folder = join(root, "node_modules", name);
      return `${name} ${readManifest(folder).version}\n\n${readFileSync(join(folder, "LICENSE"), "utf8")}`;
    })
    .join(`\n${"-".repeat(80)}\n`);
}

async function bundlePlugin(folder) {
  const outdir = join(folder, "bundle");
  rmSync(outdir, { recursive: true, force: true });
  await build({
    ...common,
    absWorkingDir: folder,
    entryPoints: exportedEntries(readManifest(folder)),
    outdir,
    packages: "external",
  });
}

const plugins = readdirSync(join(root, "plugins"))
  .map((name) => join(root, "plugins", name))
  .filter((folder) => existsSync(join(folder, "package.json")));
await Promise.all([bundleLibrary(), ...plugins.map(bundlePlugin)]);
