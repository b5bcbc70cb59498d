import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";

const script = fileURLToPath(new URL("../../../scripts/check-kernels.mjs", import.meta.url));
const SKIPPED = 77;
/** As many as emulation does in a few seconds; the digests of two machines compare only with as many cases on each. */
const CASES = "24";

/** What the program computed: a digest for each kernel of each variant. */
type Digests = ReadonlyMap<string, ReadonlyMap<string, string>>;

function digestsOf(output: string): Digests {
  const digests = new Map<string, Map<string, string>>();
  for (const [, isa = "", kernel = "", digest = ""] of output.matchAll(/^(\S+) +(\S+) +\d+ cases +digest (\S+)$/gm)) {
    const kernels = digests.get(isa) ?? new Map<string, string>();
    digests.set(isa, kernels);
    kernels.set(kernel, digest);
  }
  return digests;
}

/** Undefined where what the check needs is missing, which it says. */
function check(args: readonly string[], cases: string): Digests | undefined {
  const { status, stdout, stderr } = spawnSync(process.execPath, [script, ...args, "--cases", cases], {
    encoding: "utf8",
  });
  if (status === SKIPPED) {
    console.log(`      ${stdout.trim()}`);
    return undefined;
  }
  assert.equal(status, 0, `${stdout}${stderr}`);
  return digestsOf(stdout);
}

describe("the check of kernels without Node.js", () => {
  it("finds every instruction set of this machine to agree with the portable kernels", function () {
    this.timeout(300_000);
    const digests = check([], "300");
    if (digests === undefined) this.skip();
    assert.ok(digests.has("portable"));
  });

  it("finds NEON, emulated, to agree with the portable kernels and to give the bits of AVX2", function () {
    this.timeout(600_000);
    const arm64 = check(["--arm64"], CASES);
    if (arm64 === undefined) this.skip();
    const neon = arm64.get("neon");
    assert.ok(neon !== undefined);
    const avx2 = check([], CASES)?.get("avx2");
    for (const [kernel, digest] of neon) {
      // Either may do without a kernel of its own.
      const other = avx2?.get(kernel) ?? digest;
      assert.equal(digest, other, kernel);
    }
  });
});
