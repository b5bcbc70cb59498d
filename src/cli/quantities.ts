/** Quantities as people read them. */

const UNITS = ["B", "kB", "MB", "GB", "TB"];

/** `98.4 MB`, in decimal units. */
export function formatBytes(sizeBytes: number): string {
  let value = sizeBytes;
  let unit = 0;
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000;
    unit++;
  }
  return `${formatNumber(value)} ${UNITS[unit]}`;
}

/** `24.1 ms`, `1.52 s`. */
export function formatMs(ms: number): string {
  return ms < 999.5 ? `${formatNumber(ms)} ms` : `${formatNumber(ms / 1000)} s`;
}

/** Three significant digits. */
export function formatNumber(value: number): string {
  if (Number.isInteger(value) || value >= 99.95) return String(Math.round(value));
  return value >= 9.995 ? value.toFixed(1) : value.toFixed(2);
}
