/** One thing that a plugin is held to. */
export interface PluginCheck {
  /** Names the check in a report; the same for the same plugin and fixtures. */
  readonly name: string;
  /** Throws an AssertionError (of node:assert) that says what was expected and what was received. */
  run(): Promise<void>;
}
