// @ts-check
// How many things need a person: in the title of the window and on its icon, also while the tab is hidden.
import * as api from "./api.js";

const EVERY = 30_000; // milliseconds between two looks
const AT_LEAST = 2_000; // milliseconds between two looks that changes cause
const ICON_AFTER = 200; // milliseconds: a page shows its content first
const NAME = "taskherd";
const BAD = /** @type {const} */ (["failed", "lost", "stalled"]);
/** Where the browser keeps whose tasks Home shows: `mine` or `everyone`. */
export const SCOPE_KEY = "taskherd-home-scope";

let page = "";
/** The terms of the tasks that are counted. */
let terms = localStorage.getItem(SCOPE_KEY) === "everyone" ? "" : "owner:me";
/** @type {{bad: number, attention: any} | null} */
let seen = null; // how many tasks had ended badly lately when somebody read them, and the totals of then
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

/**
 * Count the tasks of these terms from now on.
 * @param {string} wanted
 */
export function count(wanted) {
  if (wanted === terms) return;
  terms = wanted;
  seen = null;
}

/**
 * Say what a page has found.
 * @param {number} count how many things need a person
 * @param {number} bad how many of them ended badly
 * @param {any} totals null if they are not known
 */
export function set(count, bad, totals) {
  if (totals) seen = { bad, attention: totals.attention };
  showCount(count);
}

/** @param {number} count */
function showCount(count) {
  if (count === needs) return;
  needs = count;
  show();
}

/**
 * How many tasks have ended badly lately, as Home would show them; null if they cannot be read.
 * @param {any} totals
 */
async function readBad(totals) {
  if (!BAD.some((each) => totals.attention[each]) && !totals.by_health.not_running) return 0;
  const [{ BADLY, overviewPath }, { BAD: KINDS, needOf }] = await Promise.all([import("./pages/home-lists.js"), import("./pages/home-rows.js")]);
  const answer = await api.get(overviewPath(terms));
  if (!answer.ok) return null;
  const tasks = new Map(BADLY.flatMap((name) => answer.value.groups[name].tasks).map((task) => [task.id, task]));
  return [...tasks.values()].filter((task) => KINDS.has(needOf(task)?.kind || "")).length;
}

/**
 * How many things need a person by the totals: agents that wait, and what had ended badly, or has since.
 * @param {any} totals
 */
function countBy({ attention }) {
  const { bad, attention: then } = seen || { bad: 0, attention };
  const since = BAD.reduce((sum, each) => sum + Math.max(0, attention[each] - then[each]), 0);
  return attention.waiting + (attention.idle ?? 0) + bad + since;
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
  seen = null;
  showCount(0);
}

/** Whether a page that is seen says itself what needs a person; it rests while its tab is hidden. */
function isSaid() {
  return owner !== null && !owner.aborted && !document.hidden;
}

async function look() {
  lastLook = Date.now();
  if (!isSaid()) {
    const of = terms;
    const answer = await api.get(`/task-totals${of && `?q=${of}`}`);
    const bad = answer.ok && !seen ? await readBad(answer.value).catch(() => null) : null;
    if (answer.ok && of === terms && !isSaid()) {
      if (bad !== null) seen ||= { bad, attention: answer.value.attention };
      showCount(countBy(answer.value));
    }
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
