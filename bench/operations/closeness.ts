/** Root of the mean squared difference, over that of the reference: how wrong an output is. NaN if any value is. */
export function relativeError(values: Float32Array, reference: Float32Array): number {
  let difference = 0;
  let size = 0;
  for (const [index, expected] of reference.entries()) {
    difference += ((values[index] ?? Number.NaN) - expected) ** 2;
    size += expected ** 2;
  }
  return Math.sqrt(difference / size);
}
