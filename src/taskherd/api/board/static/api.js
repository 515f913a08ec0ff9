// @ts-check
// Requests to the API. Errors are values with the API's own message; nothing here throws but the reading of a stream.
import * as session from "./session.js";

const BASE = "/api/v2";
const MAX_CACHED = 60;
const LONGEST = 20_000; // milliseconds after which the answer to a read is not waited for any more
const LONGEST_WRITE = 30_000; // the same of a write, for which the API waits up to TASKHERD_API_COMMAND_TIMEOUT
const UNREACHABLE = "The server cannot be reached.";
const CHECK = "Check the connection, then try again.";
const FOREIGN = "The answer is not from taskherd.";
const LSN = "X-Taskherd-LSN";

/**
 * What a request came to. `status` 0: no answer, or not one of the API; `aborted`: the page was left meanwhile, so nothing is
 * to be shown.
 * @template T
 * @typedef {{ok: true, status: number, value: T, headers: Headers, unchanged: boolean}
 *   | {ok: false, status: number, message: string, detail: string, validations: {field: string, detail: string}[],
 *      retryAfter: number, aborted: boolean}} Result
 */

/** @typedef {{signal?: AbortSignal, cached?: boolean}} ReadOptions */

/** @type {Map<string, {etag: string, value: any}>} */
const cache = new Map();
/**
 * Requests that `boot.js` has begun with the token of then, by path; each is taken once.
 * @type {Map<string, {answer: Promise<{response: Response, text: string}>, stop: AbortController, token: string}>}
 */
const begun = /** @type {any} */ (window).taskherdBegun || new Map();
let skew = 0;

/** The server's time in milliseconds since the epoch, as far as its answers have told it. */
export function now() {
  return Date.now() + skew;
}

/** Forget all that was read, as after signing out. */
export function forget() {
  cache.clear();
  dropBegun();
}
session.onChange(forget);

/** Drop the requests that `boot.js` has begun and nobody has taken. */
export function dropBegun() {
  for (const { stop } of begun.values()) stop.abort();
  begun.clear();
}

/**
 * Read a path below `/api/v2`. What was read before is sent again only if it has changed (`unchanged` is then true).
 * @param {string} path
 * @param {ReadOptions} [options]
 * @returns {Promise<Result<any>>}
 */
export async function get(path, { signal, cached = true } = {}) {
  const known = cached ? cache.get(path) : undefined;
  const result = await request("GET", path, { signal, headers: known ? { "If-None-Match": known.etag } : {} });
  if (!result.ok) return result;
  if (result.status === 304 && known) return { ...result, value: known.value, unchanged: true };
  const etag = result.headers.get("ETag");
  if (etag && cached) {
    cache.delete(path);
    cache.set(path, { etag, value: result.value });
    if (cache.size > MAX_CACHED) cache.delete(/** @type {string} */ (cache.keys().next().value));
  }
  return result;
}

/** @type {Set<(change: string, ok: boolean) => void>} */
const sentListeners = new Set();

/** @param {(change: string, ok: boolean) => void} listener called with each change that was answered, `METHOD path` */
export function onSent(listener) {
  sentListeners.add(listener);
}

/**
 * Change something. The request has an idempotency key, and is repeated once with it if the API gave no answer.
 * @param {"POST" | "PATCH" | "DELETE"} method
 * @param {string} path
 * @param {any} [body]
 * @param {{signal?: AbortSignal, key?: string}} [options]
 * @returns {Promise<Result<any>>}
 */
export async function send(method, path, body = undefined, { signal, key = newKey() } = {}) {
  /** @type {Record<string, string>} */
  const headers = { "Idempotency-Key": key };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const options = { signal, headers, body: body === undefined ? undefined : JSON.stringify(body) };
  let answer = await request(method, path, options);
  if (!answer.ok && answer.status === 0 && !answer.aborted) answer = await request(method, path, options);
  if (answer.ok || !answer.aborted) for (const listener of sentListeners) listener(`${method} ${path}`, answer.ok);
  return answer;
}

/**
 * Return whose token it is, or why it is not accepted.
 * @param {string} token
 * @returns {Promise<{user: string, problem: string}>}
 */
export async function check(token) {
  const answer = await request("GET", "/users/me", { headers: { "Coder-Session-Token": token } });
  if (answer.ok) return { user: answer.value.username, problem: "" };
  return { user: "", problem: answer.status === 401 ? "The token is not valid." : explain(answer) };
}

/** A random UUID. `crypto.randomUUID` exists in secure contexts only. */
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

/**
 * Open a stream, such as one of server-sent events; its body has not been read.
 * @param {string} path
 * @param {{signal: AbortSignal, headers?: Record<string, string>}} options
 * @returns {Promise<Result<Response>>}
 */
export function open(path, options) {
  return request("GET", path, { ...options, stream: true });
}

/**
 * Read server-sent events out of a response of fetch until the stream ends, as
 * https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation has them: one that was cut off does not
 * count, nor does its id. Throws what reading throws; what a handler throws is told as an error of the page, and the stream goes on: the same
 * event would fail again.
 * @param {Response} response
 * @param {{event: (name: string, data: string) => void, id?: (id: string) => void, bytes?: () => void}} on
 */
