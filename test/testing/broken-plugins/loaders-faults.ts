/** Model loaders that are wrong. */
import type {
  Checkpoint,
  CheckpointTensor,
  JsonObject,
  ModelDescription,
  RandomAccessFile,
} from "../../../src/plugin.js";
import { type BrokenPlugin, withLoader } from "./broken-plugin.js";
import { NibLoader } from "./nib-file.js";
import { tensorBytes } from "./nibbles.js";

class KeepingFilesOpen extends NibLoader {
  protected override close(): void {}
}

class LeakingFromDescribe extends NibLoader {
  readonly opened: RandomAccessFile[] = [];

  protected override readHeader(file: RandomAccessFile) {
    try {
      return super.readHeader(file);
    } catch (error) {
      // Opened again to look for another version, and forgotten.
      this.opened.push(reopened(file));
      throw error;
    }
  }
}

function reopened(file: RandomAccessFile): RandomAccessFile {
  const again = Object.getPrototypeOf(file).constructor;
  return again.open(file.path);
}

class DescribingWithUndefined extends NibLoader {
  protected override description(config: JsonObject): ModelDescription {
    return { ...super.description(config), config: Object.assign({ ...config }, { bos_token_id: undefined }) };
  }
}

class DescribingTheTime extends NibLoader {
  #calls = 0;

  protected override description(config: JsonObject): ModelDescription {
    return super.description({ ...config, loaded_before: this.#calls++ });
  }
}

class MatchingAnything extends NibLoader {
  override matches(): boolean {
    return true;
  }
}

/** Reads whole words only. */
class ReadingAligned extends NibLoader {
  protected override readTensor(file: RandomAccessFile, to: Uint8Array, position: number, byteOffset: number): void {
    super.readTensor(file, to, position, byteOffset - (byteOffset % 4));
  }
}

/** Decodes its cache in place: what is read whole for the third time is another. */
class DecodingInPlace extends NibLoader {
  protected override tensorOf(file: RandomAccessFile, entry: JsonObject, dataStart: number): CheckpointTensor {
    const tensor = super.tensorOf(file, entry, dataStart);
    const sizeBytes = tensorBytes(tensor).length;
    let reads = 0;
    return {
      ...tensor,
      read(to, from) {
        tensor.read(to, from);
        if (to.length === sizeBytes) reads++;
        const [first] = to;
        if (reads > 2 && first !== undefined) to[0] = first ^ 0xff;
      },
    };
  }
}

/** Takes what a file has not for zeros. */
class FillingUpFiles extends NibLoader {
  protected override checkEnd(): void {}

  protected override readTensor(file: RandomAccessFile, to: Uint8Array, position: number, byteOffset: number): void {
    const start = Math.min(position + byteOffset, file.sizeBytes);
    const end = Math.min(start + to.length, file.sizeBytes);
    to.fill(0);
    file.read(to.subarray(0, end - start), start);
  }
}

class BelievingTheHeader extends NibLoader {
  protected override readHeader(file: RandomAccessFile) {
    const start = Buffer.alloc(8);
    file.read(start, 0);
    const bytes = Buffer.alloc(start.readUInt32LE(4));
    file.read(bytes, 8);
    const { config, tensors } = JSON.parse(bytes.toString());
    return { config, tensors, dataStart: 8 + bytes.length };
  }
}

class ReadingAfterClose extends NibLoader {
  protected override checkpointOf(file: RandomAccessFile, tensors: ReadonlyMap<string, CheckpointTensor>): Checkpoint {
    const cached = [...tensors.values()].map((tensor): [string, CheckpointTensor] => {
      const bytes = tensorBytes(tensor);
      const read: CheckpointTensor["read"] = (to, from) => {
        if (from < 0 || from + to.length > bytes.length) throw new RangeError(`${tensor.name}: outside`);
        to.set(bytes.subarray(from, from + to.length));
      };
      return [tensor.name, { ...tensor, read }];
    });
    return super.checkpointOf(file, new Map(cached));
  }
}

export const loadersFaults: readonly BrokenPlugin[] = [
  {
    what: "keeps files open",
    plugin: withLoader(new KeepingFilesOpen()),
    fixture: "file",
    caughtBy: "no file is left open",
    message: /expected no file open but \d+ still are/,
  },
  {
    what: "leaves a file open when it is damaged",
    plugin: withLoader(new LeakingFromDescribe()),
    fixture: "file",
    caughtBy: "a file that ends early is refused",
    message: /expected no file open but \d+ still are/,
  },
  {
    what: "describes models with what JSON has not",
    plugin: withLoader(new DescribingWithUndefined()),
    fixture: "file",
    caughtBy: "the description is JSON, the same every time",
    message: /expected plain JSON but description\.config\.bos_token_id differs/,
  },
  {
    what: "describes a model otherwise each time",
    plugin: withLoader(new DescribingTheTime()),
    fixture: "file",
    caughtBy: "the description is JSON, the same every time",
    message: /described again: expected the same but description\.config\.loaded_before differs/,
  },
  {
    what: "recognizes anything",
    plugin: withLoader(new MatchingAnything()),
    fixture: "file",
    caughtBy: "the loader recognizes the model and nothing else",
    message: /nothing-is-here\): expected false but received true/,
  },
  {
    what: "reads from multiples of four bytes only",
    plugin: withLoader(new ReadingAligned()),
    fixture: "file",
    caughtBy: "any range of a tensor reads as that part of the whole",
    message: /read from byte \d+ on, \d+ bytes: byte \d+: expected \d+, as in the whole, but received \d+/,
  },
  {
    what: "changes its cache by reading it",
    plugin: withLoader(new DecodingInPlace()),
    fixture: "file",
    caughtBy: "tensors read the same after loading as before",
    message: /expected the same bytes as before loading/,
  },
  {
    what: "reads on after it was closed",
    plugin: withLoader(new ReadingAfterClose()),
    fixture: "file",
    caughtBy: "a checkpoint that was closed is not read from",
    message: /expected a ShardloomError but it was read/,
  },
  {
    what: "takes what a file has not for zeros",
    plugin: withLoader(new FillingUpFiles()),
    fixture: "file",
    caughtBy: "a file that ends early is refused",
    message: /model\.nib cut off after \d+ of \d+ bytes: expected a ShardloomError but it was read without one/,
  },
  {
    what: "believes its header",
    plugin: withLoader(new BelievingTheHeader()),
    fixture: "file",
    caughtBy: "a damaged file is refused or read, and nothing else",
    message:
      /model\.nib with byte \d+ set to \d+ \(a ShardloomError is right\): expected no error but received SyntaxError/,
  },
];
