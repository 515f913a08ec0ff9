// @ts-check
// The search terms of lists, `key:value`: what there is, what each value may be, and what a query means in words.
import * as api from "./api.js";
import { plural, term } from "./format.js";
import * as session from "./session.js";

/** @typedef {{insert: string, label: string, hint: string, isBegun?: boolean}} Option `isBegun`: more is to follow at once */

/**
 * @typedef {object} Term
 * @property {string} key
 * @property {string} hint
 * @property {boolean} [live] whether the feed of changes knows it
 * @property {(typed: string, rows: any[]) => Option[] | Promise<Option[]>} values `rows` are the tasks that are shown
 */

const STATUSES = ["pending", "initializing", "active", "paused", "error", "unknown"];
const STATES = ["working", "idle", "complete", "failed"];
const HEALTHS = /** @type {[string, string][]} */ ([
  ["healthy", "it is heard, and well"], ["unhealthy", "any of the others"], ["connecting", "it has not been heard yet"],
  ["late", "it takes long to be heard for the first time"], ["lost", "its machine is silent, or was stopped"], ["not_running", "it has ended"],
  ["start_error", "its startup script failed"], ["shutting_down", "it is being stopped"],
]);
const AGES = /** @type {[string, string][]} */ ([
  ["<1h", "within the last hour"], ["<1d", "within the last day"], ["<7d", "within the last week"],
  [">1h", "more than an hour ago"], [">1d", "more than a day ago"], [">7d", "more than a week ago"],
]);

/** @param {[string, string][]} pairs */
const fixed = (pairs) => () => pairs.map(([label, hint]) => ({ insert: label, label, hint }));
/** @param {string[]} values */
const words = (values) => fixed(values.map((each) => [each, ""]));

/**
 * The names of the tasks that are shown.
 * @param {string} typed
 * @param {any[]} rows
 */
function names(typed, rows) {
  return rows.map(({ name, display_name: title }) => ({ insert: name, label: name, hint: title || "" }));
}

/** @type {Term[]} */
export const TERMS = [
  { key: "owner", hint: "whose: a username, or me", live: true, values: owners },
  { key: "status", hint: "of the workspace: active, paused, error, …", live: true, values: words(STATUSES) },
  { key: "state", hint: "of the agent: working, idle, complete, failed", live: true, values: words(STATES) },
  { key: "waiting", hint: "asks something of a person", live: true, values: fixed([["true", "an agent asks"], ["false", ""]]) },
  { key: "failed", hint: "its build or its agent failed", live: true, values: fixed([["true", "one of them failed"], ["false", ""]]) },
  { key: "stalled", hint: "works, but says nothing any more", live: true, values: fixed([["true", "says nothing any more"], ["false", ""]]) },
  { key: "health", hint: "of the agent: lost, unhealthy, …", live: true, values: fixed(HEALTHS) },
  { key: "template", hint: "the template it was made from", live: true, values: templates },
  { key: "name", hint: "how its name begins", live: true, values: names },
  { key: "label", hint: "a label, key=value", live: true, values: labels },
  { key: "created", hint: "<2h: less than two hours ago; >7d: more than a week ago", values: fixed(AGES) },
  { key: "changed", hint: "when something last happened: <1d, >7d", values: fixed(AGES) },
  { key: "pool", hint: "the pool of runners that it is for", values: pools },
  { key: "runner", hint: "the machine that it runs on", values: runners },
  { key: "organization", hint: "the organization that it belongs to", live: true, values: organizations },
];

/** @param {string} typed */
async function owners(typed) {
  const answer = await api.get(`/users?limit=8&q=${encodeURIComponent(typed)}`);
  const users = answer.ok ? answer.value.users : [];
  const found = users.map((/** @type {any} */ each) => ({ insert: each.username, label: each.username, hint: each.name || "" }));
  return [{ insert: "me", label: "me", hint: "yourself" }, ...found];
}

async function templates() {
  const answer = await api.get("/templates");
  if (!answer.ok) return [];
  return answer.value.map((/** @type {any} */ each) => ({ insert: each.name, label: each.name, hint: each.display_name || "" }));
}

async function organizations() {
  const answer = await api.get("/organizations");
  if (!answer.ok) return [];
  return answer.value.map((/** @type {any} */ each) => ({ insert: each.name, label: each.name, hint: each.display_name || "" }));
}

/** The pools, each with its runners; read once. @type {Promise<any[]> | undefined} */
let fleet;
session.onChange(() => (fleet = undefined)); // who signs in next may know of others

function fleetPools() {
  fleet ||= api.get("/fleet").then((answer) => {
    if (!answer.ok) fleet = undefined;
    return answer.ok ? answer.value.pools : [];
  });
  return fleet;
}

async function pools() {
  return (await fleetPools()).map(({ name, runners: its }) => ({ insert: name, label: name, hint: plural(its.length, "runner") }));
}

