// @ts-check
// What the tool of a request is about: a command, a change of a file, or anything else as JSON. More than a few lines are
// folded to one, which says how many there are.
import { plural } from "../format.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { quote } from "./commands.js";
import { counts, diffView } from "./diff-view.js";
import { diff } from "./diff.js";
import { json, words } from "./text.js";

const SHORT = 3; // lines that are not folded
const SHORT_LINE = 200; // characters, as above

const PATHS = ["path", "file_path", "filePath", "abs_path"];
const BEFORE = ["old", "old_string", "oldText", "old_text", "oldString"];
const AFTER = ["new", "new_string", "newText", "new_text", "newString", "content"];

/** @param {any} tool of a request */
export function toolView(tool) {
  const input = tool?.input;
  if (input === undefined || input === null) return nothing;
  const changes = changesOf(input);
  return changes.length ? changes.map(changeView) : textView(inputText(input));
}

/** @param {string} text */
function textView(text) {
  const lines = text.split("\n");
  if (lines.length <= SHORT && text.length <= SHORT_LINE) return html`<pre class="tool-input" tabindex="0" role="group" aria-label="What it is about">${text}</pre>`;
  const first = lines.find((each) => /\w/.test(each)) || lines[0];
  return folded(html`<code>${first.trim()}</code>`, lines.length > 1 ? plural(lines.length, "line") : plural(text.length, "character"),
    html`<pre tabindex="0" role="group" aria-label="What it is about">${text}</pre>`);
}

/** @param {{path: string, before: string, after: string, rest: any}} change */
function changeView({ path, before, after, rest }) {
  const change = diff(before, after);
  return html`${folded(html`${before ? "Changes" : "Writes"} <code>${path}</code>`, counts(change),
    diffView(path, change))}${rest ? textView(inputText(rest)) : nothing}`;
}

/**
 * @param {any} summary
 * @param {any} size
 * @param {any} content
 */
function folded(summary, size, content) {
  return html`<details class="tool tool-input"><summary><span class="truncate">${summary}</span><span class="outcome">${size}</span></summary>${content}</details>`;
}

/**
 * The changes of files that an input consists of; an agent may name its parts in several ways.
 * @param {any} input
 * @returns {{path: string, before: string, after: string, rest: any}[]}
 */
function changesOf(input) {
  if (Array.isArray(input)) {
    const all = input.map(changesOf);
    return all.every((each) => each.length) ? all.flat() : [];
  }
  if (typeof input !== "object" || !input) return [];
  const { diff: one, diffs, ...others } = input;
  if (one && diffs) return [];
  if (one || diffs) {
    const [first, ...more] = changesOf(one || diffs);
    if (!first || !Object.keys(others).length) return first ? [first, ...more] : [];
    return [{ ...first, rest: first.rest ? [others, first.rest] : others }, ...more];
  }
  const named = (/** @type {string[]} */ names) => names.find((name) => typeof input[name] === "string");
  const [path, before, after] = [named(PATHS), named(BEFORE), named(AFTER)];
  if (!path || !after) return [];
  const rest = Object.entries(input).filter(([name]) => name !== path && name !== before && name !== after);
  return [{ path: input[path], before: before ? input[before] : "", after: input[after], rest: rest.length ? Object.fromEntries(rest) : null }];
}

/**
 * A command as people write it, anything else as JSON.
 * @param {any} input
 */
function inputText(input) {
  if (typeof input !== "object" || !input) return words(input);
  const { command, ...others } = input;
  const line = Array.isArray(command) ? command.map((each) => quote(words(each))).join(" ") : command;
  if (typeof line !== "string") return json(input);
  return Object.keys(others).length ? `$ ${line}\n${json(others)}` : `$ ${line}`;
}
