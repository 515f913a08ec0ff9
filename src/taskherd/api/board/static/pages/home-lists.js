// @ts-check
// What Home reads: of each list a few tasks, and only if the totals say that there are any.

/** @typedef {"needs" | "running" | "ended"} Section */

/**
 * @typedef {object} Part
 * @property {Section} section
 * @property {string} path of the API, without the terms
 * @property {string} q
 * @property {(totals: any) => number} most how many there may be, by the totals of the same tasks
 */

const PER_LIST = 12; // tasks that are read for each list
const REQUESTS = 50;
const UNKNOWN = 3; // rows that room is kept for before the totals are there
const LATELY = "changed:<1d"; // as long as Home shows what ended badly

/** @type {Part} */
export const ASKED = { section: "needs", path: `/requests?limit=${REQUESTS}`, q: "", most: (totals) => totals.attention.waiting };
/** @type {Part} */
export const IDLE = list("needs", "status:active state:idle waiting:false", (totals) => totals.attention.idle ?? totals.by_state.idle, "&sort=changed-asc");

export const ENDED = "state:complete";

/** @type {Part[]} */
export const PARTS = [
  ASKED,
  IDLE,
  list("needs", `failed:true ${LATELY}`, (totals) => totals.attention.failed),
  list("needs", `health:not_running ${LATELY}`, (totals) => totals.by_health.not_running),
  list("needs", `health:lost ${LATELY}`, (totals) => totals.attention.lost),
  list("needs", "stalled:true", (totals) => totals.attention.stalled),
  list("running", "status:active state:working", (totals) => totals.by_state.working),
  list("running", "status:active", (totals) => totals.by_state.none), // agents that have not said anything
  list("running", "status:initializing", (totals) => totals.by_status.initializing),
  list("running", "status:pending", (totals) => totals.by_status.pending),
  list("ended", ENDED, (totals) => totals.by_state.complete, "&sort=changed"),
];

/**
 * @param {Section} section
 * @param {string} q
 * @param {(totals: any) => number} most
 * @param {string} more
 * @returns {Part}
 */
function list(section, q, most, more = "") {
  return { section, path: `/tasks?limit=${PER_LIST}${more}`, q, most };
}

/**
 * Return the path of a part, with the terms of all parts.
 * @param {Part} part
 * @param {string} terms
 */
export function pathOf({ path, q }, terms) {
  const all = `${terms} ${q}`.trim();
  return all ? `${path}&q=${encodeURIComponent(all)}` : path;
}

/**
 * Return how many rows to keep room for, of what is not shown yet: of requests, the rest of what needs a person, and
 * the other sections. Agents that failed do not run.
 * @param {Set<Part>} late
 * @param {any} totals null if they are not known
 * @param {{idle: number, bad: number}} known rows that were read and wait for others to be shown
 */
export function room(late, totals, known) {
  const rows = { asks: 0, needs: late.size ? UNKNOWN : 0, running: 0, ended: 0 };
  if (!totals) return rows;
  const { waiting, failed, lost, stalled } = totals.attention;
  const left = new Set(late);
  if (left.delete(ASKED)) rows.asks = waiting;
  const idle = left.delete(IDLE) ? IDLE.most(totals) : 0;
  const isBadLate = [...left].some(({ section }) => section === "needs");
  const bad = isBadLate ? Math.max(failed, totals.by_health.not_running) + lost + stalled : 0;
  rows.needs = Math.max(idle, known.idle) + Math.max(bad, known.bad);
  for (const { section, most } of left) if (section !== "needs") rows[section] += most(totals) || 0;
  return rows;
}
