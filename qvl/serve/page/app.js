// The page: a conversation about pictures.
// Knows: what is on the page and what happens on it. Does not know: how places are spelled, how bytes travel.

import { plain } from "./marks.js";
import * as server from "./server.js";
import { curl, python, withHoles } from "./snippets.js";
import * as store from "./store.js";
import { ExchangeView, node } from "./view.js";

const $ = (id) => document.getElementById(id);
const PREVIEW_PX = 1024;
const state = { model: "", settings: store.settings(), talk: null, pending: [], views: [], running: null, following: false };

const icon = (name) => {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
};

// Not crypto.randomUUID: that is only there on https and on this machine.
const newId = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

function toast(text) {
  $("toast").textContent = text;
  $("toast").hidden = false;
  clearTimeout(toast.timer);
  toast.timer = setTimeout(() => { $("toast").hidden = true; }, 4000);
}

// Pictures and clips

async function addFiles(files) {
  for (const file of files) {
    if (!/^(image|video)\//.test(file.type)) { toast(`${file.name} is neither a picture nor a clip`); continue; }
    state.pending.push(await readMedium(file));
  }
  showPending();
  $("question").focus();
}

async function readMedium(file) {
  const medium = { id: newId(), name: file.name || "pasted.png", type: file.type, blob: file, url: URL.createObjectURL(file), preview: null, width: 0, height: 0, fileId: null };
  try {
    if (file.type.startsWith("image/")) await sizeOf(medium, await createImageBitmap(file, { imageOrientation: "from-image" }));
    else await sizeOfClip(medium);
  } catch { /* the browser cannot show it; the server may still read it */ }
  return medium;
}

async function sizeOf(medium, picture, width = picture.width, height = picture.height) {
  Object.assign(medium, { width, height });
  const scale = Math.min(1, PREVIEW_PX / Math.max(width, height));
  const canvas = node("canvas");
  Object.assign(canvas, { width: Math.max(1, Math.round(width * scale)), height: Math.max(1, Math.round(height * scale)) });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  medium.preview = canvas.toDataURL("image/jpeg", 0.85);
}

async function sizeOfClip(medium) {
  const video = node("video", { muted: true, src: medium.url });
  await new Promise((resolve, reject) => { video.onloadeddata = resolve; video.onerror = reject; });
  await sizeOf(medium, video, video.videoWidth, video.videoHeight);
}

function showPending() {
  $("pending").replaceChildren(...state.pending.map((medium) => node("div", { class: "thumb" },
    medium.preview ? node("img", { src: medium.preview, alt: medium.name }) : node("div", { class: "name" }, medium.name),
    node("button", { type: "button", "aria-label": `Leave ${medium.name} out`, onclick: () => { state.pending = state.pending.filter((m) => m !== medium); showPending(); } }, icon("close")))));
}

// The conversation

function newTalk() {
  stop();
  state.talk = { id: newId(), title: "", exchanges: [] };
  showTalk();
}

function showTalk() {
  const { exchanges } = state.talk;
  state.views = exchanges.map((_, i) => viewOf(i));
  $("exchanges").replaceChildren(...state.views.map((view) => view.root));
  $("welcome").hidden = exchanges.length > 0;
  showList();
  $("talk").scrollTop = $("talk").scrollHeight;
}

/** What the server is told for exchange `index`: all until then but what it refused, which it would refuse again. */
const told = (index) => state.talk.exchanges.slice(0, index + 1).filter((exchange, i) => i === index || !exchange.refused);

function viewOf(index) {
  const before = told(index);
  const shown = before.flatMap((exchange) => exchange.media);
  const latest = before.findLast((exchange) => exchange.media.length);
  const exchange = before.at(-1);
  const request = () => withHoles(bodyOf(index), (url) => shown.find((m) => m.fileId && m.fileId === url));
  const copy = (what, text) => async () => {
    try { await navigator.clipboard.writeText(text()); toast(`${what} copied`); } catch { toast("the browser does not let this page copy"); }
  };
  const key = Boolean(state.settings.key);
  return new ExchangeView(exchange, shown, latest ? shown.indexOf(latest.media[0]) : -1, [
    ["Copy", copy("Answer", () => plain(exchange.answer))],
    ["curl", copy("curl command", () => curl(request(), location.origin, key))],
    ["Python", copy("Python code", () => python(request(), location.origin, key))],
  ]);
}

function bodyOf(index) {
  const s = state.settings, messages = [];
  if (s.system.trim()) messages.push({ role: "system", content: s.system });
  told(index).forEach((exchange, i, all) => {
    const parts = exchange.media.map((m) => {
      const kind = m.type.startsWith("video/") ? "video_url" : "image_url";
      return { type: kind, [kind]: { url: m.fileId ?? "", ...(s.max_pixels ? { max_pixels: Number(s.max_pixels) } : {}) } };
    });
    messages.push({ role: "user", content: [...parts, { type: "text", text: exchange.question }] });
    if (i < all.length - 1) messages.push({ role: "assistant", content: exchange.answer });
  });
  const body = { model: state.model, messages, stream: true, stream_options: { include_usage: true } };
  for (const name of ["max_tokens", "temperature", "top_p", "seed"]) if (s[name] !== "") body[name] = Number(s[name]);
  return body;
}

async function ask(question) {
  if (state.running) return;
  const exchange = { question, media: state.pending, answer: "", boxes: null, usage: null, finish: "", problem: "" };
  state.pending = [];
  showPending();
  state.talk.exchanges.push(exchange);
  state.talk.title ||= question.slice(0, 80);
  const index = state.talk.exchanges.length - 1, view = viewOf(index);
  state.views.push(view);
  $("welcome").hidden = true;
  $("exchanges").append(view.root);
  view.root.scrollIntoView({ block: "start" });
  state.following = true;
  await run(index, exchange, view);
}

async function run(index, exchange, view) {
  const talk = state.talk;
  state.running = new AbortController();
  document.body.classList.add("busy-now");
  $("send").setAttribute("aria-label", "Stop");
  readyToSend();
  view.update(true);
  try {
    await receive(index, exchange, view);
  } catch (error) {
    if (error.name !== "AbortError") exchange.problem = error.status === 401 ? "The server asks for a key: open Settings." : error.message;
    exchange.refused = error.status === 400 || error.status === 413; // another status may be another one next time
  }
  state.running = null;
  document.body.classList.remove("busy-now");
  $("send").setAttribute("aria-label", "Send");
  readyToSend();
  view.update(false);
  if (!talk.forgotten) store.remember(talk);
  showList();
}

async function receive(index, exchange, view, again = true) {
  const { key } = state.settings, { signal } = state.running;
  state.model ||= await server.modelName(key, signal);
  await uploadAll(told(index).flatMap((e) => e.media), key, signal);
  let frame = 0;
  try {
    for await (const chunk of server.chat(bodyOf(index), key, signal)) {
      const choice = chunk.choices[0];
      exchange.answer += choice?.delta.content ?? "";
      exchange.boxes = choice?.delta.boxes ?? exchange.boxes;
      exchange.finish = choice?.stop_reason ?? exchange.finish;
      exchange.usage = chunk.usage ?? exchange.usage;
      frame ||= requestAnimationFrame(() => { frame = 0; if (state.running) { view.update(true); follow(view); } });
    }
  } catch (error) {
    if (!again || !/no uploaded file/.test(error.message)) throw error;
    for (const e of state.talk.exchanges) for (const medium of e.media) medium.fileId = null; // the server has forgotten them
    await receive(index, exchange, view, false);
  } finally {
    cancelAnimationFrame(frame);
  }
}

/** Keeps the end of the growing answer in sight, until somebody scrolls. */
function follow(view) {
  const below = view.answer.getBoundingClientRect().bottom + 24 - $("talk").getBoundingClientRect().bottom;
  if (state.following && below > 0) $("talk").scrollBy({ top: below, behavior: "instant" });
}

async function uploadAll(media, key, signal) {
  for (const medium of media) {
    if (medium.fileId) continue;
    if (!medium.blob && medium.type.startsWith("video/")) throw new Error(`the clip ${medium.name} is no longer here; add it again`);
    const blob = medium.blob ?? await bytesOf(medium.preview);
    medium.fileId = await server.upload(blob, medium.name, key, signal);
  }
}

async function bytesOf(uri) {
  const bytes = Uint8Array.from(atob(uri.slice(uri.indexOf(",") + 1)), (c) => c.charCodeAt(0));
  return new Blob([bytes], { type: "image/jpeg" });
}

function stop() { state.running?.abort(); }

// The list of conversations

function showList() {
  $("conversations").replaceChildren(...store.conversations().map((talk) => node("li", { class: talk.id === state.talk.id ? "now" : null },
    node("button", { type: "button", class: "open", onclick: () => openTalk(talk) }, talk.title || "(no words)"),
    node("button", { type: "button", class: "icon", "aria-label": `Forget ${talk.title}`, onclick: () => forgetTalk(talk.id) }, icon("close")))));
}

function openTalk(talk) {
  if (talk.id !== state.talk.id) { // what is open already has its files still, what is remembered has not
    stop();
    state.talk = talk;
    showTalk();
  }
  if (innerWidth < 832) toggleList(false);
}

/** One conversation, or all; an answer that is still coming must not bring its own back. */
function forgetTalk(id) {
  store.forget(id);
  if (id !== undefined && id !== state.talk.id) { showList(); return; }
  state.talk.forgotten = true;
  newTalk();
}

function toggleList(open = !document.body.classList.contains("with-history")) {
  document.body.classList.toggle("with-history", open);
  $("history-open").setAttribute("aria-expanded", String(open));
  (open ? $("history-close") : $("history-open")).focus();
}

// Settings and theme

function openSettings() {
  const form = $("settings").querySelector("form");
  for (const name of Object.keys(store.DEFAULTS)) form.elements[name].value = state.settings[name];
  $("settings").showModal();
}

function closeSettings() {
  const form = $("settings").querySelector("form");
  for (const name of Object.keys(store.DEFAULTS)) state.settings[name] = form.elements[name].value;
  store.saveSettings(state.settings);
  findModel();
}

function setTheme(name) {
  if (name) document.documentElement.dataset.theme = name; else delete document.documentElement.dataset.theme;
}

function turnTheme() {
  const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  store.saveTheme(dark ? "light" : "dark");
  setTheme(store.theme());
}

async function findModel() {
  try {
    state.model = await server.modelName(state.settings.key);
    $("model").textContent = state.model;
  } catch (error) {
    $("model").textContent = error.status === 401 ? "a key is needed" : "no answer";
  }
}

// Events

function readyToSend() {
  $("send").disabled = !state.running && !$("question").value.trim();
}

function fit() {
  $("question").style.height = "auto";
  $("question").style.height = `${$("question").scrollHeight}px`;
  readyToSend();
}

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (state.running) { stop(); return; }
  const question = $("question").value.trim();
  if (!question) return;
  $("question").value = "";
  fit();
  ask(question);
});
$("question").addEventListener("input", fit);
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); if (!state.running) $("composer").requestSubmit(); }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || $("settings").open) return;
  if (state.running) stop();
  for (const view of state.views) view.pick(null);
});
for (const event of ["wheel", "touchmove", "keydown"]) $("talk").addEventListener(event, () => { state.following = false; }, { passive: true });
for (const id of ["attach", "choose"]) $(id).addEventListener("click", () => $("files").click());
$("files").addEventListener("change", async () => { await addFiles([...$("files").files]); $("files").value = ""; });
for (const idea of document.querySelectorAll(".ideas button")) idea.addEventListener("click", () => { $("question").value = idea.textContent; fit(); $("question").focus(); });
document.addEventListener("paste", (event) => { if (event.clipboardData.files.length) { event.preventDefault(); addFiles([...event.clipboardData.files]); } });

let over = 0;
const dragged = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragenter", (event) => { if (dragged(event)) { over += 1; $("drop").hidden = false; } });
document.addEventListener("dragleave", (event) => { if (dragged(event) && (over -= 1) <= 0) $("drop").hidden = true; });
document.addEventListener("dragover", (event) => { if (dragged(event)) event.preventDefault(); });
document.addEventListener("drop", (event) => {
  if (!dragged(event)) return;
  event.preventDefault();
  over = 0;
  $("drop").hidden = true;
  addFiles([...event.dataTransfer.files]);
});

$("new").addEventListener("click", () => { newTalk(); $("question").focus(); });
$("theme").addEventListener("click", turnTheme);
$("history-open").addEventListener("click", () => toggleList());
$("history-close").addEventListener("click", () => toggleList(false));
$("settings-open").addEventListener("click", openSettings);
$("settings").addEventListener("submit", closeSettings); // at once: the event "close" comes some time after
$("settings").addEventListener("close", closeSettings);
$("settings").addEventListener("click", (event) => { if (event.target === $("settings")) $("settings").close(); });
$("forget").addEventListener("click", () => { forgetTalk(); toast("forgotten"); });

setTheme(store.theme());
newTalk();
fit();
findModel();
