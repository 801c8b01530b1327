// The chat page: one file, no build, no request to anywhere but the server it came from.
"use strict";

const $ = (id) => document.getElementById(id);
const STORE = "statepool.chat";
const MOST_CHATS = 50;
const FOLLOW_PX = 80;
const SAME_MOMENT_MS = 1;
const FEW_MOMENTS = 5;
const EXAMPLES = [
  ["Find a fact", "The code of lamp is 4821. The color of river is green. The code of stone is 17.\nWhat is the code of lamp?"],
  ["Add two numbers", "What is 47 + 38?"],
];

// -- what is kept between visits ---------------------------------------------------------------------

const fresh = () => ({
  chats: [],
  current: null,
  settings: { system: "", temperature: 0.7, maxTokens: null, key: "", theme: "system" },
});

function load() {
  try {
    const kept = JSON.parse(localStorage.getItem(STORE)) ?? {};
    const empty = fresh();
    return { ...empty, ...kept, settings: { ...empty.settings, ...kept.settings } };
  } catch {
    return fresh();
  }
}

function save() {
  try {
    localStorage.setItem(STORE, JSON.stringify(state));
  } catch {
    // Full or forbidden: the page works on, it only forgets.
  }
}

const state = load();
let model = null;
let running = null; // AbortController of the answer being written

const chat = () => state.chats.find((each) => each.id === state.current) ?? null;

function ensureChat(title) {
  if (!chat()) {
    const id = `${Date.now().toString(36)}${Math.random().toString(36).slice(2, 8)}`;
    state.chats.unshift({ id, title: title.trim().split("\n")[0].slice(0, 80), messages: [] });
    state.chats.length = Math.min(state.chats.length, MOST_CHATS);
    state.current = id;
  }
  return chat();
}

// -- drawing -----------------------------------------------------------------------------------------

