// @ts-check
// The data of a log entry, in a known shape: an agent may send any JSON object, with anything in the place of each part.
import { json } from "./text.js";

/**
 * @typedef {object} Data
 * @property {string} kind of a tool call; "" if it has none
 * @property {{path: string, old: string, new: string} | null} diff
 * @property {{path: string, place: string}[]} places paths, and the same with their lines
 * @property {string[]} also other paths that it changes
 * @property {{content: string, status: string}[]} steps of a plan
 * @property {string} odd the parts that are not as expected, as JSON; "" if all are
 */

const MOST = 500; // elements of a list that are shown

/**
 * @param {any} given
 * @returns {Data}
 */
export function dataOf(given) {
  const { kind, diff, locations, also_changes: also, entries } = isObject(given) ? given : {};
  const places = elements(locations, (each) => isObject(each) && isText(each.path));
  const others = elements(also, isText);
  const steps = elements(entries, (each) => isObject(each) && isText(each.content));
  const isDiff = isObject(diff) && isText(diff.new) && [diff.path, diff.old].every((each) => isNone(each) || isText(each));
  const odd = Object.entries({
    kind: isNone(kind) || isText(kind) ? null : kind,
    diff: isNone(diff) || isDiff ? null : diff,
    locations: places.odd, also_changes: others.odd, entries: steps.odd,
  }).filter(([, value]) => value !== null);
  return {
    kind: isText(kind) ? kind : "",
    diff: isDiff ? { path: diff.path ?? "", old: diff.old ?? "", new: diff.new } : null,
    places: places.fitting.map(({ path, line }) => ({ path, place: Number.isInteger(line) && line > 0 ? `${path}:${line}` : path })),
    also: others.fitting,
    steps: steps.fitting.map(({ content, status }) => ({ content, status: isText(status) ? status : "" })),
    odd: odd.length ? json(Object.fromEntries(odd)) : "",
  };
}

/**
 * The elements of a list that are as expected; and what was given, if it is no list, or too long, or has others.
 * @param {any} given
 * @param {(each: any) => boolean} isFitting
 * @returns {{fitting: any[], odd: any}}
 */
function elements(given, isFitting) {
  if (!Array.isArray(given)) return { fitting: [], odd: given ?? null };
  const fitting = given.filter(isFitting).slice(0, MOST);
  return { fitting, odd: fitting.length < given.length ? given : null };
}

/** @param {any} value */
function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** @param {any} value */
function isText(value) {
  return typeof value === "string";
}

/** @param {any} value */
function isNone(value) {
  return value === undefined || value === null;
}
