// The server as the page uses it: model, uploads, streamed replies.
// Knows: HTTP and server-sent events. Does not know: the page.

const headers = (key) => key ? { Authorization: `Bearer ${key}` } : {};

async function failure(response) {
  const error = await response.json().then((body) => body.error, () => null);
  return Object.assign(new Error(error?.message ?? `the server answers with status ${response.status}`), { status: response.status });
}

export async function modelName(key, signal) {
  const response = await fetch("v1/models", { headers: headers(key), signal });
  if (!response.ok) throw await failure(response);
  return (await response.json()).data[0].id;
}

/** The id under which later requests name the file. */
export async function upload(blob, name, key, signal) {
  const form = new FormData();
  form.append("purpose", "vision");
  form.append("file", blob, name);
  const response = await fetch("v1/files", { method: "POST", body: form, headers: headers(key), signal });
  if (!response.ok) throw await failure(response);
  return (await response.json()).id;
}

/** Chunks of a streamed reply, as they come. */
export async function* chat(body, key, signal) {
  const response = await fetch("v1/chat/completions", {
    method: "POST", body: JSON.stringify(body), signal, headers: { "Content-Type": "application/json", ...headers(key) },
  });
  if (!response.ok) throw await failure(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the connection broke off");
    held += value;
    for (let at; (at = held.indexOf("\n\n")) >= 0; held = held.slice(at + 2)) {
      const data = held.slice(0, at).replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk;
    }
  }
}
