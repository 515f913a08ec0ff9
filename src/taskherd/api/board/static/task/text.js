// @ts-check
// Text of agents and people: code, links and emphasis are set as such, everything else stays text. No HTML is parsed. And what agents
// may send as any JSON, as text: nothing else of it is given to what draws.
import { html } from "../vendor/lit-html/lit-html.js";

const FENCE = /^```[^\n`]*\n([\s\S]*?)(?:\n```[^\S\n]*$|(?![\s\S]))/m;
const INLINE = /(`[^`\n]+`)|(\*\*[^*\n]+\*\*)|(?<=^|[\s(])(\*\w[^*\n]*\w\*)(?=$|[\s.,;:!?)])|(https?:\/\/[^\s<>"'`]+[^\s<>"'`.,;:!?)\]}])/g;
const MAX_RICH = 20_000; // characters; longer texts stay as they are
const MAX_INDENTED = 4; // times as long as without lines and indentation, which deep JSON exceeds by far

/**
 * JSON as people read it: in lines, unless it is nested so deep that they would be mostly blank.
 * @param {any} value
 */
export function json(value) {
  const [lines, line] = [JSON.stringify(value, null, 2), JSON.stringify(value)];
  return lines.length > MAX_INDENTED * line.length ? line : lines;
}

/**
 * Any JSON as a text in one line: a text as it is, nothing for null, and the JSON of anything else. `String` would call what an
 * object has as its `toString`.
 * @param {any} value
 */
export function words(value) {
  if (typeof value === "string") return value;
  return value === undefined || value === null ? "" : JSON.stringify(value);
}

/**
 * @param {string} text
 * @returns {any} what lit-html renders
 */
export function rich(text) {
  if (text.length > MAX_RICH) return text;
  const parts = [];
  let rest = text;
  while (rest) {
    const fence = FENCE.exec(rest);
    if (!fence) break;
    const before = rest.slice(0, fence.index).replace(/\n+$/, "");
    if (before) parts.push(html`<div dir="auto">${inline(before)}</div>`);
    parts.push(html`<pre class="code" dir="ltr">${fence[1]}</pre>`);
    rest = rest.slice(fence.index + fence[0].length).replace(/^\n+/, "");
  }
  if (rest) parts.push(html`<div dir="auto">${inline(rest)}</div>`);
  return parts;
}

/** @param {string} text */
function inline(text) {
  const parts = [];
  let last = 0;
  for (const match of text.matchAll(INLINE)) {
    parts.push(text.slice(last, match.index));
    const [whole, code, bold, emphasis] = match;
    if (code) parts.push(html`<code>${code.slice(1, -1)}</code>`);
    else if (bold) parts.push(html`<b>${bold.slice(2, -2)}</b>`);
    else if (emphasis) parts.push(html`<em>${emphasis.slice(1, -1)}</em>`);
    else parts.push(html`<a class="link" href=${whole} rel="noopener noreferrer" target="_blank">${whole}</a>`);
    last = match.index + whole.length;
  }
  parts.push(text.slice(last));
  return parts;
}
