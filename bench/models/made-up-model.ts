/**
 * A GGUF file of a shape with made-up weights, which shardloom and llama.cpp both load. The same shape, weights and seed
 * give the same bytes.
 */
import { type GgufTensor, type GgufValue, writeGguf } from "./gguf-writer.js";
import { layerMatrices, type ModelShape, weightCounts } from "./shapes.js";
import { bytesOfElements, seededRandom, type WeightType, type WeightTypeName, weightType } from "./weight-types.js";

/** Types of a model's matrices, in its file. */
export interface WeightMix {
  readonly name: string;
  readonly layers: WeightTypeName;
  /** Of the embeddings, which are the output head as well where a model ties them. */
  readonly head: WeightTypeName;
}

/** `Q4_0+Q6_K` is what llama-quantize makes of "Q4_0"; the others are of one type throughout, as its `--pure` does. */
export const WEIGHT_MIXES: readonly WeightMix[] = [
  { name: "BF16", layers: "BF16", head: "BF16" },
  { name: "F16", layers: "F16", head: "F16" },
  { name: "Q4_0", layers: "Q4_0", head: "Q4_0" },
  { name: "Q4_1", layers: "Q4_1", head: "Q4_1" },
  { name: "Q8_0", layers: "Q8_0", head: "Q8_0" },
  { name: "Q4_0+Q6_K", layers: "Q4_0", head: "Q6_K" },
];

/** The mix of a name. Throws an Error for one that is none. */
export function madeUpMix(name: string): WeightMix {
  const mix = WEIGHT_MIXES.find((candidate) => candidate.name === name);
  if (mix === undefined) throw new Error(`expected the name of a mix of weights but received ${name}`);
  return mix;
}

const SEED = 20_260_101;
/** Blocks are made once and repeat; a prime number of them, so that rows of no matrix are alike. */
const POOL_BLOCKS: ReadonlyMap<number, number> = new Map([
  [1, 1_048_573],
  [32, 65_521],
  [256, 8191],
]);

/** Bytes of weights in `mix` that a pass over one token reads. */
export function weightBytesPerToken(shape: ModelShape, mix: WeightMix): number {
  const { layers, head } = weightCounts(shape);
  return bytesOfElements(weightType(mix.layers), layers) + bytesOfElements(weightType(mix.head), head);
}

/** Writes the file. */
export function writeMadeUpModel(path: string, shape: ModelShape, mix: WeightMix): void {
  writeGguf(path, metadataOf(shape), tensorsOf(shape, mix));
}

function tensorsOf(shape: ModelShape, mix: WeightMix): GgufTensor[] {
  const layerPool = createPool(weightType(mix.layers));
  const headPool = createPool(weightType(mix.head));
  const head = { outputs: shape.vocabulary, inputs: shape.hidden };
  const tensors = [matrix({ name: "token_embd.weight", ...head }, headPool)];
  for (let layer = 0; layer < shape.layers; layer++) {
    tensors.push(ones(`blk.${layer}.attn_norm.weight`, shape.hidden));
    tensors.push(ones(`blk.${layer}.ffn_norm.weight`, shape.hidden));
    for (const extents of layerMatrices(shape, layer)) tensors.push(matrix(extents, layerPool));
  }
  tensors.push(ones("output_norm.weight", shape.hidden));
  if (!shape.tied) tensors.push(matrix({ name: "output.weight", ...head }, headPool));
  return tensors;
}

/** Blocks of one type that tensors are cut from, one after the other. */
interface Pool {
  readonly type: WeightType;
  readonly bytes: Uint8Array;
  /** Byte where the next tensor starts. */
  next: number;
}

function createPool(type: WeightType): Pool {
  const blocks = POOL_BLOCKS.get(type.blockElements) ?? 8191;
  const bytes = new Uint8Array(blocks * type.blockBytes);
  const view = new DataView(bytes.buffer);
  const random = seededRandom(SEED + type.ggmlType);
  for (let at = 0; at < bytes.length; at += type.blockBytes) type.fill(view, at, random);
  return { type, bytes, next: 0 };
}

