import assert from "node:assert/strict";
import fc from "fast-check";
import { findDuplicateKey } from "../../src/checkpoint/duplicate-keys.js";

describe("duplicate keys in JSON", () => {
  const cases: readonly (readonly [string, string | null, string])[] = [
    [`{"a":1,"a":2}`, "a", "are found at the top"],
    [`{"x":[{"b":{"a":1,"a":2}}]}`, "a", "are found at any depth, inside arrays too"],
    [`{"a":1,"\\u0061":2}`, "a", "are found when one of them is escaped"],
    [`{"\\ud83d\\ude00":1,"😀":2}`, "😀", "are found beyond the basic plane"],
    [`{"\\"":1,"\\u0022":2}`, '"', "are found when they are quotes themselves"],
    [`{"a":1, "b":2,\n"a"\t:3}`, "a", "are found with white space before the colon"],
    [`{"__proto__":1,"__proto__":2}`, "__proto__", "are found for names that objects inherit"],
    [`{"":1,"":2}`, "", "are found for the empty name"],
    [`{"a":"a","b":"a","c":["a","a"]}`, null, "are not seen in values"],
    [`{"a":{"a":{"a":1}}}`, null, "are not seen across nested objects"],
    [`[{"a":1},{"a":1}]`, null, "are not seen across the objects of an array"],
    [`{"a":"{\\"a\\":1,\\"a\\":2}"}`, null, "are not seen inside strings"],
    [`{"a\\\\":1,"a":2}`, null, "are not seen where a backslash ends a key"],
  ];
  for (const [text, expected, behaviour] of cases) {
    it(`${behaviour}: ${text.replaceAll("\n", " ")}`, () => {
      assert.doesNotThrow(() => JSON.parse(text));
      assert.equal(findDuplicateKey(text), expected);
    });
  }

  it("are never reported for what JSON.stringify wrote", () => {
    fc.assert(
      fc.property(fc.jsonValue(), fc.nat(3), (value, indent) => {
        assert.equal(findDuplicateKey(JSON.stringify(value, null, indent)), null);
      }),
    );
  });

  it("are reported for any key that is written twice, however it is escaped", () => {
    const escaped = (key: string): string =>
      `"${[...Array(key.length).keys()].map((i) => `\\u${key.charCodeAt(i).toString(16).padStart(4, "0")}`).join("")}"`;
    fc.assert(
      fc.property(fc.string({ unit: "binary" }), fc.dictionary(fc.string(), fc.jsonValue()), (key, others) => {
        const middle = Object.entries(others)
          .filter(([other]) => other !== key)
          .map(([other, value]) => `${JSON.stringify(other)}:${JSON.stringify(value)},`);
        assert.equal(findDuplicateKey(`{${JSON.stringify(key)}:1,${middle.join("")}${escaped(key)}:2}`), key);
      }),
    );
  });

  it("are looked for without recursion, so that deep nesting cannot exhaust the stack", () => {
    const depth = 200_000;
    assert.equal(findDuplicateKey(`${'{"a":['.repeat(depth)}${"]}".repeat(depth)}`), null);
  });
});
