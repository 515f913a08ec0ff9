// @ts-check
// What Home reads: one overview, with a few tasks of each group, and the open requests again when they change.
import { now } from "../api.js";
import { NOT_RUNNING, isSilent } from "../state.js";

/** @typedef {"needs" | "running" | "ended"} Section */

/** The section of each group of an overview. @type {Record<string, Section>} */
export const SECTIONS = {
  idle: "needs", failed: "needs", not_running: "needs", lost: "needs", stalled: "needs",
  working: "running", active: "running", initializing: "running", pending: "running",
  complete: "ended",
};
/** The groups of what ended badly, or may. */
export const BADLY = /** @type {const} */ (["failed", "not_running", "lost", "stalled"]);

/** Search terms of what the sections show. */
export const WORKING = "status:active state:working";
export const ENDED = "state:complete";

const DAY = 24 * 3_600_000; // milliseconds
/** @param {any} task */
const isOfToday = (task) => Date.parse(task.updated_at) > now() - DAY;

/**
 * The lists of what needs a person, each with the group that has its tasks: how many there are of a list by the totals, or which of
 * the tasks that are known are in it.
 * @type {{group: string, label: string, q: string, total?: (totals: any) => number, has?: (task: any) => boolean}[]}
 */
export const NEEDING = [
  { group: "requests", label: "waiting for someone", q: "waiting:true", total: ({ attention }) => attention.waiting },
  { group: "idle", label: "idle", q: "status:active state:idle health:healthy waiting:false", total: ({ attention }) => attention.idle },
  {
    group: "failed", label: "failed", q: "failed:true changed:<1d",
    has: (task) => (task.status === "error" || task.current_state?.state === "failed") && isOfToday(task),
  },
  {
    group: "not_running", label: "ended", q: "health:not_running changed:<1d",
    has: (task) => task.workspace_agent_health?.reason === NOT_RUNNING && task.agent_exit?.why !== "lost" && isOfToday(task),
  },
  { group: "lost", label: "lost", q: "health:lost changed:<1d", has: (task) => isSilent(task) && isOfToday(task) },
  { group: "stalled", label: "stalled", q: "stalled:true", total: ({ attention }) => attention.stalled, has: (task) => Boolean(task.stalled_since) },
];

/**
 * Return the path of the overview of the tasks that match.
 * @param {string} terms
 */
export function overviewPath(terms) {
  return `/task-overview${terms && `?q=${encodeURIComponent(terms)}`}`;
}

/**
 * Return the path of what the agents of the tasks that match ask.
 * @param {string} terms
 */
export function requestsPath(terms) {
  return `/requests?limit=50${terms && `&q=${encodeURIComponent(terms)}`}`;
}
