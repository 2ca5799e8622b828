// What this browser remembers: settings and conversations, in localStorage.
// Knows: keys, and that space runs out. Does not know: the page, the server.

const SETTINGS = "qvl.settings", TALKS = "qvl.conversations", THEME = "qvl.theme";

export const DEFAULTS = { system: "", max_tokens: "", temperature: "", top_p: "", seed: "", max_pixels: "", key: "" };

function read(key, otherwise) {
  try { return JSON.parse(localStorage.getItem(key)) ?? otherwise; } catch { return otherwise; }
}

/** Where space runs out, the oldest conversations go. */
function write(key, value, talks = conversations()) {
  for (;;) {
    try { localStorage.setItem(key, JSON.stringify(value)); return; } catch { if (!talks.pop()) return; }
    if (value !== talks) localStorage.setItem(TALKS, JSON.stringify(talks));
  }
}

export const settings = () => ({ ...DEFAULTS, ...read(SETTINGS, {}) });
export const saveSettings = (values) => write(SETTINGS, values);
export const theme = () => read(THEME, "");
export const saveTheme = (name) => write(THEME, name);

/** Newest first. */
export const conversations = () => read(TALKS, []);

/** Puts a conversation first. */
export function remember(talk) {
  const media = (m) => ({ id: m.id, name: m.name, type: m.type, preview: m.preview, width: m.width, height: m.height, fileId: m.fileId });
  const plain = { ...talk, exchanges: talk.exchanges.map((e) => ({ ...e, media: e.media.map(media) })) };
  const all = [plain, ...conversations().filter((other) => other.id !== talk.id)];
  write(TALKS, all, all);
}

export function forget(id) {
  localStorage.setItem(TALKS, JSON.stringify(id === undefined ? [] : conversations().filter((talk) => talk.id !== id)));
}
