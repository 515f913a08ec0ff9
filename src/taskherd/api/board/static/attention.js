// @ts-check
// How many things need a person: in the title of the window and on its icon, also while the tab is hidden.
import * as api from "./api.js";

const EVERY = 30_000; // milliseconds between two looks
const AT_LEAST = 2_000; // milliseconds between two looks that changes cause
const NAME = "taskherd";

let page = "";
let needs = 0;
let timer = 0;
let lastLook = 0;
/** @type {Set<(count: number) => void>} */
const listeners = new Set();

/** @param {string} title */
export function setTitle(title) {
  page = title;
  show();
}

/**
 * Call a function with the number of open requests, now and whenever it changes.
 * @param {(count: number) => void} listener
 * @param {AbortSignal} signal
 */
export function onCount(listener, signal) {
  listeners.add(listener);
  signal.addEventListener("abort", () => listeners.delete(listener), { once: true });
  listener(needs);
}

/**
 * Set what needs a person, if a page knows it already.
 * @param {number} count
 */
export function set(count) {
  if (count === needs) return;
  needs = count;
  show();
  for (const listener of listeners) listener(count);
}

/** Look soon: something changed. */
export function changed() {
  if (!timer) return;
  clearTimeout(timer);
  timer = setTimeout(look, Math.max(0, lastLook + AT_LEAST - Date.now()));
}

export function start() {
  stop();
  timer = setTimeout(look, 0);
}

export function stop() {
  clearTimeout(timer);
  timer = 0;
  set(0);
}

async function look() {
  lastLook = Date.now();
  const answer = await api.get("/requests?limit=100");
  if (answer.ok) set(answer.value.requests.length);
  if (timer) timer = setTimeout(look, EVERY);
}

function show() {
  document.title = `${needs ? `(${needs}) ` : ""}${page ? `${page} · ` : ""}${NAME}`;
  const icon = /** @type {HTMLLinkElement | null} */ (document.getElementById("favicon"));
  const href = new URL(needs ? "icon-needs.svg" : "icon.svg", import.meta.url).pathname;
  if (icon && icon.getAttribute("href") !== href) icon.href = href;
}
