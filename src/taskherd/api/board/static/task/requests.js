// @ts-check
// What the agent asks, with the answer one click or key away: options as buttons, a field for free text.
import { became, inOrder } from "../answers.js";
import * as api from "../api.js";
import { toast } from "../dialog.js";
import { bytes, plural } from "../format.js";
import { submitOnEnter } from "../keys.js";
import * as session from "../session.js";
import { isWrittenIn, leaves } from "../steady.js";
import { guarded, prose } from "../state.js";
import { html, noChange, nothing } from "../vendor/lit-html/lit-html.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import { sourceButton } from "./commands.js";
import { json, rich } from "./text.js";
import { toolView } from "./tool-input.js";

/**
 * @typedef {{id: string, kind: "approval" | "question", title: string, detail?: string, tool?: any, since?: string,
 *   options?: import("../answers.js").Option[], state: string, answer?: any, expires_at?: string | null,
 *   closed_at?: string | null}} AgentRequest
 */

const LONG = 1_200; // characters after which a detail is folded
const LONG_LINES = 12; // lines, as above
/** Requests whose answer is on its way, by their ids. @type {Set<string>} */
const sending = new Set();

/**
 * Requests of a task, as cards: the open ones, and those that are over but stay while somebody points at them.
 * @param {AgentRequest[]} requests
 * @param {object} options
 * @param {number} options.heldBack how many more are shown later
 * @param {string} options.path of the task
 * @param {string} options.cli the words of the command that lists them
 * @param {() => void} options.answered called after each answer
 * @param {() => void} options.left called when nobody points at them any more
 */
export function requestCards(requests, { heldBack, path, cli, answered, left }) {
  return html`<div class="asks" @pointerleave=${leaves(left)} @focusout=${() => setTimeout(left, 0)}>${repeat(requests, (/** @type {AgentRequest} */ each) => each.id, (/** @type {AgentRequest} */ each) => guarded(() => card(each, path, answered), () => plain(each, path, answered)))}
    ${heldBack ? html`<p class="tiny soft" role="status">${plural(heldBack, "more request")} when you leave this one</p>` : nothing}
    <div class="side-head">${sourceButton({ title: "What it asks", path: `${path}/requests`, cli: [cli] })}</div></div>`;
}

/**
 * Answers that the agent does not have yet.
 * @param {AgentRequest[]} requests
 */
export function pendingAnswers(requests) {
  return requests.map((each) => html`<p class="small soft pending-answer" role="status">${became(each)} · “<bdi>${prose(each.title)}</bdi>” · the agent does not have it yet</p>`);
}

/**
 * One request. Once it is over, its field stays, read-only, with what was written and not sent and for who writes in it: the next letters
 * would be shortcuts.
 * @param {AgentRequest} asked
 * @param {string} path
 * @param {() => void} answered
 */
function card(asked, path, answered) {
  const isOpen = asked.state === "open";
  const { id, kind, title, detail, tool, since, expires_at: expires } = asked;
  const isKept = !sending.has(id) && (isWrittenIn(id) || session.draft(draftOf(asked)) !== "");
  return html`<section class=${isOpen ? "agent-asks" : "agent-asks over"} data-id=${id} tabindex="-1" aria-label=${`${kind === "approval" ? "Approval" : "Question"}: ${title}`}>
    <h2 class="ask-title"><i class=${isOpen ? "dot waiting live" : "dot"}></i><span dir="auto">${prose(title)}</span></h2>
    ${isOpen ? html`${detail ? detailView(detail) : nothing}
      ${toolView(tool)}` : html`<p class="soft" role="status">${became(asked)}</p>`}
    ${isOpen || isKept ? answerForm(asked, path, answered) : nothing}
    ${isOpen ? html`<p class="tiny soft">Your answer goes to the agent at once.${since ? html` Asked <time-ago at=${since}></time-ago>.` : nothing}${
      expires ? html` It expires <time-ago at=${expires}></time-ago>.` : nothing}</p>` : nothing}</section>`;
}

/**
 * A request that could not be drawn as what it is: what it asks, and its answers.
 * @param {AgentRequest} asked
 * @param {string} path
 * @param {() => void} answered
 */
function plain(asked, path, answered) {
  return html`<section class="agent-asks" data-id=${asked.id} tabindex="-1" aria-label="A request"><h2 class="ask-title"><span dir="auto">${asked.title}</span></h2>
    <p class="soft small">This request could not be shown as what it is:</p><pre class="tool-input" tabindex="0" role="group" aria-label="Raw JSON">${json(asked)}</pre>
    ${asked.state === "open" ? guarded(() => answerForm(asked, path, answered), () => nothing) : nothing}</section>`;
}

/** @param {string} detail */
function detailView(detail) {
  const text = html`<div class="ask-detail prose" dir="auto" tabindex="0" role="group" aria-label="Details">${rich(detail)}</div>`;
  const isLong = detail.length > LONG || detail.split("\n").length > LONG_LINES;
  return isLong ? html`<details class="with-words"><summary>Details (${bytes(detail.length)})</summary>${text}</details>` : text;
}

/**
 * @param {AgentRequest} asked
 * @param {string} path
 * @param {() => void} answered
 */
function answerForm(asked, path, answered) {
  const options = asked.options || [];
  const isOpen = asked.state === "open";
  const submit = async (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    const form = /** @type {HTMLFormElement} */ (event.currentTarget);
    const option = /** @type {HTMLButtonElement | null} */ (event.submitter)?.value;
    const text = String(new FormData(form).get("text") || "").trim();
    if (!isOpen) return;
    if (options.length ? !option : !text) return; // Ctrl-Enter in the field chooses no option
    if (form.contains(document.activeElement)) /** @type {HTMLElement} */ (form.closest("section")).focus({ preventScroll: true }); // the form is about to go
    const buttons = form.querySelectorAll("button");
    buttons.forEach((each) => (each.disabled = true));
    const body = { ...(options.length ? { option_id: option } : {}), ...(text ? { text } : {}) };
    sending.add(asked.id);
    const sent = await api.send("POST", `${path}/requests/${asked.id}/answer`, body);
    sending.delete(asked.id);
    if (sent.ok) session.keepDraft(draftOf(asked), "");
    else buttons.forEach((each) => (each.disabled = false)); // the others are about to go
    if (sent.ok) toast("Answered.");
    else if (!sent.aborted) toast(api.explain(sent), { bad: true });
    answered();
  };
  return html`<form class="answer" @submit=${submit}>
    ${options.length ? html`
      ${isOpen ? html`<div class="answer-options">${inOrder(options).map(({ option, isMain }) => html`
        <button class=${isMain ? "button go" : "button"} dir="auto" value=${option.id}>${option.label}</button>`)}</div>` : nothing}
      <details class="with-words" ?open=${session.draft(draftOf(asked)) ? true : noChange}><summary>Say something with it</summary>${textField(asked, false)}</details>`
    : html`${textField(asked, true)}${isOpen ? html`<div class="answer-options"><button class="button go">Answer</button></div>` : nothing}`}
  </form>`;
}

/** @param {AgentRequest} asked */
function draftOf({ id }) {
  return `to/${id}`;
}

/**
 * @param {AgentRequest} asked
 * @param {boolean} required
 */
function textField(asked, required) {
  return html`<textarea name="text" dir="auto" rows="2" aria-label=${`Answer to: ${asked.title}`} ?required=${required} ?readonly=${asked.state !== "open"}
    placeholder="Answer the agent…" .value=${session.draft(draftOf(asked))} @input=${session.keepField(draftOf(asked))} @keydown=${submitOnEnter}></textarea>`;
}
