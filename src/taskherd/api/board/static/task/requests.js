// @ts-check
// What the agent asks, with the answer one click or key away: options as buttons, a field for free text.
import * as api from "../api.js";
import { submitOnEnter, toast } from "../dialog.js";
import "../format.js";
import { prose } from "../state.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";

/**
 * @typedef {{id: string, kind: "approval" | "question", title: string, detail?: string, tool?: any, since?: string,
 *   options?: {id: string, label: string, kind: string}[], state?: string, expires_at?: string | null}} AgentRequest
 */

const REJECTS = new Set(["reject_once", "reject_always"]);

/**
 * The open requests of a task, as cards.
 * @param {AgentRequest[]} requests
 * @param {string} path of the task
 * @param {() => void} answered called after each answer
 */
export function requestCards(requests, path, answered) {
  return requests.map((each) => html`<section class="agent-asks" aria-label=${each.kind === "approval" ? "Approval" : "Question"}>
    <h2 class="ask-title"><i class="dot waiting live"></i><span>${prose(each.title)}</span></h2>
    ${each.detail ? html`<p class="ask-detail">${each.detail}</p>` : nothing}
    ${each.tool?.input ? html`<pre tabindex="0" role="group" aria-label="What it is about">${inputText(each.tool.input)}</pre>` : nothing}
    ${answerForm(each, path, answered)}
    <p class="tiny soft">Your answer goes to the agent at once.${each.since ? html` Asked <time-ago at=${each.since}></time-ago>.` : nothing}${
      each.expires_at ? html` It expires <time-ago at=${each.expires_at}></time-ago>.` : nothing}</p></section>`);
}

/**
 * A command as people write it, anything else as JSON.
 * @param {any} input
 */
function inputText(input) {
  const { command, ...others } = typeof input === "object" && input ? input : { command: undefined };
  const line = Array.isArray(command) ? command.join(" ") : command;
  return typeof line === "string" && !Object.keys(others).length ? `$ ${line}` : JSON.stringify(input, null, 2);
}

/**
 * @param {AgentRequest} asked
 * @param {string} path
 * @param {() => void} answered
 */
function answerForm(asked, path, answered) {
  const options = asked.options || [];
  const main = options.find((each) => !REJECTS.has(each.kind))?.id;
  const submit = async (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    const form = /** @type {HTMLFormElement} */ (event.currentTarget);
    const option = /** @type {HTMLButtonElement | null} */ (event.submitter)?.value;
    const text = String(new FormData(form).get("text") || "").trim();
    if (!options.length && !text) return;
    const buttons = form.querySelectorAll("button");
    buttons.forEach((each) => (each.disabled = true));
    const body = { ...(options.length ? { option_id: option } : {}), ...(text ? { text } : {}) };
    const sent = await api.send("POST", `${path}/requests/${asked.id}/answer`, body);
    buttons.forEach((each) => (each.disabled = false));
    if (sent.ok) toast("Answered.");
    else if (!sent.aborted) toast(api.explain(sent), { bad: true });
    answered();
  };
  return html`<form class="answer" @submit=${submit}>
    ${options.length ? html`
      <div class="answer-options">${[...options].sort((one, other) => Number(REJECTS.has(other.kind)) - Number(REJECTS.has(one.kind))).map((each) => html`
        <button class=${each.id === main ? "button go" : "button"} value=${each.id}>${each.label}</button>`)}</div>
      <details class="with-words"><summary>Say something with it</summary>${textField(asked, false)}</details>`
    : html`${textField(asked, true)}<div class="answer-options"><button class="button go">Answer</button></div>`}
  </form>`;
}

/**
 * @param {AgentRequest} asked
 * @param {boolean} required
 */
function textField(asked, required) {
  return html`<textarea name="text" rows="2" aria-label=${`Answer to: ${asked.title}`} ?required=${required}
    placeholder="Answer the agent…" @keydown=${submitOnEnter}></textarea>`;
}