async function runners() {
  return (await fleetPools()).flatMap((pool) => pool.runners.map((/** @type {any} */ { name, agents }) => (
    { insert: name, label: name, hint: `pool ${pool.name}, ${plural(agents, "agent")}` })));
}

/**
 * The keys of labels, then the values of one, as far as the tasks that are shown have them.
 * @param {string} typed
 * @param {any[]} rows
 */
function labels(typed, rows) {
  const all = rows.flatMap((/** @type {any} */ task) => Object.entries(task.labels || {}));
  const isBegun = !typed.includes("=");
  const found = all.map(([key, value]) => (isBegun ? `${key}=` : `${key}=${value}`));
  return [...new Set(found)].sort().map((each) => ({ insert: each, label: each, hint: "", isBegun }));
}

/**
 * Where a character first is in a text outside of its quotes, -1 if nowhere.
 * @param {string} text
 * @param {string} character
 */
function find(text, character, from = 0) {
  return text.replace(/"[^"]*"?/g, (quotes) => "_".repeat(quotes.length)).indexOf(character, from);
}

/**
 * The terms of a query, in their order; words without a colon have the key "".
 * @param {string} q
 * @returns {{key: string, value: string}[]}
 */
export function parse(q) {
  const parts = q.match(/("[^"]*"?|[^\s"])+/g) || [];
  return parts.map((part) => {
    const at = find(part, ":");
    return { key: at < 0 ? "" : part.slice(0, at).toLowerCase(), value: part.slice(at + 1).replaceAll('"', "") };
  });
}

/**
 * @param {string} key
 * @param {string} q
 */
export function hasTerm(key, q) {
  return parse(q).some((each) => each.key === key);
}

/**
 * The part of a query that the feed of changes can follow.
 * @param {string} q
 */
export function liveQuery(q) {
  const live = new Set(TERMS.filter((each) => each.live).map((each) => each.key));
  return written(parse(q).filter(({ key }) => key === "" || live.has(key)));
}

/** @param {{key: string, value: string}[]} terms */
function written(terms) {
  return terms.map(({ key, value }) => term(key, value)).join(" ");
}

/**
 * The query that somebody means who typed this: words that belong to no term are how a name begins, so that a title,
 * which is what people see, finds the name that was made from it. (To the API, such a word is an owner.)
 * @param {string} typed
 */
export function meant(typed) {
  const terms = parse(typed);
  const isText = (/** @type {{key: string, value: string}} */ { key, value }) => key === "" || key === "name"
    || (!value && !TERMS.some((each) => each.key === key)); // `Fix: the test`
  const text = terms.filter(isText).map(({ key, value }) => (key === "name" ? value : value || key)).join(" ").trim();
  const name = { key: "name", value: slug(text) || text };
  const place = terms.findIndex(isText);
  return written(terms.flatMap((each, index) => (index === place && text ? [name] : isText(each) ? [] : [each])));
}

const MAX_STEM = 27; // of a name that was made from a prompt, before its four random digits: `domain/names.py`

/**
 * How the name begins that is made from a text.
 * @param {string} text
 */
