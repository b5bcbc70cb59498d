/** Columns of text as people read them on a terminal. */

export interface TextColumn {
  readonly title: string;
  /** Numbers stand to the right. Default "left". */
  readonly align?: "left" | "right";
}

/** Lines of a table: the titles, then the rows, columns two spaces apart and as wide as their widest entry. */
export function textTable(columns: readonly TextColumn[], rows: readonly (readonly string[])[]): readonly string[] {
  const lines = [columns.map(({ title }) => title), ...rows];
  const widths = columns.map((_, i) => Math.max(...lines.map((line) => (line[i] ?? "").length)));
  return lines.map((line) => {
    const cells = columns.map(({ align }, i) => {
      const text = line[i] ?? "";
      return align === "right" ? text.padStart(widths[i] ?? 0) : text.padEnd(widths[i] ?? 0);
    });
    return cells.join("  ").trimEnd();
  });
}
