// @ts-check
// Views of the list of tasks: some that everybody has, and those that were saved in this browser.

const KEY = "taskherd-views";
const MAX = 30;

/** @typedef {{name: string, q: string, sort: string, saved?: boolean}} View */

/** @type {View[]} */
const BUILT_IN = [
  { name: "All", q: "", sort: "" },
  { name: "Mine", q: "owner:me", sort: "" },
  { name: "Waiting for someone", q: "waiting:true", sort: "" },
  { name: "Working", q: "state:working", sort: "" },
  { name: "Idle", q: "state:idle", sort: "" },
  { name: "Failed", q: "failed:true", sort: "changed" },
  { name: "My failed of today", q: "owner:me failed:true changed:<1d", sort: "" },
  { name: "Lost", q: "health:lost", sort: "changed" },
];

/** @returns {View[]} */
function saved() {
  try {
    const stored = JSON.parse(localStorage.getItem(KEY) || "[]");
    return Array.isArray(stored) ? stored.filter((each) => typeof each?.name === "string" && typeof each.q === "string") : [];
  } catch {
    return [];
  }
}

/** @returns {View[]} */
export function list() {
  return [...BUILT_IN, ...saved().map((each) => ({ name: each.name, q: each.q, sort: each.sort || "", saved: true }))];
}

/** @param {View} view one of the same name is replaced */
export function save(view) {
  const others = saved().filter((each) => each.name !== view.name);
  localStorage.setItem(KEY, JSON.stringify([...others, view].slice(-MAX)));
}

/** @param {string} name */
export function remove(name) {
  localStorage.setItem(KEY, JSON.stringify(saved().filter((each) => each.name !== name)));
}

/** @param {View} view */
export function address({ q, sort }) {
  const query = new URLSearchParams({ ...(q && { q }), ...(sort && { sort }) }).toString().replaceAll("%3A", ":");
  return query ? `/tasks?${query}` : "/tasks";
}
