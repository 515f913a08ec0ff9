// @ts-check
// What Home reads: one overview, with a few tasks of each group, and the open requests again when they change.

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
export const IDLE = "status:active state:idle waiting:false";
export const WORKING = "status:active state:working";
export const ENDED = "state:complete";

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
