/**
 * The faults of one rank, applied where a rank meets others (collectives), its weights (checkpoint tensors) and memory
 * (allocators). How a rank hangs or dies is left to effects: a thread does so, ranks that take turns pretend to.
 */
import type { Checkpoint, CheckpointTensor } from "../checkpoint/checkpoint.js";
import { shortRead } from "../checkpoint/random-access-file.js";
import type { Collective, CollectiveRequest } from "../collectives/collective.js";
import { payloadOf } from "../collectives/payload.js";
import { forSite } from "../collectives/request.js";
import { type ResultExtent, resultOf } from "../collectives/verified.js";
import type { TensorAllocator } from "../core/arena.js";
import { type DType, dtypeBytes, type FloatDType, isFloat } from "../core/dtype.js";
import { type ErrorDetails, RankError, ShardloomError } from "../core/errors.js";
import { elementCount, isVirtual } from "../core/tensor.js";
import type { AllocatorFactory } from "../layers/model-memory.js";
import {
  type CollectiveFault,
  type CorruptValue,
  type FaultAnywhere,
  type FaultSchedule,
  isCollectiveFault,
  type TensorFault,
} from "./faults.js";

/** Where a rank is when a fault happens. */
export type FaultStage = "load" | "step";

/** How faults come true that are not a matter of this rank's own code. */
export interface FaultEffects {
  /** The rank goes on after so long: never, if that is infinite. */
  pause(durationMs: number, stage: FaultStage): void;
  exit(exitCode: number): never;
  /** Fills the heap of the thread. */
  exhaustHeap(): never;
}

/** Where a fault happens, for its error. */
interface FaultScene {
  readonly stage: FaultStage;
  readonly place: string;
  readonly details: ErrorDetails;
}

export class RankFaults {
  readonly #rank: number;
  readonly #effects: FaultEffects;
  readonly #atCollective: readonly CollectiveFault[];
  readonly #atTensor: readonly TensorFault[];
  /** Collectives that the rank has begun. */
  #collectives = 0;
  #allocations = 0;

  constructor(faults: FaultSchedule, rank: number, effects: FaultEffects) {
    const own = faults.filter((fault) => fault.rank === rank);
    this.#rank = rank;
    this.#effects = effects;
    this.#atCollective = own.filter(isCollectiveFault);
    this.#atTensor = own.filter((fault): fault is TensorFault => !isCollectiveFault(fault));
  }

