// @ts-check
// One entry of the conversation: what somebody said or thought, a tool call folded to one line, a plan, a notice.
import "../format.js";
import { bytes } from "../format.js";
import { guarded } from "../state.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { dataOf } from "./data.js";
import { counts, diffView } from "./diff-view.js";
import { diff } from "./diff.js";
import { json, rich, words } from "./text.js";

/** @typedef {import("./log.js").Entry} Entry */

/**
 * What somebody has unfolded, and folded, by the ids of entries.
 * @typedef {{opened: Set<number>, closed: Set<number>, toggle: (id: number, open: boolean) => void, agent: string, isLast: (entry: Entry) => boolean}} Folds
 */

const LONG = 4_000; // characters after which a text is folded
const HEAD = 2_400; // characters of it that are shown
const GAP = 10 * 60_000; // milliseconds after which the time is told again

/**
 * @param {Entry} entry
 * @param {Entry | undefined} before the entry above it
 * @param {Folds} folds
 */
export function entryView(entry, before, folds) {
  const isNewBuild = before && before.place[1] !== entry.place[1];
  return html`
    ${isNewBuild ? html`<p class="rule"><span>Started again · <time-ago at=${entry.time} form="clock"></time-ago></span></p>` : nothing}
    ${guarded(() => bodyOf(entry, before, folds), () => plain(entry))}`;
}

/**
 * An entry that could not be drawn as what it is.
 * @param {Entry} entry
 */
function plain({ content, data }) {
  return html`<p class="log-notice">This entry could not be shown as what it is:</p>
    <pre tabindex="0" role="group" aria-label="An entry">${words(content)}${data ? `\n${json(data)}` : nothing}</pre>`;
}

/** @typedef {ReturnType<typeof dataOf> & {change: ReturnType<typeof diff> | null}} Known */

/** @type {WeakMap<Entry, Known>} of the entries that were drawn: to compare two texts takes long */
const known = new WeakMap();

/** @param {Entry} entry */
function knownOf(entry) {
  const before = known.get(entry);
  if (before) return before;
  const data = dataOf(entry.data);
  const made = { ...data, change: data.diff && diff(data.diff.old, data.diff.new) };
  known.set(entry, made);
  return made;
}

/**
 * @param {Entry} entry
 * @param {Entry | undefined} before
 * @param {Folds} folds
 */
function bodyOf(entry, before, folds) {
  switch (entry.kind) {
    case "tool_call": return toolCall(entry, folds);
    case "plan": return plan(entry, folds);
    case "thought": return thought(entry, folds);
    case "notice": return html`<p class="log-notice" dir="auto">${entry.content}</p>`;
    default: return said(entry, before, folds);
  }
}

/**
 * @param {Entry} entry
 * @param {Entry | undefined} before
 * @param {Folds} folds
 */
function said(entry, before, folds) {
  const isPerson = entry.type === "input";
  const speaks = !before || before.type !== entry.type || before.kind === "notice"
    || Date.parse(entry.time) - Date.parse(before.time) > GAP;
  const name = isPerson ? "Message to the agent" : folds.agent;
  return html`<div class=${isPerson ? "said person" : "said"}>
    ${speaks ? html`<p class="who"><bdi>${name}</bdi> · <time-ago at=${entry.time} form="clock"></time-ago></p>` : nothing}
    ${foldedText(entry, folds)}</div>`;
}

/**
 * @param {Entry} entry
 * @param {Folds} folds
 */
function foldedText(entry, folds) {
  const text = entry.content;
  if (text.length <= LONG || folds.opened.has(entry.id)) return html`<div class="prose" dir="auto">${rich(text)}</div>`;
  return html`<div class="prose" dir="auto">${rich(text.slice(0, HEAD))}…</div>
    <button class="link" @click=${() => folds.toggle(entry.id, true)}>Show all of it (${bytes(text.length)})</button>`;
}

/**
 * @param {Entry} entry
 * @param {Folds} folds
 */
function thought(entry, folds) {
  const isOpen = folds.opened.has(entry.id);
  const [first] = entry.content.trim().split("\n", 1);
  return html`<details class="thought" ?open=${isOpen} @toggle=${onToggle(entry, folds, isOpen)}>
    <summary><span class="truncate">${isOpen ? "Thought" : html`Thought: <bdi>${first.replaceAll("**", "")}</bdi>`}</span></summary>
    ${isOpen ? html`<div class="prose" dir="auto">${rich(entry.content)}</div>` : nothing}</details>`;
}

/**
 * @param {Entry} entry
 * @param {Folds} folds
 */
