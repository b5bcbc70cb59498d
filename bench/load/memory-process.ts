/**
 * A process that touches so many bytes of memory, and ends: for a moment the system has them at hand. Without it a sample says
 * how long a virtual machine waits until its host gives it memory back, which is up to a second a GB, and no contestant's doing.
 */
import { Arena } from "../../src/core/arena.js";

const { buffer, base, capacity } = Arena.create("memory at hand", Number(process.argv[2]));
new Uint8Array(buffer, base, capacity).fill(1);
