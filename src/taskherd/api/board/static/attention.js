// @ts-check
// How many things need a person: in the title of the window and on its icon, also while the tab is hidden.
import * as api from "./api.js";

const EVERY = 30_000; // milliseconds between two looks
const AT_LEAST = 2_000; // milliseconds between two looks that changes cause
const ICON_AFTER = 200; // milliseconds: a page shows its content first
const NAME = "taskherd";
/** Where the browser keeps whose tasks Home shows: `mine` or `everyone`. */
export const SCOPE_KEY = "taskherd-home-scope";

let page = "";
/** The terms of the tasks that are counted. */
let terms = localStorage.getItem(SCOPE_KEY) === "everyone" ? "" : "owner:me";
/** @type {{others: number, key: string} | null} */
let seen = null; // how many tasks the totals do not tell, and what of these changes with their number
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
 * @param {number} count how many tasks need a person
 * @param {number} others how many of them the totals do not tell: what ended badly lately, and agents that wait and are not well
 * @param {any} totals null if they are not known
 */
export function set(count, others, totals) {
  if (totals) seen = { others, key: keyOf(totals) };
  showCount(count);
}

/**
 * The numbers that change whenever one of the tasks does that the totals do not tell.
 * @param {any} totals
 */
function untold({ attention: { failed, lost, stalled }, by_health: { healthy, none, ...unwell } }) {
  return [failed, lost, stalled, ...Object.values(unwell)];
}

/** @param {any} totals */
function keyOf(totals) {
  return untold(totals).join();
}

/** @param {number} count */
function showCount(count) {
  if (count === needs) return;
  needs = count;
  show();
}

/**
 * How many tasks need a person that the totals do not tell, as Home would show them; null if they cannot be read.
 * @param {any} totals
 */
async function readOthers(totals) {
  if (!untold(totals).some(Boolean)) return 0;
  const [{ BADLY, overviewPath }, { isUntold, needOf }] = await Promise.all([import("./pages/home-lists.js"), import("./pages/home-rows.js")]);
  const answer = await api.get(overviewPath(terms));
  if (!answer.ok) return null;
  const tasks = new Map(["idle", ...BADLY].flatMap((name) => answer.value.groups[name].tasks).map((task) => [task.id, task]));
  return [...tasks.values()].filter((task) => isUntold(needOf(task)?.kind || "", task)).length;
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
    const key = answer.ok ? keyOf(answer.value) : "";
    const others = answer.ok && seen?.key !== key ? await readOthers(answer.value).catch(() => null) : null;
    if (answer.ok && of === terms && !isSaid()) {
      if (others !== null) seen = { others, key };
      const { waiting, idle } = answer.value.attention;
      showCount(waiting + (idle ?? 0) + (seen?.others ?? 0));
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
