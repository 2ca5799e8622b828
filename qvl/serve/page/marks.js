// A reply's text with grounding marks of either family -> what is shown: words, references, and their boxes.
// Knows: how places are spelled, coordinates 0..999 of the picture. Does not know: pictures, the page.

const KINDS = {
  "<|object_ref_start|>": ["ref", true], "<|object_ref_end|>": ["ref", false], "<ref>": ["ref", true], "</ref>": ["ref", false],
  "<|box_start|>": ["box", true], "<|box_end|>": ["box", false], "<box>": ["box", true], "</box>": ["box", false],
  "<|quad_start|>": ["quad", true], "<|quad_end|>": ["quad", false], "<quad>": ["quad", true], "</quad>": ["quad", false],
};
const MARKS = Object.keys(KINDS);
const PATTERN = new RegExp(MARKS.map((mark) => mark.replace(/[|/]/g, "\\$&")).join("|"), "g");
const POINTS = /^\s?\(\d{1,4},\s?\d{1,4}\)(?:,\s?\(\d{1,4},\s?\d{1,4}\))+\s?$/;

/** Pieces in order: {text} or {label, boxes: [{n, place: [x1, y1, x2, y2]}]}; `n` counts the boxes of the reply. */
export function parse(text, streaming = false) {
  if (streaming) text = withoutBegunMark(text);
  const pieces = [];
  let open = null, end = 0, boxes = 0;
  const say = (words) => { if (words) pieces.push({ text: words }); };
  for (const found of text.matchAll(PATTERN)) {
    const [kind, opens] = KINDS[found[0]];
    const body = text.slice(end, found.index);
    if (open && !opens && open === kind && kind === "ref") pieces.push({ label: body.trim(), boxes: [] });
    else if (open && !opens && open === kind) {
      const place = readPlace(kind, body);
      if (place) lastReference(pieces).boxes.push({ n: boxes++, place });
      else say(body);
    } else say(body);
    open = opens ? kind : null;
    end = found.index + found[0].length;
  }
  const rest = text.slice(end);
  if (open === "ref" && streaming) pieces.push({ label: rest.trim(), boxes: [] });
  else if (open !== "box" && open !== "quad" || !streaming) say(rest);
  return pieces;
}

/** The reply as plain words. */
export const plain = (text) => parse(text).map((piece) => piece.text ?? piece.label).join("");

function lastReference(pieces) {
  const last = pieces.at(-1);
  if (last?.boxes) return last;
  pieces.push({ label: "", boxes: [] });
  return pieces.at(-1);
}

function readPlace(kind, body) {
  if (!POINTS.test(body)) return null;
  const written = body.match(/\d+/g).map(Number), n = written.map((c) => Math.min(c, 999)); // 1000 is the far edge
  if (n.length !== (kind === "box" ? 4 : 8) || Math.max(...written) > 1000) return null;
  if (kind === "box") return n[0] <= n[2] && n[1] <= n[3] ? n : null;
  const xs = n.filter((_, i) => i % 2 === 0), ys = n.filter((_, i) => i % 2 === 1);
  return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
}

function withoutBegunMark(text) {
  const at = text.lastIndexOf("<");
  return at >= 0 && MARKS.some((mark) => mark !== text.slice(at) && mark.startsWith(text.slice(at))) ? text.slice(0, at) : text;
}
