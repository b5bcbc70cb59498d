/** What a plugin's author hands over to have the plugin checked, and how checks get at it. */
import { fileURLToPath } from "node:url";
import type { Checkpoint, CheckpointTensor } from "../checkpoint/checkpoint.js";
import type { JsonObject } from "../core/json.js";
import type { ModelLoader } from "../loading/model-loader.js";
import {
  createRegistries,
  PLUGIN_API_VERSION,
  type Plugin,
  type Registries,
  registerPlugin,
} from "../loading/plugins.js";
import { selectFamily } from "../models/registry.js";
import type { LinearLayer } from "../quantization/contract.js";
import { expectedWeights } from "../rank/expected-weights.js";
import { type ModelOptions, type Preparation, prepare } from "./preparation.js";

/** A model without files. */
export interface MemoryModel {
  /** config.json, `quantization_config` included. */
  readonly config: JsonObject;
  /** Called whenever the checkpoint is opened. */
  tensors(): Iterable<CheckpointTensor>;
}

/** Values that the weight of a module stands for, row-major `[outputs, inputs]`; undefined where they are not known. */
export type ExpectedValues = (weight: string) => Float32Array | undefined;

/** A small model in a plugin's format, and what is known of it. The smaller it is, the faster its checks. */
export interface PluginFixture {
  /** Begins the names of its checks. */
  readonly name: string;
  /** Path of a model, or a model in memory; see `modelInFormat`. A supported family's, as its layers are made. */
  readonly model: string | MemoryModel;
  /** Name of the model loader; by default the first that recognizes the path. */
  readonly loadFormat?: string | undefined;
  /** What a user says to have the model quantized while it is loaded. */
  readonly quantization?: string | undefined;
  readonly quantizationOptions?: JsonObject | undefined;
  /** What another implementation of the format makes of its weights. Without it, ranks are only compared with one another. */
  readonly expected?: ExpectedValues | undefined;
  /**
   * Rows and columns at whose multiples the format can be cut; 1 by default: anywhere. It may refuse other cuts with a
   * ShardloomError, or serve them; what it may not is to serve them wrong.
   */
  readonly cutsAt?: { readonly outputs?: number; readonly inputs?: number } | undefined;
  /** Kinds of layers that the format does not serve, or of which the model has none. */
  readonly skip?: readonly LinearLayer["kind"][] | undefined;
  /** Tensors of floats, scales say, in which NaN and infinity must be refused; none by default. */
  readonly finite?: ((tensor: string) => boolean) | undefined;
  /**
   * How far a product may be from the exact one of the dequantized weights, in parts of sum |x w| + |bias|. By default what
   * summing in f32 may lose; more for a method that rounds activations.
   */
  readonly applyTolerance?: number | undefined;
  /** How far logits at several ranks may be from those at one, in parts of the largest logit. Default 1e-4. */
  readonly logitsTolerance?: number | undefined;
}

const MEMORY_FORMAT = "conformance-memory";
/** Some file that is there: models in memory have none, and models are found by a path. */
const ANY_FILE = fileURLToPath(import.meta.url);

/** A fixture with the plugin that is to serve it. */
export class Subject {
  readonly plugin: Plugin;
  readonly fixture: PluginFixture;
  readonly cutsAt: { readonly outputs: number; readonly inputs: number };
  /** Path of the model; null where it has none. */
  readonly path: string | null;
  /** Whether the plugin's own model loader reads the model. */
  readonly ownsLoader: boolean;

  constructor(plugin: Plugin, fixture: PluginFixture) {
    this.plugin = plugin;
    this.fixture = fixture;
    const { outputs = 1, inputs = 1 } = fixture.cutsAt ?? {};
    this.cutsAt = { outputs, inputs };
    this.path = typeof fixture.model === "string" ? fixture.model : null;
    this.ownsLoader = this.path !== null && ownsLoader(plugin, this.path, fixture.loadFormat);
  }

  get name(): string {
    return this.fixture.name;
  }

  /** What the simulator is told; `path` for a copy of the model elsewhere. */
  options(worldSize: number, path = this.path): ModelOptions {
    const { fixture, plugin } = this;
    const { quantization, quantizationOptions } = fixture;
    const common = { worldSize, quantization, quantizationOptions };
    if (typeof fixture.model === "string") {
      return { ...common, model: path ?? fixture.model, loadFormat: fixture.loadFormat, plugins: [plugin] };
    }
    const memory = memoryPlugin(fixture.model);
    return { ...common, model: ANY_FILE, loadFormat: MEMORY_FORMAT, plugins: [plugin, memory] };
  }

  /** A group of ranks with registries of its own, as far as it goes without loading. */
  prepare(worldSize: number, path = this.path): Promise<Preparation> {
    return prepare(this.options(worldSize, path));
  }

  skips(kind: LinearLayer["kind"]): boolean {
    return this.fixture.skip?.includes(kind) ?? false;
  }
}

/** The model's loader, of the plugin or not. */
export function loaderOf({ ranks, registries }: Preparation): ModelLoader {
  return registries.modelLoaders.select(ranks.path, ranks.loadFormat);
}

/** Opens the checkpoint as a rank does. Whoever opens it closes it. */
export function openCheckpoint(preparation: Preparation): Promise<Checkpoint> {
  const { path, description } = preparation.ranks;
  const { config } = description;
  return loaderOf(preparation).open(path, expectedWeights(selectFamily(config), config, preparation.seed));
}

/** Names that a plugin has registered, of everything it can register. */
export function formatsOf({ modelLoaders, quantization, checkpointQuantizers }: Registries): readonly string[] {
  const own = createRegistries();
  return [
    ...modelLoaders.formats.filter((name) => !own.modelLoaders.formats.includes(name)).map((name) => `loader ${name}`),
    ...quantization.names
      .filter((name) => !own.quantization.names.includes(name))
      .map((name) => `quantization ${name}`),
    ...checkpointQuantizers.formats.map((name) => `quantizer ${name}`),
  ];
}

/** A plugin that cannot even register owns nothing; the checks of registration say why. */
function ownsLoader(plugin: Plugin, path: string, loadFormat: string | undefined): boolean {
  const registries = createRegistries();
  try {
    registerPlugin(registries, plugin);
    const { format } = registries.modelLoaders.select(path, loadFormat);
    return !createRegistries().modelLoaders.formats.includes(format);
  } catch {
    return false;
  }
}

function memoryPlugin(model: MemoryModel): Plugin {
  const loader: ModelLoader = {
    format: MEMORY_FORMAT,
    matches: () => false,
    describe: async () => ({
      config: structuredClone(model.config),
      generationConfig: null,
      tokenizer: null,
      chatTemplate: null,
    }),
    open: async () => memoryCheckpoint(model),
  };
  return {
    name: "a model in memory",
    apiVersion: PLUGIN_API_VERSION,
    register: ({ registerModelLoader }) => registerModelLoader(loader),
  };
}

/** Tensors are wrapped anew each time, as those of files are: whoever keeps one keeps something of this checkpoint. */
function memoryCheckpoint(model: MemoryModel): Checkpoint {
  let bytesRead = 0;
  const tensors = [...model.tensors()].map((tensor): [string, CheckpointTensor] => {
    const { name, dtype, shape, file } = tensor;
    const read: CheckpointTensor["read"] = (destination, byteOffset) => {
      tensor.read(destination, byteOffset);
      bytesRead += destination.length;
    };
    return [name, { name, dtype, shape, file, read }];
  });
  return {
    tensors: new Map(tensors),
    get bytesRead() {
      return bytesRead;
    },
    close: () => undefined,
  };
}
