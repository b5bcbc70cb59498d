/** `shardloom/testing`: tensor parallelism without threads. Wiring only. */
export { TurnsExecutor } from "./turns-executor.js";
