/** Collectives by the addon. One call a request; operands travel as the handles that the native kernels bound. */
import type { NativeAddon, NativeHandle } from "../core/native-addon.js";
import type { CollectiveRequest } from "./collective.js";
import type { CollectiveRegion } from "./region.js";
import { siteDigest, widthsChecksum } from "./request.js";

export class NativeEngine {
  readonly #addon: NativeAddon;
  readonly #region: NativeHandle;
  readonly #rank: number;

  constructor(addon: NativeAddon, region: CollectiveRegion, rank: number) {
    const { buffer, base, capacity } = region.memory;
    this.#addon = addon;
    this.#region = addon.bind(new Uint8Array(buffer, base, capacity), "u8", 1, capacity);
    this.#rank = rank;
  }

  /** Carries out a checked request. Returns a `STATUS`; any but `done` is final for the region. */
  run(request: CollectiveRequest): number {
    const site = siteDigest(request.site);
    switch (request.kind) {
      case "allReduce":
        return this.#addon.allReduce(this.#region, this.#rank, site, request.data.handle, request.count);
      case "allGather": {
        const { data, out, rows, widths } = request;
        const width = widths[this.#rank] ?? 0;
        const checksum = widthsChecksum(widths);
        return this.#addon.allGather(this.#region, this.#rank, site, data.handle, out.handle, rows, width, checksum);
      }
      case "broadcast":
        return this.#addon.broadcast(this.#region, this.#rank, site, request.data.handle, request.count, request.root);
      case "barrier":
        return this.#addon.barrier(this.#region, this.#rank, site);
    }
  }
}