function slug(text) {
  const plain = text.normalize("NFKD").toLowerCase().replace(/\p{M}|['’]/gu, "");
  const stem = plain.replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
  if (stem.length <= MAX_STEM) return stem;
  return stem.slice(0, MAX_STEM + 1).replace(/-[^-]*$/, "").slice(0, MAX_STEM);
}

/** Whether a task has the value of a term; the others are what the feed of changes has selected it by. */
const MATCHES = /** @type {Record<string, (task: any, value: string) => boolean | undefined>} */ ({
  status: (task, value) => task.status === value,
  state: (task, value) => task.current_state?.state === value,
  waiting: (task, value) => Boolean(task.requests_open) === (value === "true"),
  failed: (task, value) => (task.status === "error" || task.current_state?.state === "failed") === (value === "true"),
  stalled: (task, value) => Boolean(task.stalled_since) === (value === "true"),
  health: (task, value) => healthWord(task) === value || (value === "unhealthy" && !["healthy", "none"].includes(healthWord(task))),
  template: (task, value) => task.template_name.toLowerCase() === value,
  name: (task, value) => task.name.toLowerCase().startsWith(value),
  label: (task, value) => Object.entries(task.labels || {}).some(([key, its]) => `${key}=${its}`.toLowerCase() === value),
  created: (task, value) => isOfAges(task.created_at, value),
  changed: (task, value) => isOfAges(task.updated_at, value),
  pool: () => undefined, // which no document says
  runner: () => undefined,
});

/**
 * Return whether a task of the feed of a query matches it; undefined if its document does not say.
 * @param {string} q
 * @param {any} task
 */
export function matches(q, task) {
  const found = parse(q).map(({ key, value }) => (Object.hasOwn(MATCHES, key) ? MATCHES[key](task, value.toLowerCase()) : true));
  if (found.includes(false)) return false;
  return found.includes(undefined) ? undefined : true;
}

/** The words of `health:`, by the reasons in a document: `messages/listing.py`. */
const HEALTH_BY_REASON = /** @type {Record<string, string>} */ ({
  "agent is not running": "not_running",
  "agent has not yet connected": "connecting",
  "agent is taking too long to connect": "late",
  "agent has lost connection": "lost",
  "agent startup script exited with an error": "start_error",
  "agent is shutting down": "shutting_down",
});

/** @param {any} task */
function healthWord({ workspace_agent_health: health, agent_exit: exit }) {
  if (!health) return "none";
  if (!health.healthy && exit?.why === "lost") return "lost";
  return health.healthy ? "healthy" : HEALTH_BY_REASON[health.reason] || "";
}

/**
 * @param {string} time
 * @param {string} ages such as `<7d >2h`
 */
function isOfAges(time, ages) {
  const seconds = (api.now() - Date.parse(time)) / 1000;
  return ages.split(/\s+/).every((each) => {
    const age = AGE.exec(each);
    if (!age) return true;
    const limit = Number(age[2]) * SECONDS[age[3]];
    return age[1] === "<" ? seconds < limit : seconds > limit;
  });
}

/**
 * What can be typed where the caret is: terms, or the values of one.
 * @param {string} text
 * @param {number} caret
 * @param {any[]} rows the tasks that are shown
 * @returns {Promise<{from: number, to: number, options: Option[]}>}
 */
export async function complete(text, caret, rows) {
  const from = caret - (/("[^"]*"?|[^\s"])*$/.exec(text.slice(0, caret))?.[0].length || 0);
  const isOpen = text.slice(from).split('"').length % 2 === 0; // a quote that nothing ends is no longer than its word
  const next = isOpen ? text.indexOf(" ", caret) : from + find(text.slice(from), " ", caret - from);
  const to = next < caret ? text.length : next;
  const word = text.slice(from, caret);
  const at = find(word, ":");
  if (at < 0) {
    const used = new Set(parse(text.slice(0, from) + text.slice(to)).map((each) => each.key));
    const typed = word.toLowerCase();
    const options = TERMS.filter(({ key }) => key.startsWith(typed) && !used.has(key))
      .map(({ key, hint }) => ({ insert: `${key}:`, label: `${key}:`, hint, isBegun: true }));
    return { from, to, options };
  }
  const known = TERMS.find((each) => each.key === word.slice(0, at).toLowerCase());
  const typed = word.slice(at + 1).replaceAll('"', "").toLowerCase();
  const values = known ? await known.values(typed, rows) : [];
  return { from: from + at + 1, to, options: values.filter((each) => each.label.toLowerCase().startsWith(typed)).slice(0, 12) };
}

const AGE = /^([<>])(\d+)([smhdw])$/;
const SECONDS = /** @type {Record<string, number>} */ ({ s: 1, m: 60, h: 3_600, d: 86_400, w: 604_800 });
const UNITS = /** @type {Record<string, string>} */ ({ s: "second", m: "minute", h: "hour", d: "day", w: "week" });

/** @type {Record<string, (value: string) => string>} */
const CLAUSES = {
  status: (value) => `with the status ${value}`,
  state: (value) => `whose agent is ${value}`,
  waiting: (value) => (isTrue(value) ? "whose agent asks something" : "whose agent asks nothing"),
  failed: (value) => (isTrue(value) ? "that failed" : "that have not failed"),
  stalled: (value) => (isTrue(value) ? "that have stalled" : "that have not stalled"),
  health: (value) => `whose agent is ${value.replace("_", " ")}`,
  template: (value) => `made from ${value}`,
  name: (value) => `whose name begins with ${value}`,
  label: (value) => `labelled ${value}`,
  pool: (value) => `for the pool ${value}`,
  runner: (value) => `on ${value}`,
  organization: (value) => `of the organization ${value}`,
  created: (value) => `created ${ageWords(value)}`,
  changed: (value) => `changed ${ageWords(value)}`,
};

/** @param {string} value */
function isTrue(value) {
  return value.toLowerCase() === "true";
}

/** @param {string} value */
function ageWords(value) {
  const found = AGE.exec(value);
  if (!found) return value;
  return `${found[1] === "<" ? "less" : "more"} than ${plural(Number(found[2]), UNITS[found[3]])} ago`;
}

/**
 * What a query selects, in words.
 * @param {string} q
 */
export function sentence(q) {
  const terms = parse(q);
  const owner = terms.find(({ key }) => key === "owner" || key === "")?.value;
  const subject = !owner ? "All tasks that you may see" : owner === "me" ? "Your tasks" : `Tasks of ${owner}`;
  const clauses = terms.filter(({ key }) => key && key !== "owner").map(({ key, value }) => (Object.hasOwn(CLAUSES, key) && CLAUSES[key](value)) || `with ${key} ${value}`);
  return [subject, ...(clauses.length ? [clauses.join(", ")] : [])].join(" ");
}
