// @ts-check
// How many things need a person: in the title of the window and on its icon, also while the tab is hidden.
import * as api from "./api.js";

const EVERY = 30_000; // milliseconds between two looks
const AT_LEAST = 2_000; // milliseconds between two looks that changes cause
const ICON_AFTER = 200; // milliseconds: a page shows its content first
const NAME = "taskherd";

let page = "";
/** @type {AbortSignal | null} */
let owner = null; // of the page that says itself what needs a person
let needs = 0;
let timer = 0;
let lastLook = 0;
let iconTimer = 0;

/** @param {string} title */
export function setTitle(title) {
  page = title;
  show();
}

/**
 * From now on a page sets what needs a person, and nobody looks, until the page is left.
 * @param {AbortSignal} signal
 */
export function own(signal) {
  owner = signal;
  signal.addEventListener("abort", changed, { once: true });
}

/** @param {number} count */
export function set(count) {
  if (count === needs) return;
  needs = count;
  show();
}

/** Look soon: something changed. */
export function changed() {
  if (!timer) return;
  clearTimeout(timer);
  timer = setTimeout(look, Math.max(0, lastLook + AT_LEAST - Date.now()));
}

export function start() {
  clearTimeout(timer);
  timer = setTimeout(look, 0);
}

export function stop() {
  clearTimeout(timer);
  timer = 0;
  set(0);
}

async function look() {
  lastLook = Date.now();
  if (!owner || owner.aborted) {
    const answer = await api.get("/task-totals");
    if (answer.ok && (!owner || owner.aborted)) set(answer.value.attention.waiting);
  }
  if (timer) timer = setTimeout(look, EVERY);
}

function show() {
  document.title = `${needs ? `(${needs}) ` : ""}${page ? `${page} · ` : ""}${NAME}`;
  iconTimer ||= setTimeout(showIcon, ICON_AFTER);
}

function showIcon() {
  iconTimer = 0;
  const icon = /** @type {HTMLLinkElement | null} */ (document.getElementById("favicon"));
  const href = new URL(needs ? "icon-needs.svg" : "icon.svg", import.meta.url).pathname;
  if (icon && icon.getAttribute("href") !== href) icon.href = href;
}
