// One question and its answer on the page.
// Knows: the DOM. Does not know: the network, what is remembered. Text of a model only ever becomes text nodes.

import { parse } from "./marks.js";

const COLOURS = ["#ffd23f", "#5cc8ff", "#ff8fab", "#7ddf8a", "#c9a2ff", "#ffa85c", "#4fe0cf", "#e6e65a"];
const CROWD = 10;

/** `node("button", {class: "x", type: "button"}, child, "text")`. */
export function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/**
 * exchange: {question, media, answer, boxes, usage, finish, problem}; shown: all media of the conversation so far, in
 * reading order; first: index of the first of the latest turn that has any. actions: [[label, () => ...], ...].
 */
export class ExchangeView {
  constructor(exchange, shown, first, actions) {
    Object.assign(this, { exchange, shown, first });
    this.picked = null;
    this.figures = new Map();
    this.media = node("div", { class: "media" });
    this.answer = node("div", { class: "answer" });
    this.problem = node("p", { class: "problem", role: "alert", hidden: true });
    this.cost = node("details", { class: "cost", hidden: true });
    this.buttons = node("div", { class: "foot" }, ...actions.map(([label, act]) => node("button", { type: "button", class: "quiet", onclick: act }, label)), this.cost);
    this.root = node("article", { class: "exchange" }, this.media,
      node("div", {}, node("p", { class: "question" }, exchange.question), this.answer, this.problem, this.buttons));
    for (const medium of exchange.media) this.figure(shown.indexOf(medium));
    this.update(false);
  }

  update(busy) {
    const { answer, problem, usage } = this.exchange;
    this.answer.classList.toggle("wait", busy && !answer);
    this.answer.classList.toggle("busy", busy && Boolean(answer));
    this.answer.hidden = !busy && !answer;
    const pieces = parse(answer, busy);
    const boxes = this.places(pieces, busy);
    this.answer.replaceChildren(...this.words(pieces, boxes));
    this.draw(boxes);
    this.problem.hidden = !problem;
    this.problem.textContent = problem ?? "";
    this.buttons.hidden = busy;
    if (usage && !busy) this.tell(usage);
    this.root.classList.toggle("shows", this.figures.size > 0);
    this.media.classList.toggle("many", this.figures.size > 1);
    this.media.hidden = this.figures.size === 0;
  }

  /**
   * Boxes in fractions of their picture, as the text says them: the server's pixels are those of the picture that it
   * got, which may be the small one that the browser kept. Which picture is meant the server says, once it is done.
   */
  places(pieces, busy) {
    const told = pieces.flatMap((piece) => (piece.boxes ?? []).map((box) => ({ ...box, label: piece.label })));
    const known = !busy && this.exchange.boxes;
    const numbered = known && known.length === told.length ? known : null;
    const found = told.map((box, n) => {
      const image = numbered ? numbered[n].image : this.first;
      const medium = this.shown[image];
      if (!medium) return null;
      const pixels = box.place.map((c, i) => Math.round(c * (i % 2 ? medium.height : medium.width) / 1000));
      return { n, image, place: box.place.map((c) => c / 1000), label: box.label, pixels };
    });
    const labels = [...new Set(found.filter(Boolean).map((box) => box.label))];
    for (const box of found) if (box) box.colour = COLOURS[labels.indexOf(box.label) % COLOURS.length];
    return found;
  }

