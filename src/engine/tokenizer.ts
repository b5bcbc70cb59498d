/** Text to token ids and back, by the model's tokenizer.json (Hugging Face's format). */
import { CheckpointError, RequestError, reasonOf } from "../core/errors.js";
import { isJsonObject } from "../core/json.js";
import type { TokenizerFiles } from "../loading/tokenizer-files.js";
import {
  ByteLevelDetokenizer,
  type Detokenizer,
  type PieceLookup,
  type TokenPiece,
  WindowDetokenizer,
} from "./detokenizer.js";
import { createEncoder, type Encoder } from "./encoder.js";
import { type CheckedTokenizer, checkTokenizerFiles } from "./tokenizer-json.js";

/** The longest text that is tokenized, in UTF-16 units. */
export const MAX_TEXT_LENGTH = 16 * 1024 * 1024;

/** Tokens of the prompt that a detokenizer starts from: more than a character's bytes, enough for a word's space. */
const PROMPT_CONTEXT_TOKENS = 8;

export interface EncodeOptions {
  /** Add what the tokenizer puts around a text, such as a beginning-of-sequence token. */
  readonly addSpecialTokens: boolean;
}

export interface DecodeOptions {
  /** Leave special tokens out. Default true. */
  readonly skipSpecialTokens?: boolean;
}

export class Tokenizer {
  /** Ids of special tokens. */
  readonly specialIds: ReadonlySet<number>;
  /** Names and texts of the special tokens that a chat template may use: `bos_token`, `eos_token`, ... */
  readonly specialTokens: ReadonlyMap<string, string>;
  readonly #encoder: Encoder;
  readonly #vocabularySize: number;
  readonly #byteLevel: boolean;
  /** Tokens that are found in a text before it is cut into words. */
  readonly #added: ReadonlyMap<number, string>;
  readonly #tokenOf: (id: number) => string | undefined;
  readonly #pieces: PieceLookup;
  readonly #visiblePieces: PieceLookup;

  /**
   * `vocabularySize` is the model's: ids beyond it are never returned. Throws CheckpointError `INVALID_TOKENIZER` when
   * tokenizer.json or tokenizer_config.json is damaged.
   */
  constructor(files: TokenizerFiles, vocabularySize: number) {
    const checked = checkTokenizerFiles(files);
    const { decoder } = checked.tokenizer;
    this.#encoder = encoderOf(checked);
    this.#vocabularySize = vocabularySize;
    this.#byteLevel = isJsonObject(decoder) && decoder["type"] === "ByteLevel";
    this.specialTokens = checked.specialTokens;
    this.specialIds = new Set(checked.addedTokens.filter(({ special }) => special).map(({ id }) => id));
    this.#added = new Map(checked.addedTokens.map(({ id, content }) => [id, content]));
    this.#tokenOf = checked.bpe?.tokenOf ?? ((id) => this.#encoder.id_to_token(id));
    this.#pieces = (id) => this.#pieceOf(id);
    this.#visiblePieces = (id) => (this.specialIds.has(id) ? undefined : this.#pieceOf(id));
  }

  /** Id of a token by its exact text. */
  idOf(token: string): number | undefined {
    return this.#encoder.token_to_id(token);
  }

  /**
   * Token ids of a text. Throws RequestError `PROMPT_TOO_LONG` beyond MAX_TEXT_LENGTH, and CheckpointError
   * `INVALID_TOKENIZER` when the tokenizer gives a token that the model does not have.
   */
  encode(text: string, options: EncodeOptions): number[] {
    if (text.length > MAX_TEXT_LENGTH) {
      throw new RequestError(
        "PROMPT_TOO_LONG",
        `expected a text of at most ${MAX_TEXT_LENGTH} UTF-16 units but received ${text.length}`,
        { expected: MAX_TEXT_LENGTH, received: text.length },
      );
    }
    const { ids, tokens } = this.#encode(text, options);
    for (const [index, id] of ids.entries()) {
      if (Number.isInteger(id) && id >= 0 && id < this.#vocabularySize) continue;
      throw new CheckpointError(
        "INVALID_TOKENIZER",
        `expected the tokenizer to give ids below ${this.#vocabularySize}, the model's vocabulary, ` +
          `but received ${id} for ${JSON.stringify(tokens[index])}`,
        { expected: this.#vocabularySize, received: String(id) },
      );
    }
    return ids;
  }

  /**
   * Text of token ids. Incomplete characters become U+FFFD, ids without a token nothing. Spaces are left as the tokens
   * have them: `clean_up_tokenization_spaces` is not applied, as it could change text already streamed.
   */
  decode(ids: readonly number[], options: DecodeOptions = {}): string {
    const detokenizer = this.createDetokenizer([], options);
    const pieces = ids.map((id) => detokenizer.push(id));
    return pieces.join("") + detokenizer.flush();
  }

  /** A detokenizer for what follows the given tokens: a word that begins the answer keeps its space. */
  createDetokenizer(promptTokenIds: readonly number[], options: DecodeOptions = {}): Detokenizer {
    const lookup = (options.skipSpecialTokens ?? true) ? this.#visiblePieces : this.#pieces;
    const detokenizer = this.#byteLevel
      ? new ByteLevelDetokenizer(lookup)
      : new WindowDetokenizer(lookup, (ids) => this.#decodeWindow(ids));
    for (const id of promptTokenIds.slice(-PROMPT_CONTEXT_TOKENS)) detokenizer.push(id);
    return detokenizer;
  }

  #encode(text: string, options: EncodeOptions): { readonly ids: number[]; readonly tokens: readonly string[] } {
    try {
      return this.#encoder.encode(text, { add_special_tokens: options.addSpecialTokens });
    } catch (error) {
      throw damaged(`a tokenizer that can tokenize ${JSON.stringify(text.slice(0, 40))}`, error);
    }
  }

  #decodeWindow(ids: number[]): string {
    try {
      return this.#encoder.decode(ids, { skip_special_tokens: false, clean_up_tokenization_spaces: false });
    } catch (error) {
      throw damaged(`a tokenizer that can decode [${ids.join(", ")}]`, error);
    }
  }

  #pieceOf(id: number): TokenPiece | undefined {
    const added = this.#added.get(id);
    const text = added ?? this.#tokenOf(id);
    return text === undefined ? undefined : { text, verbatim: added !== undefined };
  }
}

function encoderOf({ tokenizer, config, bpe }: CheckedTokenizer): Encoder {
  try {
    return createEncoder(tokenizer, config, bpe);
  } catch (error) {
    throw damaged("a tokenizer.json that describes a tokenizer", error);
  }
}

function damaged(expected: string, error: unknown): CheckpointError {
  const received = reasonOf(error);
  return new CheckpointError(
    "INVALID_TOKENIZER",
    `expected ${expected} but received: ${received}`,
    { expected, received },
    { cause: error },
  );
}
