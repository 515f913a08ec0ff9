// @ts-check
// Server-sent events out of a response of fetch, as
// https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation has them.

/**
 * Read events until the stream ends. Throws what reading throws.
 * @param {Response} response
 * @param {{event: (name: string, data: string) => void, id?: (id: string) => void, bytes?: () => void}} on
 */
export async function readEvents(response, on) {
  const body = /** @type {ReadableStream<BufferSource>} */ (/** @type {unknown} */ (response.body));
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let incomplete = "", event = "", data = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    on.bytes?.();
    const lines = (incomplete + value).split("\n");
    incomplete = lines.pop() || "";
    for (const line of lines) {
      if (line === "") {
        if (data || event) on.event(event, data);
        event = data = "";
      } else if (line.startsWith("id: ")) on.id?.(line.slice(4));
      else if (line.startsWith("event: ")) event = line.slice(7);
      else if (line.startsWith("data: ")) data += line.slice(6);
    }
  }
}
