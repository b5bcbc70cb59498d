/**
 * Every deliberately broken plugin. The faults are those that plugins have had, or could have without anybody noticing at
 * one rank.
 */

import { arithmeticFaults } from "./arithmetic-faults.js";
import type { BrokenPlugin } from "./broken-plugin.js";
import { hostileFaults } from "./hostile-faults.js";
import { keepingFaults } from "./keeping-faults.js";
import { loadersFaults } from "./loaders-faults.js";
import { placementFaults } from "./placement-faults.js";
import { registrationFaults } from "./registration-faults.js";
import { valuesFaults } from "./values-faults.js";

export const brokenPlugins: readonly BrokenPlugin[] = [
  ...registrationFaults,
  ...placementFaults,
  ...valuesFaults,
  ...arithmeticFaults,
  ...hostileFaults,
  ...keepingFaults,
  ...loadersFaults,
];