export async function readEvents(response, on) {
  const body = /** @type {ReadableStream<BufferSource>} */ (/** @type {unknown} */ (response.body));
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let incomplete = "", event = "", data = "", id = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    on.bytes?.();
    const lines = (incomplete + value).split("\n");
    incomplete = lines.pop() || "";
    for (const line of lines) {
      if (line === "") {
        if (data || event) attempt(() => on.event(event, data));
        if (id) attempt(() => on.id?.(id));
        event = data = id = "";
      } else if (line.startsWith("id: ")) id = line.slice(4);
      else if (line.startsWith("event: ")) event = line.slice(7);
      else if (line.startsWith("data: ")) data += line.slice(6);
    }
  }
}

/** @param {() => void} handle */
function attempt(handle) {
  try {
    handle();
  } catch (error) {
    reportError(error);
  }
}

/**
 * @param {string} method
 * @param {string} path
 * @param {{signal?: AbortSignal, headers?: Record<string, string>, body?: string, stream?: boolean}} options
 * @returns {Promise<Result<any>>}
 */
async function request(method, path, { signal, headers = {}, body, stream = false }) {
  const early = method === "GET" && begun.get(path);
  const stop = stream ? signal : within(method === "GET" ? LONGEST : LONGEST_WRITE, signal);
  const token = early ? early.token : session.token(), user = session.user();
  let response, text, value;
  try {
    if (early) {
      begun.delete(path);
      if (stop?.aborted) early.stop.abort();
      stop?.addEventListener("abort", () => early.stop.abort(), { once: true });
    }
    if (early) ({ response, text } = await early.answer);
    else response = await fetch(BASE + path, {
      method, body, signal: stop, cache: "no-store", credentials: "omit", redirect: "error",
      headers: {
        Accept: stream ? "text/event-stream" : "application/json", "Coder-Session-Token": token, ...written(), ...headers,
      },
    });
    if (response.ok && stream) value = response;
    else value = parse(text ?? await response.text());
  } catch (error) {
    return failure(0, { message: UNREACHABLE, detail: CHECK }, signal?.aborted);
  }
  if (response.ok && value === undefined) return failure(0, { message: FOREIGN, detail: CHECK }); // it may have arrived
  const date = Date.parse(response.headers.get("Date") || "");
  if (date && Math.abs(date + 500 - Date.now() - skew) > 1500) skew = date + 500 - Date.now();
  const lsn = response.headers.get(LSN);
  if (lsn) sessionStorage.setItem(LSN, lsn);
  if (response.ok || response.status === 304) {
    return { ok: true, status: response.status, value, headers: response.headers, unchanged: false };
  }
  if (response.status === 401 && token) {
    if (await session.renew(token, user)) return request(method, path, { signal, headers, body, stream });
    return failure(401, value, true); // the page is gone: the sign-in stands in its place
  }
  return failure(response.status, value, false, Number(response.headers.get("Retry-After")) || 0);
}

/**
 * Return a signal that aborts with this one, or once an answer has taken so many milliseconds.
 * @param {number} longest
 * @param {AbortSignal} [signal]
 */
function within(longest, signal) {
  const limit = AbortSignal.timeout(longest);
  return signal ? AbortSignal.any([signal, limit]) : limit;
}

/**
 * The header with which a read shows the last write of this tab, whichever process it reaches: as the write's response had it.
 * @returns {Record<string, string>}
 */
function written() {
  const lsn = sessionStorage.getItem(LSN);
  return lsn ? { [LSN]: lsn } : {};
}

/**
 * Return the value of an answer's text, null if it has none, and undefined if it is no JSON but a page, as of a proxy.
 * @param {string} text
 */
function parse(text) {
  try {
    return text ? JSON.parse(text) : null;
  } catch {
    return undefined;
  }
}

/**
 * @param {number} status
 * @param {any} body
 * @returns {Result<any>}
 */
function failure(status, body, aborted = false, retryAfter = 0) {
  const message = typeof body?.message === "string" ? body.message : `The server answered ${status}.`;
  return {
    ok: false, status, message, detail: body?.detail || "", validations: body?.validations || [], retryAfter, aborted,
  };
}

/**
 * A failure in one or two sentences, for people.
 * @param {{message: string, detail?: string, validations?: {field: string, detail: string}[]}} failed
 */
export function explain(failed) {
  const rest = failed.validations?.length ? failed.validations.map((each) => each.detail).join(" ") : failed.detail;
  return rest && rest !== failed.message ? `${failed.message} ${rest}` : failed.message;
}

/**
 * Return whether a request may have been carried out although nothing confirms it: it is sent again with its key.
 * @param {Result<any>} answer
 */
export function isUnsettled(answer) {
  return !answer.ok && (answer.status === 0 || answer.status >= 500);
}

/**
 * The path of a task, or of something below it.
 * @param {{owner_name: string, name: string}} task
 */
export function taskPath(task, rest = "") {
  return `/tasks/${encodeURIComponent(task.owner_name)}/${encodeURIComponent(task.name)}${rest}`;
}

/**
 * The page that starts a task like this one: with its template, prompt and labels.
 * @param {{owner_name: string, name: string}} task
 */
export function likePath(task) {
  return `/new?from=${encodeURIComponent(task.owner_name)}/${encodeURIComponent(task.name)}`;
}
