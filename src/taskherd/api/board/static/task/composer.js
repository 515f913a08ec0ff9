// @ts-check
// What somebody says to the agent: sent when it is ready for it, or at once as a steer that interrupts it.
import * as api from "../api.js";
import { toast } from "../dialog.js";
import { isComposing } from "../keys.js";
import * as session from "../session.js";
import { isAgentGone, isBuilding, isSilent } from "../state.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";

const TOUCH = matchMedia("(hover: none) and (pointer: coarse)");

/**
 * The sends that had no answer, which may have arrived: the same again has the same key, so that it is not sent twice.
 * @type {WeakMap<HTMLFormElement, {body: string, key: string}>}
 */
const unanswered = new WeakMap();

/**
 * @param {{task: any, path: string, working: boolean, sent: () => void}} options
 */
export function composer({ task, path, working, sent }) {
  const { hint, refusal } = reach(task);
  const name = `to/${task.id}`;
  const submit = async (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    const form = /** @type {HTMLFormElement} */ (event.currentTarget);
    const field = /** @type {HTMLTextAreaElement} */ (form.elements.namedItem("input"));
    const steer = /** @type {HTMLButtonElement | null} */ (event.submitter)?.value === "steer";
    const input = field.value;
    if (form.dataset.busy !== undefined) return;
    if (!input.trim()) return field.focus();
    if (refusal) return toast(refusal, { bad: true }); // what was written stays for after the resume
    const done = showBusy(form, /** @type {HTMLButtonElement | null} */ (event.submitter));
    const body = { input, ...(steer ? { interrupt: true } : {}) };
    const said = JSON.stringify([path, body]);
    const earlier = unanswered.get(form);
    const key = earlier?.body === said ? earlier.key : api.newKey();
    const answer = await api.send("POST", `${path}/send`, body, { key });
    done();
    if (api.isUnsettled(answer)) unanswered.set(form, { body: said, key });
    else unanswered.delete(form);
    if (!answer.ok) return answer.aborted ? undefined : toast(api.explain(answer), { bad: true });
    if (field.value === input) {
      field.value = "";
      session.keepDraft(name, "");
    }
    grow(field);
    field.focus();
    if (answer.headers.get("X-Taskherd-Answered")) toast("This answered what the agent asked.");
    else if (answer.headers.get("X-Taskherd-Queued")) toast("Queued: the agent gets it when it is ready.");
    sent();
  };
  return html`<form class="composer" @submit=${submit}>
    <textarea name="input" dir="auto" rows=${rowsOf(session.draft(name))} .value=${session.draft(name)} aria-label="Message to the agent" autocomplete="off" enterkeyhint=${TOUCH.matches ? "enter" : "send"}
      placeholder=${hint}
      @input=${(/** @type {Event} */ event) => {
        session.keepField(name)(event);
        grow(/** @type {HTMLTextAreaElement} */ (event.currentTarget));
      }}
      @keydown=${onKey}></textarea>
    <div class="composer-keys">
      <span class="tiny faint wide"><kbd>⏎</kbd> send${working ? html` · <kbd>Ctrl</kbd> <kbd>⏎</kbd> steer now` : nothing}</span>
      ${working ? html`<button class="button small" value="steer" title="Interrupt the agent, then say this">Steer now</button>` : nothing}
      <button class="button go small" value="send">Send</button>
    </div></form>`;
}

/**
 * What the empty field says, and why nothing is sent, if so: the API takes an input of an active task only, also one for an agent that
 * has exited, which its runner refuses. One for an agent that was interrupted waits for the next start, and a silent machine may come back.
 * @param {any} task
 * @returns {{hint: string, refusal: string}}
 */
function reach(task) {
  const { status, workspace_status: workspace } = task;
  const resumed = (/** @type {string} */ why) => ({ hint: `${why}: resume the task to say something`, refusal: `${why}. Resume the task, then send this.` });
  const later = (/** @type {string} */ why) => ({ hint: `${why}: say something once it is ready`, refusal: `${why}. Send this once it is ready.` });
  if (status === "paused") {
    return { hint: "The task is paused: resume it to say something", refusal: "The task is paused. Resume it, then send this." };
  }
  if (isBuilding(task) && (status === "unknown" || status === "error")) {
    return { hint: "It is being stopped: nothing can be said now", refusal: "It is being stopped. Resume the task then, and send this." };
  }
  if (status === "active" && isSilent(task) && !task.agent_exit) return { hint: "Its machine is silent: a message may not arrive before a resume", refusal: "" };
  if (status === "active" && task.agent_exit?.why === "interrupted") {
    return { hint: "Its agent was interrupted: a message waits until the task is resumed", refusal: "" };
  }
  if (isAgentGone(task)) return resumed(task.agent_exit ? "Its agent has ended" : "Its agent does not run");
  if (status === "pending" || status === "initializing") return later("Its agent is not ready yet");
  if (status === "active") return { hint: "Say something to the agent…", refusal: "" };
  if (workspace === "running") {
    return { hint: "Its agent takes no messages now", refusal: "Its agent takes no messages now. Send this once it does, or pause the task and resume it." };
  }
  return resumed(workspace === "canceled" ? "Its last build was canceled" : "Its last build failed");
}

/** @param {KeyboardEvent} event */
function onKey(event) {
  const field = /** @type {HTMLTextAreaElement} */ (event.currentTarget);
  if (event.key === "Escape" && !isComposing(event)) return field.blur();
  if (event.key !== "Enter" || event.shiftKey || isComposing(event)) return;
  const isMeant = event.ctrlKey || event.metaKey;
  if (TOUCH.matches && !isMeant) return; // the keyboard of a phone has no Shift-Enter: Enter begins a line, and the button sends
  event.preventDefault();
  if (event.repeat) return;
  const form = /** @type {HTMLFormElement} */ (field.form);
  const steer = /** @type {HTMLButtonElement | null} */ (form.querySelector("button[value=steer]"));
  const send = /** @type {HTMLButtonElement} */ (form.querySelector("button[value=send]"));
  form.requestSubmit(isMeant && steer ? steer : send);
}

/**
 * Show that something is being sent, until the function is called that this returns. The buttons keep the focus.
 * @param {HTMLFormElement} form
 * @param {HTMLButtonElement | null} pressed
 */
function showBusy(form, pressed) {
  const buttons = [...form.querySelectorAll("button")], label = pressed?.textContent || "";
  form.dataset.busy = "";
  for (const each of buttons) each.ariaDisabled = "true";
  if (pressed) pressed.textContent = "Sending…";
  return () => {
    delete form.dataset.busy;
    for (const each of buttons) each.ariaDisabled = null;
    if (pressed) pressed.textContent = label;
  };
}

/** @param {HTMLTextAreaElement} field */
function grow(field) {
  field.rows = rowsOf(field.value);
}

/** @param {string} text */
function rowsOf(text) {
  return Math.min(8, text.split("\n").length);
}
