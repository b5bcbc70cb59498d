import assert from "node:assert/strict";
import { CheckpointError, OptionError, RequestError } from "../../src/core/errors.js";
import { ChatTemplate } from "../../src/engine/chat-template.js";
import { typedError } from "./errors.js";

const specialTokens = new Map([
  ["bos_token", "<s>"],
  ["eos_token", "</s>"],
]);

const CHAT_ML = `{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
Be helpful.<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}`;

const user = (content: string) => ({ role: "user", content });

describe("a chat template", () => {
  it("writes the conversation and asks for the assistant's turn", () => {
    assert.equal(
      new ChatTemplate(CHAT_ML, specialTokens).render([
        user("Hi"),
        { role: "assistant", content: "Yes?" },
        user("Bye"),
      ]),
      "<|im_start|>system\nBe helpful.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n" +
        "<|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    );
  });

  it("sees what transformers gives it: special tokens, no tools, no documents, and the fields of a message", () => {
    const source =
      "{{ bos_token }}{% if tools is none and documents is none %}{{ messages[0].name }}{% endif %}{{ eos_token }}" +
      "{% if unk_token is defined %}unknown{% endif %}";
    const message = { role: "user", content: "Hi", name: "Ada" };
    assert.equal(new ChatTemplate(source, specialTokens).render([message]), "<s>Ada</s>");
  });

  it("may ask for the date, as Llama 3's does", () => {
    const rendered = new ChatTemplate("{{ strftime_now('%d %b %Y') }}", new Map()).render([user("Hi")]);
    assert.match(rendered, /^\d{2} \S+ \d{4}$/);
  });

  it("may refuse a conversation, and its words reach the caller", () => {
    const source = "{% if messages[0].role != 'user' %}{{ raise_exception('A user must begin') }}{% endif %}ok";
    const template = new ChatTemplate(source, new Map());
    assert.equal(template.render([user("Hi")]), "ok");
    assert.throws(
      () => template.render([{ role: "assistant", content: "Hi" }]),
      typedError(RequestError, "CHAT_TEMPLATE_FAILED", /it said: A user must begin/),
    );
  });

  it("that is no Jinja is an error of the model, once it is needed", () => {
    const template = new ChatTemplate("{% for message in %}", new Map());
    assert.throws(() => template.render([user("Hi")]), typedError(CheckpointError, "INVALID_CHAT_TEMPLATE", /Jinja/));
  });

  it("gets nothing but conversations", () => {
    const template = new ChatTemplate("ok", new Map());
    const render = (messages: unknown) => () => Reflect.apply(template.render, template, [messages]);
    const error = (message: RegExp) => typedError(OptionError, "INVALID_MESSAGES", message);
    assert.throws(render([]), error(/messages to be an array of 1 to 65536 messages but received an array of 0/));
    assert.throws(render("Hi"), error(/received "Hi" of type string/));
    assert.throws(render([null]), error(/messages\[0\] to be an object but received null/));
    assert.throws(
      render([user("Hi"), { content: "x" }]),
      error(/messages\[1\].role to be a text but received undefined/),
    );
    assert.throws(render([{ role: "user", content: ["x"] }]), error(/messages\[0\].content to be a text/));
  });
});
