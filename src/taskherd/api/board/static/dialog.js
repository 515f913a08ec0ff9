// @ts-check
// What is said to the person over the page: dialogs in the browser's own `<dialog>` (the focus stays inside, Escape closes,
// and the focus returns), which close with the page that they are about, and toasts.
import * as api from "./api.js";
import { submitOnEnter } from "./keys.js";
import { announce, leaving } from "./router.js";
import * as session from "./session.js";
import { html, nothing, render } from "./vendor/lit-html/lit-html.js";

const SHOWN_FOR = 6_000, BAD_SHOWN_FOR = 20_000; // milliseconds
const TOUCH = matchMedia("(hover: none) and (pointer: coarse)"); // where what was tapped last stays :hover
const ABOVE = 12; // pixels between a toast and the composer

/** @typedef {{label: string, value: string, main?: boolean, danger?: boolean}} Action */

/**
 * @typedef {object} DialogOptions
 * @property {string} title
 * @property {any} [content] a template or text
 * @property {Action[]} actions one of them is the main one, which Enter takes
 * @property {string} [className]
 */

/**
 * Show a dialog. Return the value of the action that was chosen, with the fields of the form; "" if it was closed, which it also is with
 * its page (`left`).
 * @param {DialogOptions} options
 * @returns {Promise<{value: string, fields: FormData, left: boolean}>}
 */
export function showDialog({ title, content = nothing, actions, className = "" }) {
  const dialog = document.createElement("dialog");
  dialog.className = className;
  dialog.setAttribute("aria-labelledby", "dialog-title");
  const before = /** @type {HTMLElement | null} */ (document.activeElement);
  document.body.append(dialog);
  return new Promise((done) => {
    let chosen = "";
    const choose = (/** @type {string} */ value) => {
      chosen = value;
      dialog.close();
    };
    render(html`
      <form method="dialog" @submit=${(/** @type {SubmitEvent} */ event) => { // Enter in a field takes the main action
        event.preventDefault();
        choose(actions.find((each) => each.main)?.value || "");
      }}>
        <h2 id="dialog-title">${title}</h2>
        <div class="dialog-body">${content}</div>
        <div class="dialog-actions">
          ${actions.map(({ label, value, main, danger }) => html`
            <button type=${main ? "submit" : "button"} class=${main ? (danger ? "button danger" : "button go") : "button"} value=${value}
              ?autofocus=${main && !danger} @click=${main ? nothing : () => choose(value)}>${label}</button>`)}
        </div>
      </form>`, dialog);
    let isOutside = false; // whether a press has begun beside the form, which is the backdrop
    /** @type {Set<EventTarget | null>} fields in which somebody has written */
    const written = new Set();
    dialog.addEventListener("input", ({ target }) => written.add(target));
    dialog.addEventListener("pointerdown", ({ target }) => (isOutside = target === dialog));
    dialog.addEventListener("click", ({ target }) => {
      const wouldLose = [...written].some((field) => /** @type {HTMLInputElement} */ (field).value.trim() !== "");
      if (isOutside && target === dialog && !wouldLose) dialog.close();
    });
    const onLeave = () => {
      chosen = "";
      dialog.close();
    };
    const page = leaving();
    page.addEventListener("abort", onLeave, { once: true });
    dialog.addEventListener("close", () => {
      page.removeEventListener("abort", onLeave);
      const fields = new FormData(/** @type {HTMLFormElement} */ (dialog.querySelector("form")));
      dialog.remove();
      if (!page.aborted) before?.focus();
      done({ value: chosen, fields, left: page.aborted });
    });
    dialog.showModal();
  });
}

/**
 * Ask whether to do something. `action` names it, as on its button.
 * @param {{title: string, content?: any, action: string, danger?: boolean}} options
 */
export async function confirm({ title, content, action, danger = false }) {
  const actions = [{ label: "Cancel", value: "" }, { label: action, value: "yes", main: true, danger }];
  return (await showDialog({ title, content, actions })).value === "yes";
}

/**
 * Ask for a text; null if it was not given. What was written is kept as the draft of this name until the person cancels, or the caller
 * has done something with the text and drops it.
 * @param {{title: string, label: string, action: string, draft: string, value?: string, content?: any, rows?: number}} options
 */
export async function ask({ title, label, action, draft, value = "", content = nothing, rows = 4 }) {
  const field = html`${content}<label class="field"><span>${label}</span>
    <textarea name="text" dir="auto" rows=${rows} required autofocus .value=${session.draft(draft) || value}
      @input=${session.keepField(draft)} @keydown=${submitOnEnter}></textarea></label>`;
  const actions = [{ label: "Cancel", value: "" }, { label: action, value: "yes", main: true }];
  const answer = await showDialog({ title, content: field, actions });
  if (answer.value === "yes") return String(answer.fields.get("text"));
  if (!answer.left) session.keepDraft(draft, "");
  return null;
}

let refused = ""; // the change that was refused last, until a toast says so
let shownFor = ""; // the change whose refusal a toast says
api.onSent((change, ok) => {
  if (!ok) refused = change;
  else if (change === shownFor) document.querySelector(".toast.bad")?.remove(); // it is no longer true
});

/**
 * Say something that is over soon, at the bottom of the page and to screen readers. It stays while somebody points at
 * it or has the focus in it.
 * @param {string} text
 * @param {{bad?: boolean, action?: {label: string, run: () => void}}} [options]
 */
export function toast(text, { bad = false, action } = {}) {
  document.querySelector(".toast")?.remove();
  const shown = document.createElement("div");
  shown.className = bad ? "toast bad" : "toast";
  shown.setAttribute("role", bad ? "alert" : "status");
  if (!bad) {
    shown.ariaLive = "off"; // or it would be said twice: many screen readers say nothing of a status that comes with its text
    announce(text);
  }
  render(html`<span>${text}</span>${action
    ? html`<button class="link" @click=${() => (shown.remove(), action.run())}>${action.label}</button>` : nothing}
    <button class="icon" aria-label="Dismiss" @click=${() => shown.remove()}>×</button>`, shown);
  document.body.append(shown);
  shownFor = bad ? refused : "";
  refused = "";
  let timer = 0;
  const leave = () => {
    clearTimeout(timer);
    if (!shown.matches(TOUCH.matches ? ":focus-within" : ":hover, :focus-within")) timer = setTimeout(() => shown.remove(), bad ? BAD_SHOWN_FOR : SHOWN_FOR);
  };
  for (const event of ["pointerenter", "pointerleave", "focusin", "focusout"]) shown.addEventListener(event, () => setTimeout(leave));
  leave();
  placeAboveComposer(shown);
}

/**
 * Keep a toast from covering the button of the composer, which grows with what is written.
 * @param {HTMLElement} shown
 */
function placeAboveComposer(shown) {
  const composer = document.querySelector(".composer");
  if (!composer) return;
  const place = () => {
    shown.style.bottom = "";
    const { top, bottom } = composer.getBoundingClientRect(); // zeros when its page was left
    const covers = bottom > shown.getBoundingClientRect().top - ABOVE;
    if (covers) shown.style.bottom = `${innerHeight - top + ABOVE}px`;
  };
  const observer = new ResizeObserver(() => (shown.isConnected ? place() : observer.disconnect()));
  observer.observe(composer);
  place();
}