function element(tag, className = "", text = "") {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

// Fenced blocks and `code`; everything else stays text. Built from nodes, so no answer can become markup.
function fill(target, text) {
  target.replaceChildren();
  text.split("```").forEach((part, index) => {
    if (index % 2) {
      const code = element("code", "", part.replace(/^[\w+#.-]*\n/, "").replace(/\n$/, ""));
      const block = element("pre");
      block.append(code);
      target.append(block);
    } else {
      part.split(/`([^`\n]+)`/).forEach((piece, place) => {
        if (piece) target.append(place % 2 ? element("code", "", piece) : document.createTextNode(piece));
      });
    }
  });
}

function drawUser(message) {
  const turn = element("article", "turn user");
  turn.append(element("div", "body", message.content));
  return turn;
}

class Answer {
  constructor(message) {
    this.message = message;
    this.frame = null;
    this.turn = element("article", "turn assistant");
    this.thought = element("details", "thought");
    this.thoughtText = element("div");
    this.thought.append(element("summary", "", "Working"), this.thoughtText);
    this.body = element("div", "body");
    this.turn.append(this.thought, this.body);
    this.draw();
  }

  draw() {
    const { content, reasoning, facts, failure } = this.message;
    this.thought.hidden = !reasoning;
    this.thoughtText.textContent = reasoning ?? "";
    fill(this.body, content);
    this.turn.querySelector(".facts")?.remove();
    this.turn.querySelector(".failure")?.remove();
    this.turn.querySelector(".read")?.remove();
    if (facts) this.turn.append(drawFacts(facts));
    if (facts?.read?.length) this.turn.append(drawRead(facts.read));
    if (failure) this.turn.append(element("p", "failure", failure));
  }

  // At most once a frame: tokens may come faster than a long answer can be laid out.
  drawSoon() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      const near = following();
      this.draw();
      if (near) follow();
    });
  }

  set live(on) {
    this.turn.classList.toggle("live", on);
    if (on) this.thought.open = true;
    else this.thought.open = !this.message.content;
  }
}

function drawFacts(facts) {
  const list = element("ul", "facts");
  const add = (name, value) => {
    const item = element("li", "", `${name} `);
    item.append(element("b", "", value));
    list.append(item);
  };
  if (facts.first !== null) add("first token", facts.first < 1000 ? `${Math.round(facts.first)} ms` : `${(facts.first / 1000).toFixed(1)} s`);
  if (facts.rate !== null) add("tokens/s", facts.rate.toFixed(facts.rate < 10 ? 1 : 0));
  if (facts.tokens !== null) add("tokens", String(facts.tokens));
  if (facts.prompt !== null) add("cached", `${facts.cached} of ${facts.prompt}`);
  if (facts.attention) add("attention", facts.attention);
  if (facts.read?.length) add("clusters read", `${((100 * facts.read.reduce((a, b) => a + b)) / facts.read.length).toFixed(1)} %`);
  if (facts.stopped) list.append(element("li", "", facts.stopped));
  return list;
}

// A bar per token of the answer: the share of the clusters that attention read for it.
function drawRead(read) {
  const bars = element("div", "read");
  bars.setAttribute("role", "img");
  bars.setAttribute("aria-label", "Share of the context read for each token");
  const most = Math.max(...read, 1e-9);
  const step = Math.ceil(read.length / 96);
  for (let at = 0; at < read.length; at += step) {
    const bar = element("i");
    bar.style.height = `${(100 * read[at]) / most}%`;
    bars.append(bar);
  }
  return bars;
}

function drawLog() {
  const log = $("log");
  log.querySelectorAll(".turn").forEach((turn) => turn.remove());
  const messages = chat()?.messages ?? [];
  $("welcome").hidden = messages.length > 0;
  for (const message of messages) {
    log.append(message.role === "user" ? drawUser(message) : new Answer(message).turn);
  }
  log.scrollTop = log.scrollHeight;
}

function drawChats() {
  const list = $("conversations");
  list.replaceChildren();
  for (const each of state.chats) {
    const item = element("li", each.id === state.current ? "current" : "");
    const title = element("button", "title", each.title || "Untitled");
    title.type = "button";
    if (each.id === state.current) title.setAttribute("aria-current", "true");
    title.addEventListener("click", () => open(each.id));
    const remove = element("button", "remove");
    remove.type = "button";
    remove.setAttribute("aria-label", `Delete ${each.title}`);
    remove.append($("close-history").querySelector("svg").cloneNode(true));
    remove.addEventListener("click", () => forget(each.id));
    item.append(title, remove);
    list.append(item);
  }
}

function drawTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const { theme } = state.settings;
  document.documentElement.dataset.theme = theme === "system" ? (dark ? "dark" : "light") : theme;
}

function drawComposer() {
  const prompt = $("prompt");
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight}px`;
  $("send").disabled = !prompt.value.trim() || !model;
  $("send").hidden = running !== null;
  $("stop").hidden = running === null;
}

// -- acts --------------------------------------------------------------------------------------------

function listing(on) {
  document.body.classList.toggle("listing", on);
  $("shade").hidden = !on;
  if (on) $("new-chat").focus();
}

function open(id) {
  running?.abort();
  state.current = id;
  save();
  drawChats();
  drawLog();
  listing(false);
  $("prompt").focus();
}

function forget(id) {
  state.chats = state.chats.filter((each) => each.id !== id);
  open(state.current === id ? null : state.current);
}

const headers = () => ({
  "Content-Type": "application/json",
  ...(state.settings.key ? { Authorization: `Bearer ${state.settings.key}` } : {}),
});

async function failureOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered ${response.status}.`;
  }
}

async function connect() {
  const dot = $("status");
  try {
    const response = await fetch("/v1/models", { headers: headers() });
    if (!response.ok) throw new Error(await failureOf(response));
    [model] = (await response.json()).data;
    $("model").textContent = `${model.id} · ${model.quant} · ${model.max_model_len} tokens`;
    dot.className = "dot ready";
    dot.setAttribute("aria-label", "ready");
    document.title = `${model.id} · statepool`;
    const { pages } = await (await fetch("/health")).json();
    $("dashboard").hidden = !pages.dashboard;
  } catch (error) {
    model = null;
    $("model").textContent = error.message;
    dot.className = "dot lost";
    dot.setAttribute("aria-label", "not connected");
    setTimeout(connect, 3000);
  }
  drawComposer();
}

async function* chunksOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
    }
  }
}

function bodyOf(messages) {
  const { system, temperature, maxTokens } = state.settings;
  const body = {
    model: model.id,
    stream: true,
    stream_options: { include_usage: true },
    messages: [
      ...(system.trim() ? [{ role: "system", content: system }] : []),
      ...messages.filter((each) => each.content || each.role === "user").map(({ role, content }) => ({ role, content })),
    ],
  };
  if (temperature !== null) body.temperature = temperature;
  if (maxTokens) body.max_completion_tokens = maxTokens;
  return body;
}

async function send(text) {
  if (running || !model || !text.trim()) return;
  const here = ensureChat(text);
  here.messages.push({ role: "user", content: text });
  const body = JSON.stringify(bodyOf(here.messages));
  const message = { role: "assistant", content: "", reasoning: "", facts: null, failure: null };
  here.messages.push(message);
  $("welcome").hidden = true;
  const answer = new Answer(message);
  $("log").append(drawUser({ content: text }), answer.turn);
  answer.live = true;
  $("log").scrollTop = $("log").scrollHeight;
  running = new AbortController();
  drawChats();
  drawComposer();
  const facts = { first: null, rate: null, tokens: null, prompt: null, cached: null, stopped: "", id: null };
  try {
    await write(answer, facts, body, running.signal);
    if (!$("dashboard").hidden) await readOf(facts, running.signal);
  } catch (error) {
    if (error.name === "AbortError") facts.stopped = "stopped";
    else message.failure = error.message;
  }
  running = null;
  message.facts = facts.first === null ? null : facts;
  answer.draw();
  answer.live = false;
  follow();
  save();
  drawComposer();
}

async function write(answer, facts, body, signal) {
  const { message } = answer;
  const begin = performance.now();
  const response = await fetch("/v1/chat/completions", { method: "POST", headers: headers(), body, signal });
  if (!response.ok) throw new Error(await failureOf(response));
  let first = null;
  let last = null;
  let moments = 0;
  for await (const chunk of chunksOf(response)) {
    if (chunk.error) throw new Error(chunk.error.message);
    facts.id = chunk.id;
    const [choice] = chunk.choices;
    const { content, reasoning_content: reasoning, tool_calls: calls } = choice?.delta ?? {};
    if (content || reasoning || calls) {
      const now = performance.now();
      moments += last === null || now - last > SAME_MOMENT_MS;
      last = now;
      first ??= now;
      facts.first = first - begin;
      message.content += content ?? "";
      message.reasoning += reasoning ?? "";
      for (const call of calls ?? []) message.content += (call.function.name ?? "") + (call.function.arguments ?? "");
      answer.drawSoon();
    }
    if (choice?.finish_reason === "length") facts.stopped = "cut at the limit";
    if (chunk.usage) {
      facts.tokens = chunk.usage.completion_tokens;
      facts.prompt = chunk.usage.prompt_tokens;
      facts.cached = chunk.usage.prompt_tokens_details.cached_tokens;
      // Tokens that came together say nothing about the time between them: then the whole wait counts.
      const since = moments >= FEW_MOMENTS ? first : begin;
      if (facts.tokens > 1 && last > since) facts.rate = ((facts.tokens - 1) * 1000) / (last - since);
    }
  }
}

// What sparse attention read for this answer, where the server keeps a trace of it.
async function readOf(facts, signal) {
  if (!model.attention || model.attention === "full") return;
  facts.attention = model.attention.split(":")[0];
  const asked = await fetch(`/dashboard/detail/attention?request=${encodeURIComponent(facts.id)}`, { headers: headers(), signal });
  if (asked.ok) facts.read = (await asked.json()).read;
}

// Scroll along only while the reader is at the end.
const following = () => $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < FOLLOW_PX;
const follow = () => {
  $("log").scrollTop = $("log").scrollHeight;
};

// -- wiring ------------------------------------------------------------------------------------------

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("prompt").value;
  if (running || !text.trim() || !model) return;
  $("prompt").value = "";
  drawComposer();
  send(text);
});
$("prompt").addEventListener("input", drawComposer);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("composer").requestSubmit();
  }
});
$("stop").addEventListener("click", () => {
  running?.abort();
  $("prompt").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || $("settings").open) return;
  if (document.body.classList.contains("listing")) listing(false);
  else running?.abort();
});
$("new-chat").addEventListener("click", () => open(null));
$("open-history").addEventListener("click", () => listing(true));
$("close-history").addEventListener("click", () => listing(false));
$("shade").addEventListener("click", () => listing(false));
$("open-settings").addEventListener("click", () => {
  const { system, temperature, maxTokens, key, theme } = state.settings;
  $("system").value = system;
  $("temperature").value = temperature ?? "";
  $("max-tokens").value = maxTokens ?? "";
  $("key").value = key;
  $("theme").value = theme;
  $("settings").showModal();
});
$("theme").addEventListener("change", () => {
  state.settings.theme = $("theme").value;
  drawTheme();
});
$("settings").addEventListener("close", () => {
  const number = (id) => ($(id).value === "" ? null : Number($(id).value));
  const key = $("key").value;
  const changed = key !== state.settings.key;
  Object.assign(state.settings, {
    system: $("system").value,
    temperature: number("temperature"),
    maxTokens: number("max-tokens"),
    key,
  });
  save();
  if (changed) connect();
});
$("forget").addEventListener("click", () => {
  state.chats = [];
  $("settings").close();
  open(null);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawTheme);
window.addEventListener("pagehide", save);

for (const [title, text] of EXAMPLES) {
  const button = element("button", "", text);
  button.type = "button";
  button.prepend(element("b", "", title));
  button.addEventListener("click", () => send(text));
  $("examples").append(button);
}
drawTheme();
drawChats();
drawLog();
drawComposer();
connect();
