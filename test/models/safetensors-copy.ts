/** A model in any format as a Hugging Face directory: what transformers would have been given. */
import { closeSync, mkdirSync, openSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import type { CheckpointTensor } from "../../src/checkpoint/checkpoint.js";
import { convertFloats, dtypeBytes, type FloatDType, isFloat } from "../../src/core/dtype.js";
import { elementCount } from "../../src/core/tensor.js";
import type { ModelDescription, ModelLoader } from "../../src/loading/model-loader.js";
import { tokenizerJson } from "../../src/loading/tokenizer-files.js";

/** Elements converted at a time. */
const CHUNK_ELEMENTS = 1024 * 1024;

const NAMES: Readonly<Record<FloatDType, { readonly tensor: string; readonly config: string }>> = {
  f32: { tensor: "F32", config: "float32" },
  f16: { tensor: "F16", config: "float16" },
  bf16: { tensor: "BF16", config: "bfloat16" },
};

/** Writes the model at `path` into `directory` with all of its weights rounded to `dtype`, and no word of quantization. */
export async function copyAsSafetensors(
  loader: ModelLoader,
  path: string,
  directory: string,
  dtype: FloatDType,
): Promise<void> {
  mkdirSync(directory, { recursive: true });
  writeDescription(await loader.describe(path), directory, dtype);
  const checkpoint = await loader.open(path);
  try {
    writeTensors([...checkpoint.tensors.values()], join(directory, "model.safetensors"), dtype);
  } finally {
    checkpoint.close();
  }
}

function writeDescription(description: ModelDescription, directory: string, dtype: FloatDType): void {
  const write = (name: string, value: unknown): void => writeFileSync(join(directory, name), JSON.stringify(value));
  const { quantization_config: _, ...config } = description.config;
  write("config.json", { ...config, torch_dtype: NAMES[dtype].config });
  if (description.generationConfig !== null) write("generation_config.json", description.generationConfig);
  if (description.tokenizer !== null) {
    write("tokenizer.json", tokenizerJson(description.tokenizer));
    write("tokenizer_config.json", description.tokenizer.config);
  }
  if (description.chatTemplate !== null) {
    writeFileSync(join(directory, "chat_template.jinja"), description.chatTemplate);
  }
}

function writeTensors(tensors: readonly CheckpointTensor[], file: string, dtype: FloatDType): void {
  const header: Record<string, unknown> = {};
  let offset = 0;
  for (const { name, shape } of tensors) {
    const end = offset + elementCount(shape) * dtypeBytes(dtype);
    header[name] = { dtype: NAMES[dtype].tensor, shape, data_offsets: [offset, end] };
    offset = end;
  }
  const text = Buffer.from(JSON.stringify(header));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  const descriptor = openSync(file, "w");
  try {
    writeSync(descriptor, Buffer.concat([length, text]));
    for (const tensor of tensors) writeRounded(descriptor, tensor, dtype);
  } finally {
    closeSync(descriptor);
  }
}

function writeRounded(descriptor: number, tensor: CheckpointTensor, to: FloatDType): void {
  const { name, dtype: from, shape } = tensor;
  if (!isFloat(from)) throw new Error(`${name}: expected floats but it holds ${from}`);
  const count = elementCount(shape);
  for (let first = 0; first < count; first += CHUNK_ELEMENTS) {
    const elements = Math.min(CHUNK_ELEMENTS, count - first);
    const read = new Uint8Array(elements * dtypeBytes(from));
    tensor.read(read, first * dtypeBytes(from));
    const rounded = new Uint8Array(elements * dtypeBytes(to));
    convertFloats(read, from, rounded, to, name);
    writeSync(descriptor, rounded);
  }
}
