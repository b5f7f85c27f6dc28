// The server's API: lists, and answers as they come.

let apiKey = "";

export function useKey(key) {
  apiKey = key;
}

const headers = () => (apiKey ? { authorization: `Bearer ${apiKey}` } : {});

/** An error that the server tells of, with its status. */
export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function refused(response) {
  const body = await response.json().catch(() => null);
  return new ServerError(response.status, body?.error?.message ?? `the server answered with status ${response.status}`);
}

/** What a list of the server holds. */
export async function list(path) {
  const response = await fetch(path, { headers: headers() });
  if (!response.ok) throw await refused(response);
  return (await response.json()).data;
}

/** Asks for a chat answer and yields its chunks as they come. */
export async function* chat(body, signal) {
  const response = await fetch("/v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json", ...headers() },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true, include_outlay: true } }),
    signal,
  });
  if (!response.ok) throw await refused(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const events = (held + value).split("\n\n");
    held = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ") || event === "data: [DONE]") continue; // a comment, or the end
      const data = JSON.parse(event.slice(6));
      if (data.error) throw new ServerError(500, data.error.message);
      yield data;
    }
  }
}