  /** To be called when the rank is about to take part in a collective. */
  before(request: CollectiveRequest): void {
    this.#collectives++;
    for (const fault of this.#atCollective) {
      if (fault.collective !== this.#collectives) continue;
      if (fault.kind === "corrupt") {
        if (fault.payload === "sent") corrupt(contributionOf(request, this.#rank), fault.element, fault.value);
        continue;
      }
      const { collective } = fault;
      const { kind, site = "" } = request;
      const place = `collective ${collective} (${kind}${forSite(site)})`;
      this.#happen(fault, { stage: "step", place, details: { collective, site } });
    }
  }

  /** To be called when the collective has been carried out. */
  after(request: CollectiveRequest): void {
    for (const fault of this.#atCollective) {
      if (fault.collective !== this.#collectives || fault.kind !== "corrupt" || fault.payload !== "received") continue;
      corrupt(resultOf(request), fault.element, fault.value);
    }
  }

  /** The rank's end of a group, with the faults of its collectives. */
  collective(sound: Collective): Collective {
    return {
      rank: sound.rank,
      worldSize: sound.worldSize,
      execute: (request) => {
        this.before(request);
        sound.execute(request);
        this.after(request);
      },
      abort: () => sound.abort(),
    };
  }

  /** The rank's view of a checkpoint. */
  checkpoint(opened: Checkpoint): Checkpoint {
    const tensors = [...opened.tensors.values()].map((tensor, i) => {
      const faults = this.#atTensor.filter(({ tensor: at, kind }) => {
        return kind !== "outOfMemory" && (at === tensor.name || at === i + 1);
      });
      return [tensor.name, faults.length === 0 ? tensor : this.#tensor(tensor, faults)] as const;
    });
    return {
      tensors: new Map(tensors),
      get bytesRead() {
        return opened.bytesRead;
      },
      close: () => opened.close(),
    };
  }

  /** The rank's memory. */
  allocator(sound: AllocatorFactory): AllocatorFactory {
    return (name, chunkBytes) => {
      const inner = sound(name, chunkBytes);
      const allocator: TensorAllocator = {
        allocate: (tensor, dtype, shape) => {
          this.#allocations++;
          this.#checkMemory(tensor, elementCount(shape) * dtypeBytes(dtype));
          return inner.allocate(tensor, dtype, shape);
        },
        get usedBytes() {
          return inner.usedBytes;
        },
      };
      return allocator;
    };
  }

  #checkMemory(tensor: string, sizeBytes: number): void {
    for (const fault of this.#atTensor) {
      if (fault.kind !== "outOfMemory" || (fault.tensor !== tensor && fault.tensor !== this.#allocations)) continue;
      throw new ShardloomError(
        "OUT_OF_MEMORY",
        `rank ${this.#rank}: cannot reserve ${sizeBytes} bytes for ${tensor}: a fault was injected there`,
        { rank: this.#rank, tensor, expected: sizeBytes },
      );
    }
  }

  #tensor(tensor: CheckpointTensor, faults: readonly TensorFault[]): CheckpointTensor {
    let pending = faults;
    const read = (destination: Uint8Array, byteOffset: number): void => {
      const happening = pending;
      if (destination.length > 0) pending = [];
      for (const fault of happening) this.#beforeRead(fault, tensor, destination, byteOffset);
      tensor.read(destination, byteOffset);
      for (const fault of happening) {
        if (fault.kind === "corrupt") corruptBytes(destination, tensor.dtype, fault.value);
      }
    };
    // Without a way of its own to read slices: every read passes here.
    const { name, dtype, shape, file } = tensor;
    return { name, dtype, shape, file, read };
  }

  #beforeRead(fault: TensorFault, tensor: CheckpointTensor, destination: Uint8Array, byteOffset: number): void {
    if (fault.kind === "corrupt") return;
    if (fault.kind !== "shortRead") {
      const { name, file } = tensor;
      this.#happen(fault, { stage: "load", place: `${name} of ${file}`, details: { tensor: name, file } });
      return;
    }
    const received = Math.floor(destination.length / 2);
    tensor.read(destination.subarray(0, received), byteOffset);
    throw shortRead(tensor.file, tensor.name, destination.length, byteOffset, received);
  }

  #happen(fault: FaultAnywhere, { stage, place, details }: FaultScene): void {
    switch (fault.kind) {
      case "throw":
        throw new RankError("INJECTED_FAULT", `rank ${this.#rank}: a fault was injected at ${place}`, {
          rank: this.#rank,
          ...details,
        });
      case "delay":
        this.#effects.pause(fault.delayMs, stage);
        break;
      case "hang":
        this.#effects.pause(Number.POSITIVE_INFINITY, stage);
        break;
      case "exit":
        this.#effects.exit(fault.exitCode ?? 1);
        break;
      case "outOfMemory":
        this.#effects.exhaustHeap();
    }
  }
}

function corrupt(payload: ResultExtent | undefined, element = 0, value: CorruptValue = "nan"): void {
  if (payload === undefined || isVirtual(payload.operand.tensor)) return;
  const { operand, rows, width } = payload;
  if (rows * width === 0) return;
  const within = element % (rows * width);
  const index = Math.floor(within / width) * operand.columns + (within % width);
  const { bits } = payloadOf(operand);
  bits[index] = value === "nan" ? QUIET_NAN.f32 : (bits[index] ?? 0) ^ 0x80000000;
}

/** Bits of a quiet NaN of each floating-point dtype. */
const QUIET_NAN: Readonly<Record<FloatDType, number>> = { f32: 0x7fc00000, bf16: 0x7fc0, f16: 0x7e00 };

/** What a rank brings to a collective; undefined if that is nothing. */
function contributionOf(request: CollectiveRequest, rank: number): ResultExtent | undefined {
  switch (request.kind) {
    case "allReduce":
      return resultOf(request);
    case "allGather":
      return { operand: request.data, rows: request.rows, width: request.widths[rank] ?? 0 };
    case "broadcast":
      return request.root === rank ? resultOf(request) : undefined;
    case "barrier":
      return undefined;
  }
}

/** Reads of whole elements only: what a rank reads of a tensor begins where an element does. */
function corruptBytes(bytes: Uint8Array, dtype: DType, value: CorruptValue = "nan"): void {
  const size = dtypeBytes(dtype);
  if (bytes.length < size) return;
  if (value === "nan" && isFloat(dtype)) {
    for (let i = 0; i < size; i++) bytes[i] = (QUIET_NAN[dtype] >>> (8 * i)) & 0xff;
  } else if (value === "flipped") {
    bytes[size - 1] = (bytes[size - 1] ?? 0) ^ 0x80;
  }
}
