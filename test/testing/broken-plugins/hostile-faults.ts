/** Plugins that believe what a checkpoint says. */
import { CheckpointError, type CheckpointTensor, type JsonObject, type LinearLayer } from "../../../src/plugin.js";
import { type BrokenPlugin, withConfig } from "./broken-plugin.js";
import { separate } from "./fixtures.js";
import { BLOCK, blocksOf, NibblesConfig, type Shown, type Stored, tensorBytes } from "./nibbles.js";

/** Takes scales that are not there for ones. */
class SwallowingAMissingSidecar extends NibblesConfig {
  protected override check(): void {}

  protected override show(stored: Stored, layer: LinearLayer): Shown {
    if (stored.scales !== null) return super.show(stored, layer);
    const count = stored.outputs * blocksOf(stored.inputs);
    const ones = new Uint8Array(new Float32Array(count).fill(1).buffer);
    const name = `${stored.module}.scales`;
    const shape = [stored.outputs, blocksOf(stored.inputs)];
    const read: CheckpointTensor["read"] = (to, from) => to.set(ones.subarray(from, from + to.length));
    return super.show({ ...stored, scales: { name, dtype: "f32", shape, file: "", read } }, layer);
  }
}

/** Believes that scales are f32, whatever they say. */
class TrustingTheDType extends NibblesConfig {
  protected override check({ codes, ...stored }: Stored): void {
    const { scales } = stored;
    super.check({ ...stored, codes, scales: scales === null ? null : { ...scales, dtype: "f32" } });
  }
}

/** Looks into tensors before it looks at them. */
class CrashingOnAShape extends NibblesConfig {
  protected override check(stored: Stored): void {
    const { scales } = stored;
    if (scales !== null) f32View(tensorBytes(scales));
    super.check(stored);
  }
}

function f32View({ buffer, byteOffset, byteLength }: Uint8Array): Float32Array {
  return new Float32Array(buffer, byteOffset, byteLength / 4);
}

class AcceptingAnyScale extends NibblesConfig {
  protected override checkScales(): void {}
}

/** Reads what there is, and takes the rest for zeros. */
class ReadingOn extends NibblesConfig {
  protected override show(stored: Stored, layer: LinearLayer): Shown {
    const { scales } = stored;
    if (scales === null) return super.show(stored, layer);
    const read: CheckpointTensor["read"] = (to, from) => {
      try {
        scales.read(to, from);
      } catch (error) {
        if (!(error instanceof CheckpointError)) throw error;
        to.fill(0);
      }
    };
    return super.show({ ...stored, scales: { ...scales, read } }, layer);
  }
}

class TrustingSettings extends NibblesConfig {
  protected override readSettings(settings: JsonObject): void {
    // From a file, whatever the type says.
    const { block_size: size }: { readonly block_size?: number } = JSON.parse(JSON.stringify(settings));
    if (size?.toFixed() !== String(BLOCK)) super.readSettings(settings);
  }
}

class LosingWhatItDoesNotKnow extends NibblesConfig {
  protected override listed(tensors: ReadonlyMap<string, CheckpointTensor>): ReadonlyMap<string, CheckpointTensor> {
    return new Map([...tensors].filter(([name]) => !name.includes("surplus")));
  }
}

export const hostileFaults: readonly BrokenPlugin[] = [
  {
    what: "swallows a missing sidecar",
    plugin: withConfig(SwallowingAMissingSidecar),
    fixture: separate,
    caughtBy: "a missing tensor is refused",
    message: /scales taken away: expected an error, or the values it had, but rank 0 loaded other values in silence/,
  },
  {
    what: "takes what is missing of a tensor for zeros",
    plugin: withConfig(ReadingOn),
    fixture: separate,
    caughtBy: "a tensor that ends early is refused",
    message: /scales cut off after \d+ of \d+ bytes: expected an error, or the values it had/,
  },
  {
    what: "crashes on a shape that cannot be",
    plugin: withConfig(CrashingOnAShape),
    fixture: separate,
    caughtBy: "a tensor of another shape is refused",
    message:
      /expected a ShardloomError that says what is wrong but received PluginError PLUGIN_FAILED: .*Invalid typed array length/,
  },
  {
    what: "trusts the dtype of a sidecar",
    plugin: withConfig(TrustingTheDType),
    fixture: separate,
    caughtBy: "a tensor of another dtype is refused",
    message: /scales called \[\d+, \d+\] u8: .* but received RangeError/,
  },
  {
    what: "accepts scales that are no numbers",
    plugin: withConfig(AcceptingAnyScale),
    fixture: separate,
    caughtBy: "a scale that is no number is refused",
    message: /scales given NaN as element 0/,
  },
  {
    what: "trusts its settings",
    plugin: withConfig(TrustingSettings),
    fixture: separate,
    caughtBy: "settings and options that mean nothing are refused",
    message: /^settings with "block_size": "nonsense": expected .* PLUGIN_FAILED: .*toFixed is not a function/,
  },
  {
    what: "loses tensors that it does not know",
    plugin: withConfig(LosingWhatItDoesNotKnow),
    fixture: separate,
    caughtBy: "a tensor that no layer takes is reported",
    message: /expected UNEXPECTED_TENSOR but it was loaded/,
  },
];