  words(pieces, boxes) {
    return pieces.map((piece) => {
      if (piece.text !== undefined) return document.createTextNode(piece.text);
      const own = piece.boxes.map((box) => boxes[box.n]).filter(Boolean);
      const name = piece.label || "here";
      if (!own.length) return document.createTextNode(name);
      const numbers = own.map((box) => box.n);
      // Not a <button>: that would be a block in the line, and punctuation after it could fall onto the next line.
      const pressed = (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); this.pick(numbers); } };
      const button = node("span", { role: "button", tabindex: 0, class: "ref", "data-n": numbers.join(" "), title: own.map((box) => box.pixels.join(", ")).join("; "), onclick: () => this.pick(numbers), onkeydown: pressed }, name);
      button.style.setProperty("--c", own[0].colour);
      return button;
    });
  }

  draw(boxes) {
    for (const box of boxes) if (box && !this.figures.has(box.image)) this.figure(box.image);
    for (const [image, { frame }] of this.figures) {
      const wanted = boxes.filter((box) => box?.image === image).sort((a, b) => area(b) - area(a));
      const kept = new Map([...frame.querySelectorAll(".box")].map((element) => [element.dataset.key, element]));
      const elements = wanted.map((box) => kept.get(key(box)) ?? this.box(box, wanted.length));
      for (const element of kept.values()) if (!elements.includes(element)) element.remove();
      elements.forEach((element) => { if (element.parentNode !== frame) frame.append(element); });
    }
    this.mark();
  }

  box(box, count) {
    const [x1, y1, x2, y2] = box.place.map((c) => Math.min(1, Math.max(0, c)));
    const label = count <= CROWD && box.label ? node("span", {}, box.label) : null;
    const element = node("button", { type: "button", class: "box", "data-n": box.n, "data-key": key(box), "aria-label": `${box.label || "place"}: ${box.pixels.join(", ")}`, onclick: () => this.pick([box.n]) }, label);
    Object.assign(element.style, { left: `${100 * x1}%`, top: `${100 * y1}%`, width: `${100 * (x2 - x1)}%`, height: `${100 * (y2 - y1)}%` });
    element.style.setProperty("--c", box.colour);
    element.classList.toggle("low", y1 < 0.07);
    element.box = box;
    return element;
  }

  /** Picks boxes by number; the same again lets them go. */
  pick(numbers) {
    this.picked = numbers && String(this.picked) !== String(numbers) ? numbers : null;
    this.mark();
    if (this.picked) this.root.querySelector(".box.on")?.scrollIntoView({ block: "nearest" });
  }

  mark() {
    const on = new Set(this.picked ?? []);
    for (const element of this.root.querySelectorAll(".box, .ref")) {
      const numbers = element.dataset.n.split(" ").map(Number);
      element.classList.toggle("on", numbers.some((n) => on.has(n)));
      element.setAttribute("aria-pressed", String(numbers.some((n) => on.has(n))));
    }
    for (const { frame, caption, about } of this.figures.values()) {
      const picked = [...frame.querySelectorAll(".box.on")].map((element) => element.box);
      frame.classList.toggle("picked", picked.length > 0);
      caption.textContent = picked.length ? picked.map((box) => `${box.label || "place"}: ${box.pixels.slice(0, 2)} to ${box.pixels.slice(2)}`).join(" · ") : about;
    }
  }

  figure(image) {
    const medium = this.shown[image];
    if (!medium) return;
    const about = medium.width ? `${medium.name} · ${medium.width} × ${medium.height}` : medium.name;
    const missing = () => node("div", { class: "missing" }, `${medium.name} cannot be shown here`);
    const frame = node("div", { class: "frame" });
    if (medium.type.startsWith("video/") && medium.url) frame.append(node("video", { src: medium.url, controls: true, muted: true }));
    else if (medium.url ?? medium.preview) frame.append(node("img", { src: medium.url ?? medium.preview, alt: medium.name, onerror: (event) => event.target.replaceWith(missing()) }));
    else frame.append(missing());
    frame.classList.toggle("small-picture", medium.width < 420);
    const caption = node("figcaption", {}, about);
    this.figures.set(image, { frame, caption, about });
    this.media.append(node("figure", {}, frame, caption));
  }

  tell(usage) {
    const ms = usage.milliseconds ?? {};
    const seconds = Object.values(ms).reduce((sum, value) => sum + value, 0) / 1000;
    const cut = { length: "cut at the longest reply", repetition: "stopped: it went round in circles", time_limit: "out of time" }[this.exchange.finish];
    const summary = [cut, `${usage.prompt_tokens} tokens in, ${usage.completion_tokens} out`, seconds ? `${seconds.toFixed(1)} s` : null].filter(Boolean).join(" · ");
    const rows = [["of them vision", usage.vision_tokens], ["from the cache", usage.prompt_tokens_details?.cached_tokens], ["pictures known already", usage.cache_hits], ...(usage.resized_to ?? []).map(([h, w], i) => [`picture ${i + 1} seen at`, `${w} × ${h}`]), ...Object.entries(ms).map(([phase, value]) => [phase, `${Math.round(value)} ms`])];
    this.cost.replaceChildren(node("summary", {}, summary), node("dl", {}, ...rows.filter(([, value]) => value !== undefined).flatMap(([name, value]) => [node("dt", {}, name), node("dd", {}, String(value))])));
    this.cost.hidden = false;
  }
}

const area = (box) => (box.place[2] - box.place[0]) * (box.place[3] - box.place[1]);
const key = (box) => `${box.n}:${box.pixels}:${box.label}`;