function plan(entry, folds) {
  const { steps, odd } = knownOf(entry);
  const done = steps.filter((each) => each.status === "completed").length;
  const isOpen = folds.opened.has(entry.id) || (folds.isLast(entry) && !folds.closed.has(entry.id));
  return html`<details class="tool plan" ?open=${isOpen} @toggle=${onToggle(entry, folds, isOpen)}>
    <summary><i class="mark plan-mark" aria-hidden="true"></i><span class="truncate">Plan</span>
      <span class="outcome">${steps.length ? `${done} of ${steps.length} done` : nothing}</span></summary>
    ${!isOpen ? nothing : html`${steps.length ? html`<ol class="steps">${steps.map(({ content, status }) => html`
      <li class=${`step ${STEPS.get(status) || ""}`}><span class="unseen">${STEP_WORDS.get(status) || status}: </span><span dir="auto">${content}</span></li>`)}</ol>`
      : html`<pre dir="auto" tabindex="0" role="group" aria-label="Plan">${entry.content}</pre>`}${oddView(odd)}`}</details>`;
}

const STEPS = new Map([["completed", "step-done"], ["in_progress", "step-now"], ["pending", "step-later"]]);
const STEP_WORDS = new Map([["completed", "done"], ["in_progress", "now"], ["pending", "later"]]);

const DEEDS = new Map([
  ["read", "Read"], ["edit", "Edited"], ["delete", "Deleted"], ["move", "Moved"], ["search", "Searched"], ["execute", "Ran"],
  ["think", "Thought"], ["fetch", "Fetched"],
]);
/** @type {Map<string, [string, string, string]>} the mark, the word for it, and its class */
const OUTCOMES = new Map([
  ["completed", ["✓", "done", "done"]], ["failed", ["✗", "failed", "failed"]], ["in_progress", ["", "running", "working"]],
  ["pending", ["", "pending", "working"]],
]);

/**
 * @param {Entry} entry
 * @param {Folds} folds
 */
function toolCall(entry, folds) {
  const { title = "A tool call", status = "" } = entry;
  const data = knownOf(entry);
  const { change, diff: texts } = data;
  const [mark, word, color] = OUTCOMES.get(status) || ["·", "", "idle"];
  const isOpen = folds.opened.has(entry.id);
  return html`<details class="tool" ?open=${isOpen} @toggle=${onToggle(entry, folds, isOpen)}>
    <summary><i class="mark ${color} ${mark ? "" : "busy"}" aria-hidden="true">${mark}</i><span class="unseen">${word}</span>
      <span class="truncate" dir="auto">${deed(title, data.kind)}</span>
      <span class="outcome">${change ? counts(change) : outcome(entry, title)}</span></summary>
    ${isOpen ? html`${change && texts ? html`${title.includes(texts.path) ? nothing : html`<p class="places"><code>${texts.path}</code></p>`}${diffView(texts.path || "a file", change)}` : nothing}${details(entry, title, data)}` : nothing}</details>`;
}

/**
 * The parts of an entry's data that are not as expected.
 * @param {string} odd
 */
function oddView(odd) {
  return odd ? html`<pre tabindex="0" role="group" aria-label="What else it reported">${odd}</pre>` : nothing;
}

/**
 * What was done, in words; the title is the agent's own, often a command or a path.
 * @param {string} title
 * @param {string} kind
 */
function deed(title, kind) {
  const word = DEEDS.get(kind);
  const text = title.replaceAll("`", "");
  if (!word || text.toLowerCase().startsWith(kind)) return text;
  return /\s/.test(text) && !/[/.=-]/.test(text) ? text : html`${word} <code>${text}</code>`;
}

/**
 * The last line of what a tool call gave.
 * @param {Entry} entry
 * @param {string} title
 */
function outcome(entry, title) {
  const lines = textOf(entry, title).trimEnd().split("\n");
  return html`<span class="truncate" dir="auto">${lines.at(-1)}</span>`;
}

/**
 * The text of a tool call without its first lines, which say what the title and the diff say.
 * @param {Entry} entry
 * @param {string} title
 */
function textOf(entry, title) {
  const lines = entry.content.split("\n");
  if (lines[0] === title || lines[0] === `${title} (failed)`) lines.shift();
  while (lines[0]?.startsWith("changes ")) lines.shift();
  return lines.join("\n");
}

/**
 * @param {Entry} entry
 * @param {string} title
 * @param {Known} data
 */
function details(entry, title, { change, places, also, odd }) {
  const text = textOf(entry, title);
  const others = change ? [] : places.filter(({ path }) => !title.includes(path));
  return html`
    ${also.length ? html`<p class="places">Also changes ${also.map((path) => html`<code>${path}</code> `)}</p>` : nothing}
    ${others.length ? html`<p class="places">${others.map(({ place }) => html`<code>${place}</code> `)}</p>` : nothing}
    ${text ? html`<pre dir="auto" tabindex="0" role="group" aria-label=${`What came of it: ${title}`}>${text}</pre>` : nothing}${oddView(odd)}
    ${!text && !change && !others.length && !odd ? html`<p class="places">Nothing more was reported.</p>` : nothing}`;
}

/**
 * @param {Entry} entry
 * @param {Folds} folds
 * @param {boolean} isOpen whether the page shows it unfolded: that it does so is told like what a person does
 */
function onToggle(entry, folds, isOpen) {
  return (/** @type {Event} */ event) => {
    const { open } = /** @type {HTMLDetailsElement} */ (event.currentTarget);
    if (open !== isOpen) folds.toggle(entry.id, open);
  };
}
