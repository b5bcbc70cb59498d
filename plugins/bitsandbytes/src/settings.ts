/** `quantization_config` as transformers writes it: BitsAndBytesConfig.to_dict of transformers/utils/quantization_config.py. */
import type { InFlightOptions } from "./options.js";

/** JSON, keys sorted as transformers sorts them. It refuses an `llm_int8_threshold` that is written as a whole number. */
export function formatSettings(
  { type, doubleQuant }: Pick<InFlightOptions, "type" | "doubleQuant">,
  skipModules: readonly string[] | null,
): string {
  const in8 = type === "int8";
  const skipped = JSON.stringify(skipModules, null, 2).replaceAll("\n", "\n  ");
  const members = [
    ["_load_in_4bit", `${!in8}`],
    ["_load_in_8bit", `${in8}`],
    ["bnb_4bit_compute_dtype", '"float32"'],
    ["bnb_4bit_quant_storage", '"uint8"'],
    ["bnb_4bit_quant_type", `"${in8 ? "fp4" : type}"`],
    ["bnb_4bit_use_double_quant", `${doubleQuant}`],
    ["llm_int8_enable_fp32_cpu_offload", "false"],
    ["llm_int8_has_fp16_weight", "false"],
    ["llm_int8_skip_modules", skipped],
    ["llm_int8_threshold", "6.0"],
    ["load_in_4bit", `${!in8}`],
    ["load_in_8bit", `${in8}`],
    ["quant_method", '"bitsandbytes"'],
  ];
  return `{\n${members.map(([key, value]) => `  "${key}": ${value}`).join(",\n")}\n}`;
}
