// @ts-check
// Keyboard shortcuts: single keys and sequences of two (`g t`). They do nothing while somebody types or a dialog is open, and
// those of characters nothing at all for who has turned them off.
import { html, nothing } from "./vendor/lit-html/lit-html.js";

const OFF_KEY = "taskherd-single-keys"; // in the browser: `off` if single keys do nothing
const SEQUENCE_WITHIN = 1_000; // milliseconds between the two keys of a sequence

/**
 * `repeats`: while its key is held down, it is run again and again.
 * @typedef {{keys: string, does: string, run: (event: KeyboardEvent) => void, repeats?: boolean}} Shortcut
 */

/** @type {{shortcuts: Shortcut[], group: string}[]} */
const groups = [];
let first = "";
let firstAt = 0;

/**
 * Add shortcuts, until the signal aborts. Later ones win.
 * @param {string} group heading in the help
 * @param {Shortcut[]} shortcuts
 * @param {AbortSignal} [signal]
 */
export function bind(group, shortcuts, signal) {
  const added = { group, shortcuts };
  groups.unshift(added);
  signal?.addEventListener("abort", () => groups.splice(groups.indexOf(added), 1), { once: true });
}

/** @param {Element | null} element */
function isTyping(element) {
  return element instanceof HTMLElement && (element.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(element.tagName)
    && !/^(checkbox|radio|button|submit)$/.test(/** @type {HTMLInputElement} */ (element).type));
}

/** Whether keys of characters do something. */
export function areOn() {
  return localStorage.getItem(OFF_KEY) !== "off";
}

/** @param {boolean} on */
export function turn(on) {
  if (on) localStorage.removeItem(OFF_KEY);
  else localStorage.setItem(OFF_KEY, "off");
}

/** @param {string} keys */
function find(keys) {
  for (const group of groups) {
    const found = group.shortcuts.find((each) => each.keys === keys);
    if (found) return found;
  }
  return null;
}

document.addEventListener("keydown", (event) => {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  if (isTyping(document.activeElement) || document.querySelector("dialog[open]")) return;
  if (event.key.length === 1 && !areOn()) return;
  const sequence = first && event.timeStamp - firstAt < SEQUENCE_WITHIN ? find(`${first} ${event.key}`) : null;
  const found = sequence || find(event.key);
  first = found || event.key.length > 1 ? "" : event.key;
  firstAt = event.timeStamp;
  if (!found) return;
  event.preventDefault();
  if (!event.repeat || found.repeats) found.run(event);
});

/**
 * Return whether a key is for an input method, as that for Japanese: Safari ends its composition before Enter is pressed.
 * @param {KeyboardEvent} event
 */
export function isComposing(event) {
  return event.isComposing || event.keyCode === 229;
}

/**
 * Submit the form of a text field with Ctrl-Enter or ⌘-Enter.
 * @param {KeyboardEvent} event
 */
export function submitOnEnter(event) {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  /** @type {HTMLTextAreaElement} */ (event.currentTarget).form?.requestSubmit();
}

/** Show which keys do what. */
export async function help() {
  const { showDialog } = await import("./dialog.js"); // which no page needs before somebody does something
  const off = areOn() ? nothing : html`<p>Single keys are turned off. The menu turns them on.</p>`;
  const content = groups.filter((each) => each.shortcuts.length).map(({ group, shortcuts }) => html`
    <h3>${group}</h3>
    <dl class="keys">
      ${shortcuts.map(({ keys, does }) => html`<dt>${keys.split(" ").map((key) => html`<kbd>${NAMES[key] || key}</kbd> `)}</dt><dd>${does}</dd>`)}
    </dl>`);
  showDialog({ title: "Keyboard", content: html`${off}${content}`, actions: [{ label: "Close", value: "close", main: true }] });
}

/** @type {Record<string, string>} */
const NAMES = { Enter: "⏎", Escape: "Esc", ArrowUp: "↑", ArrowDown: "↓" };
