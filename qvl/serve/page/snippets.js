// A request as code that somebody can run: curl and Python.
// Knows: quoting. Does not know: the page.

/** Stands for the bytes of a file in a request's body. */
class Hole {
  constructor({ name, type }) { Object.assign(this, { name, type }); }
  toJSON() { return `\u0000${this.type} ${this.name}\u0000`; }
}

/** The request's body, not streamed, with holes in the place of uploaded files (`mediumOf(url)`: their name and type). */
export function withHoles(body, mediumOf) {
  const filled = (part) => {
    const medium = mediumOf(part[part.type]?.url);
    return medium ? { ...part, [part.type]: { ...part[part.type], url: new Hole(medium) } } : part;
  };
  const { stream, stream_options, ...rest } = body;
  const messages = body.messages.map(({ role, content }) => ({ role, content: Array.isArray(content) ? content.map(filled) : content }));
  return { ...rest, messages };
}

export function curl(body, origin, withKey) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const pieces = JSON.stringify(body, null, 1).split(/\\u0000(.*?)\\u0000/); // words, hole, words, hole, words
  const json = pieces.map((piece, i) => {
    if (i % 2 === 0) return quoted(piece);
    const [type, ...name] = JSON.parse(`"${piece}"`).split(" ");
    return `${quoted(`data:${type};base64,`)}"$(base64 < ${quoted(name.join(" "))} | tr -d '\\n')"`;
  });
  const key = withKey ? ' -H "Authorization: Bearer $QVL_KEY"' : "";
  return `printf %s ${json.join("")} |\n  curl ${origin}/v1/chat/completions -H 'Content-Type: application/json'${key} --data-binary @-\n`;
}

export function python(body, origin, withKey) {
  const options = Object.entries(body).filter(([, value]) => value !== undefined);
  const hasFiles = JSON.stringify(body).includes("\\u0000");
  const reader = ["", "def data_uri(file, kind):", '    return f"data:{kind};base64,{base64.b64encode(open(file, \'rb\').read()).decode()}"', "", ""];
  return [
    ...(hasFiles ? ["import base64", ""] : []), "from openai import OpenAI", "", ...(hasFiles ? reader : []),
    `client = OpenAI(base_url="${origin}/v1", api_key="${withKey ? "KEY" : "none"}")`,
    "reply = client.chat.completions.create(",
    ...options.map(([name, value]) => `    ${name}=${literal(value, "    ")},`),
    ")",
    "print(reply.choices[0].message.content)",
    "print(reply.choices[0].message.boxes)  # in pixels of the picture",
    "",
  ].join("\n");
}

/** A value as Python writes it. */
function literal(value, indent = "") {
  const inner = `${indent}    `;
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (value instanceof Hole) return `data_uri(${JSON.stringify(value.name)}, ${JSON.stringify(value.type)})`;
  if (Array.isArray(value)) return `[\n${value.map((item) => `${inner}${literal(item, inner)},\n`).join("")}${indent}]`;
  if (typeof value === "object") return `{\n${Object.entries(value).map(([k, v]) => `${inner}${JSON.stringify(k)}: ${literal(v, inner)},\n`).join("")}${indent}}`;
  return JSON.stringify(value);
}
