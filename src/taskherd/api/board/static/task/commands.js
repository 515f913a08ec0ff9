// @ts-check
// What stands behind a part of the page: its raw JSON, and the commands that give the same.
import * as api from "../api.js";
import { showDialog } from "../dialog.js";
import { leaving } from "../router.js";
import { html } from "../vendor/lit-html/lit-html.js";
import { json } from "./text.js";

/**
 * @typedef {{path: string, cli: string[]}} Source `path` below `/api/v2`; `cli` has the words of command lines after `taskherd`: none if
 *   a command of the source before it prints this, too
 */

/** @param {Source & {title: string, others?: Source[]}} shown `others` are read beside the first, and shown with it */
export async function showSource({ title, path, cli, others = [] }) {
  const signal = leaving();
  const sources = [{ path, cli }, ...others];
  const answers = await Promise.all(sources.map((each) => api.get(each.path, { cached: false, signal })));
  if (signal.aborted) return;
  const content = html`${sources.map((each, index) => source(each, answers[index]))}`;
  await showDialog({ title, content, actions: [{ label: "Close", value: "close", main: true }], className: "source" });
}

/**
 * @param {Source} source
 * @param {Awaited<ReturnType<typeof api.get>>} answer
 */
function source({ path, cli }, answer) {
  const text = answer.ok ? json(answer.value) : api.explain(answer);
  return html`
    ${cli.map((each) => command(`taskherd ${each}`))}
    ${command(`curl -sS -H "Coder-Session-Token: $TASKHERD_TOKEN" ${quote(`${location.origin}/api/v2${path}`)}`)}
    <pre class="raw" tabindex="0" role="group" aria-label=${`Raw JSON of ${path}`}>${text}</pre>`;
}

/** @param {string} text */
function command(text) {
  return html`<div class="command"><code tabindex="0">${text}</code>
    <button type="button" class="button small" @click=${(/** @type {Event} */ event) => copy(text, /** @type {HTMLElement} */ (event.currentTarget))}>Copy</button></div>`;
}

/**
 * @param {string} text
 * @param {HTMLElement} button says what came of it, since a message would be below the dialog
 */
async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch { // no clipboard without HTTPS
    button.textContent = "Select it";
    const line = button.parentElement?.querySelector("code");
    if (line) getSelection()?.selectAllChildren(line);
  }
}

/** @param {string} text for a POSIX shell */
export function quote(text) {
  return /^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`;
}

/**
 * The button that opens it.
 * @param {Parameters<typeof showSource>[0]} shown
 * @param {string} [place] a class
 */
export function sourceButton(shown, place = "") {
  return html`<button class="source-button ${place}" title="Commands and raw JSON" aria-label=${`Commands and raw JSON: ${shown.title}`}
    @click=${() => showSource(shown)}>{ }</button>`;
}
