import assert from "node:assert/strict";
import fc from "fast-check";
import { setMembers } from "../../src/checkpoint/json-members.js";

const set = (text: string, values: Readonly<Record<string, string>>): string =>
  setMembers(text, new Map(Object.entries(values)));

describe("setting members of a JSON text", () => {
  it("adds behind the last one, indented as the others are, and leaves the rest as it is to the byte", () => {
    const text = '{\n "threshold": 6.0,\n "list": [1,\n  2 ],\n "name": "a,}\\"]"\n}\n';
    const expected = `${text.slice(0, -3)},\n "added": {\n  "x": [\n   1\n  ]\n }\n}\n`;
    assert.equal(set(text, { added: JSON.stringify({ x: [1] }, null, 2) }), expected);
  });

  it("puts a new value in the place of an old one, and the key where it was", () => {
    const text = '{"a": {"b": [1, {"c": "}"}]} , "b":1e-6,\n"c":null}';
    assert.equal(set(text, { a: "1", c: "2" }), '{"a": 1 , "b":1e-6,\n"c":2}');
  });

  it("knows a key however it is escaped, and no key within values", () => {
    assert.equal(set('{"\\u0061": 1, "b": {"a": 2}}', { a: "3" }), '{"\\u0061": 3, "b": {"a": 2}}');
  });

  for (const text of ["{}", " { } \n", "{\n}\n"]) {
    it(`fills an empty object: ${JSON.stringify(text)}`, () => {
      assert.deepEqual(JSON.parse(set(text, { a: "1", b: "[2]" })), { a: 1, b: [2] });
    });
  }

  it("changes those members and no others, whatever the object and its white space", () => {
    const object = fc.dictionary(fc.string(), fc.jsonValue(), { maxKeys: 6 });
    fc.assert(
      fc.property(object, object, fc.nat(3), fc.boolean(), (before, changes, indent, crlf) => {
        const formatted = JSON.stringify(before, null, indent);
        const text = crlf ? formatted.replaceAll("\n", "\r\n") : formatted;
        const values = new Map(Object.entries(changes).map(([key, value]) => [key, JSON.stringify(value, null, 2)]));
        // Of -0 JSON knows nothing.
        const expected = JSON.parse(JSON.stringify({ ...before, ...changes }));
        const after = JSON.parse(setMembers(text, values));
        assert.deepEqual(after, expected);
        const order = Object.keys(before).filter((key) => !/^\d+$/.test(key));
        assert.deepEqual(
          Object.keys(after)
            .filter((key) => !/^\d+$/.test(key))
            .slice(0, order.length),
          order,
        );
      }),
    );
  });
});
