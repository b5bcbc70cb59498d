/** Waiting, inside one thread, until something is so: a condition is looked at again whenever a change is announced. */
export class Conditions {
  readonly #checks = new Set<() => void>();

  /** Looks at every condition that is waited for. */
  changed(): void {
    for (const check of [...this.#checks]) check();
  }

  /** Resolves with true as soon as `condition` holds, with false when it does not within `timeoutMs`. */
  until(condition: () => boolean, timeoutMs = Number.POSITIVE_INFINITY): Promise<boolean> {
    return new Promise((resolve) => {
      let timer: NodeJS.Timeout | undefined;
      const settle = (holds: boolean): void => {
        clearTimeout(timer);
        this.#checks.delete(check);
        resolve(holds);
      };
      const check = (): void => {
        if (condition()) settle(true);
      };
      if (Number.isFinite(timeoutMs)) timer = setTimeout(settle, timeoutMs, false);
      this.#checks.add(check);
      check();
    });
  }
}