function matrix(
  { name, outputs, inputs }: { readonly name: string; readonly outputs: number; readonly inputs: number },
  pool: Pool,
): GgufTensor {
  const { type } = pool;
  if (inputs % type.blockElements !== 0) {
    throw new RangeError(`${name}: expected inputs in whole blocks of ${type.name} but received ${inputs}`);
  }
  const bytes = bytesOfElements(type, outputs * inputs);
  return { name, dimensions: [inputs, outputs], ggmlType: type.ggmlType, bytes, data: () => cut(pool, bytes) };
}

function* cut(pool: Pool, bytes: number): Generator<Uint8Array> {
  for (let left = bytes; left > 0; ) {
    const piece = pool.bytes.subarray(pool.next, pool.next + left);
    yield piece;
    left -= piece.length;
    pool.next = (pool.next + piece.length) % pool.bytes.length;
  }
}

/** A norm's weights: f32, all 1. */
function ones(name: string, count: number): GgufTensor {
  const values = new Float32Array(count).fill(1);
  const data = new Uint8Array(values.buffer);
  return { name, dimensions: [count], ggmlType: 0, bytes: data.length, data: () => [data] };
}

function metadataOf(shape: ModelShape): Map<string, GgufValue> {
  const u32 = (value: number): GgufValue => ({ type: "u32", value });
  const f32 = (value: number): GgufValue => ({ type: "f32", value });
  const text = (value: string): GgufValue => ({ type: "string", value });
  const { tokens, kinds, merges } = vocabularyOf(shape.vocabulary);
  return new Map<string, GgufValue>([
    ["general.architecture", text("llama")],
    ["general.name", text(`${shape.name}, made up`)],
    ["llama.block_count", u32(shape.layers)],
    ["llama.context_length", u32(shape.contextLength)],
    ["llama.embedding_length", u32(shape.hidden)],
    ["llama.feed_forward_length", u32(shape.intermediate)],
    ["llama.attention.head_count", u32(shape.heads)],
    ["llama.attention.head_count_kv", u32(shape.kvHeads)],
    ["llama.attention.key_length", u32(shape.headSize)],
    ["llama.attention.value_length", u32(shape.headSize)],
    ["llama.attention.layer_norm_rms_epsilon", f32(1e-5)],
    ["llama.rope.dimension_count", u32(shape.headSize)],
    ["llama.rope.freq_base", f32(shape.ropeTheta)],
    ["llama.vocab_size", u32(shape.vocabulary)],
    ["tokenizer.ggml.model", text("gpt2")],
    ["tokenizer.ggml.pre", text("llama-bpe")],
    ["tokenizer.ggml.tokens", { type: "strings", values: tokens }],
    ["tokenizer.ggml.token_type", { type: "i32s", values: kinds }],
    ["tokenizer.ggml.merges", { type: "strings", values: merges }],
    ["tokenizer.ggml.bos_token_id", u32(shape.vocabulary - 2)],
    ["tokenizer.ggml.eos_token_id", u32(shape.vocabulary - 1)],
    ["tokenizer.ggml.add_bos_token", { type: "bool", value: false }],
  ]);
}

const NORMAL = 1;
const CONTROL = 3;

/**
 * A byte-level vocabulary of the size: all bytes, one merge (llama.cpp wants a list of them), made-up words, and a
 * beginning and an end of text. Benches speak in token ids.
 */
function vocabularyOf(size: number): { tokens: string[]; kinds: number[]; merges: string[] } {
  const tokens = [...byteCharacters(), "\u0120t"];
  while (tokens.length < size - 2) tokens.push(`word${tokens.length}`);
  tokens.push("<|begin_of_text|>", "<|end_of_text|>");
  return { tokens, kinds: tokens.map((_, id) => (id < size - 2 ? NORMAL : CONTROL)), merges: ["\u0120 t"] };
}

/** The character that stands for each byte in byte-level BPE: `bytes_to_unicode` of GPT-2. */
function byteCharacters(): string[] {
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    return String.fromCodePoint(printable ? byte : next++);
  });
}
