/**
 * A file format for tests of the conformance kit, and a model loader for it: "NIB1", the length of a JSON header in four
 * bytes, the header (`config`, and `tensors` with name, dtype, shape and offset), and what the tensors hold.
 */
import { existsSync, writeFileSync } from "node:fs";
import {
  type Checkpoint,
  CheckpointError,
  type CheckpointTensor,
  type DType,
  dtypeBytes,
  elementCount,
  isJsonObject,
  type JsonObject,
  type ModelDescription,
  type ModelLoader,
  parseJsonObject,
  RandomAccessFile,
} from "../../../src/plugin.js";
import { tensorBytes } from "./nibbles.js";

const MAGIC = "NIB1";
const START_BYTES = 8;
const DTYPES: readonly string[] = ["f32", "u8"];

export function writeNibFile(path: string, config: JsonObject, tensors: Iterable<CheckpointTensor>): void {
  const contents: Uint8Array[] = [];
  let offset = 0;
  const listed = [...tensors].map((tensor) => {
    const bytes = tensorBytes(tensor);
    contents.push(bytes);
    offset += bytes.length;
    return { name: tensor.name, dtype: tensor.dtype, shape: tensor.shape, offset: offset - bytes.length };
  });
  const header = Buffer.from(JSON.stringify({ config, tensors: listed }));
  const start = Buffer.alloc(START_BYTES);
  start.write(MAGIC, "latin1");
  start.writeUInt32LE(header.length, MAGIC.length);
  writeFileSync(path, Buffer.concat([start, header, ...contents]));
}

interface Header {
  readonly config: JsonObject;
  readonly tensors: readonly JsonObject[];
  /** Where the tensors begin. */
  readonly dataStart: number;
}

export class NibLoader implements ModelLoader {
  readonly format = "nib";

  matches(path: string): boolean {
    return path.endsWith(".nib") && existsSync(path);
  }

  async describe(path: string): Promise<ModelDescription> {
    const file = RandomAccessFile.open(path);
    try {
      return this.description(this.readHeader(file).config);
    } finally {
      file.close();
    }
  }

  protected description(config: JsonObject): ModelDescription {
    return { config, generationConfig: null, tokenizer: null, chatTemplate: null };
  }

  async open(path: string): Promise<Checkpoint> {
    const file = RandomAccessFile.open(path);
    try {
      const { tensors, dataStart } = this.readHeader(file);
      const found = tensors.map((entry) => this.tensorOf(file, entry, dataStart));
      return this.checkpointOf(file, new Map(found.map((tensor) => [tensor.name, tensor])));
    } catch (error) {
      file.close();
      throw error;
    }
  }

  protected checkpointOf(file: RandomAccessFile, tensors: ReadonlyMap<string, CheckpointTensor>): Checkpoint {
    return { tensors, bytesRead: 0, close: () => this.close(file) };
  }

  protected close(file: RandomAccessFile): void {
    file.close();
  }

  protected readHeader(file: RandomAccessFile): Header {
    if (file.sizeBytes < START_BYTES) throw damaged(file, `at least ${START_BYTES} bytes`, `${file.sizeBytes}`);
    const start = Buffer.alloc(START_BYTES);
    file.read(start, 0);
    const magic = start.toString("latin1", 0, MAGIC.length);
    const length = start.readUInt32LE(MAGIC.length);
    if (magic !== MAGIC) throw damaged(file, MAGIC, JSON.stringify(magic));
    if (START_BYTES + length > file.sizeBytes) throw damaged(file, `a header of ${length} bytes`, "fewer");
    const bytes = new Uint8Array(length);
    file.read(bytes, START_BYTES);
    const { config = null, tensors } = parseJsonObject(new TextDecoder().decode(bytes), file.path);
    if (!isJsonObject(config)) throw damaged(file, "a config", typeof config);
    if (!Array.isArray(tensors) || !tensors.every(isJsonObject))
      throw damaged(file, "a list of tensors", typeof tensors);
    return { config, tensors, dataStart: START_BYTES + length };
  }

  protected tensorOf(file: RandomAccessFile, entry: JsonObject, dataStart: number): CheckpointTensor {
    const { name, dtype, shape, offset } = entry;
    const known = typeof name === "string" && isKnown(dtype) && isShape(shape);
    if (!known || typeof offset !== "number" || !Number.isInteger(offset) || offset < 0) {
      throw damaged(file, "name, dtype, shape and offset of a tensor", JSON.stringify(entry));
    }
    const sizeBytes = elementCount(shape) * dtypeBytes(dtype);
    const position = dataStart + offset;
    this.checkEnd(file, name, position + sizeBytes);
    return {
      name,
      dtype,
      shape,
      file: file.path,
      read: (destination, byteOffset) => {
        if (byteOffset < 0 || byteOffset + destination.length > sizeBytes) {
          throw new RangeError(`${name}: outside its ${sizeBytes} bytes`);
        }
        this.readTensor(file, destination, position, byteOffset);
      },
    };
  }

  protected checkEnd(file: RandomAccessFile, tensor: string, end: number): void {
    if (Number.isSafeInteger(end) && end <= file.sizeBytes) return;
    throw damaged(file, `${tensor} to end inside the file`, `byte ${end} of ${file.sizeBytes}`);
  }

  protected readTensor(file: RandomAccessFile, destination: Uint8Array, position: number, byteOffset: number): void {
    file.read(destination, position + byteOffset);
  }
}

function isKnown(dtype: unknown): dtype is DType {
  return typeof dtype === "string" && DTYPES.includes(dtype);
}

function isShape(shape: unknown): shape is number[] {
  return Array.isArray(shape) && shape.every((extent) => Number.isInteger(extent) && extent >= 0);
}

function damaged({ path }: RandomAccessFile, expected: string, received: string): CheckpointError {
  return new CheckpointError("INVALID_HEADER", `${path}: expected ${expected} but received ${received}`, {
    file: path,
    expected,
    received,
  });
}
