// @ts-check
// What stands behind a part of the page: its raw JSON, and the commands that give the same.
import * as api from "../api.js";
import { showDialog } from "../dialog.js";
import { leaving } from "../router.js";
import { html } from "../vendor/lit-html/lit-html.js";
import { json } from "./text.js";

/**
 * @param {{title: string, path: string, cli?: string[]}} shown `path` below `/api/v2`; `cli` has the words of command lines
 *   after `taskherd`
 */
export async function showSource({ title, path, cli = [] }) {
  const signal = leaving();
  const answer = await api.get(path, { cached: false, signal });
  if (signal.aborted) return;
  const text = answer.ok ? json(answer.value) : api.explain(answer);
  const content = html`
    ${cli.map((each) => command(`taskherd ${each}`))}
    ${command(`curl -sS -H "Coder-Session-Token: $TASKHERD_TOKEN" ${quote(`${location.origin}/api/v2${path}`)}`)}
    <pre class="raw" tabindex="0" role="group" aria-label="Raw JSON">${text}</pre>`;
  await showDialog({ title, content, actions: [{ label: "Close", value: "close", main: true }], className: "source" });
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
