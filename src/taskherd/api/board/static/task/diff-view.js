// @ts-check
// The lines in which a file changes, and how many they are.
import { plural } from "../format.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";

/** @typedef {ReturnType<typeof import("./diff.js").diff>} Change */

/** @param {{added: number, removed: number}} change */
export function counts({ added, removed }) {
  return html`${added || !removed ? html`<span class="plus">+${added}</span>` : nothing}${removed ? html`<span class="minus">−${removed}</span>` : nothing}`;
}

const SIGNS = /** @type {Record<string, [string, string]>} */ ({ "+": ["line add", "+"], "-": ["line del", "−"], " ": ["line", " "], "…": ["line gap", ""] });

/**
 * @param {string} path
 * @param {Change} change
 */
export function diffView(path, { lines }) {
  return html`<div class="diff" tabindex="0" role="group" aria-label=${`Changes of ${path}`}>${lines.map(({ sign, text }) => html`<div class=${SIGNS[sign][0]}><span class="sign">${SIGNS[sign][1]}</span>${sign === "…" ? plural(Number(text), "unchanged line") : text || " "}</div>`)}</div>`;
}
