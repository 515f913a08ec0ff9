// @ts-check
// The rows of Home: those that need a person, each with what can be done about it, and those of its other lists.
import * as api from "../api.js";
import { count, link } from "../format.js";
import { submitOnEnter } from "../keys.js";
import * as session from "../session.js";
import { badge, canResume, describe, dot, exitSays, firstLine, guarded, prose, title } from "../state.js";
import { isWrittenIn } from "../steady.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";

/** @typedef {{task: any, state: import("../state.js").Shown}} Listed */

const RECENT = 24 * 3_600_000; // milliseconds after which a failure is history
/** Kinds of needs of tasks that ended badly, or that may. */
export const BAD = new Set(["failed", "lost", "stalled"]);

/**
 * Why a task needs a person, and since when: `idle`, `waiting`, or one of `BAD`; null if it needs nobody.
 * @param {any} task
 */
export function needOf(task) {
  const { word, since } = describe(task);
  if (word === "idle" || word === "waiting" || word === "stalled") return { kind: word, since };
  if (!BAD.has(word) || Date.parse(since) <= api.now() - RECENT) return null;
  return { kind: word, since };
}

/**
 * Return whether the totals do not tell that a task needs a person: it ended badly, lately or not, or it waits and is not well.
 * @param {string} kind of its need
 * @param {any} task
 */
export function isUntold(kind, task) {
  return BAD.has(kind) || (kind === "idle" && !task.workspace_agent_health?.healthy);
}

const NUMBERS = /** @type {const} */ ([
  ["working", "working", "status:active state:working health:healthy", (/** @type {any} */ totals) => totals.working],
  ["waiting", "waiting for someone", "waiting:true", (/** @type {any} */ totals) => totals.attention.waiting],
  ["idle", "idle", "status:active state:idle health:healthy waiting:false", (/** @type {any} */ totals) => totals.attention.idle],
  ["paused", "queued", "status:pending", (/** @type {any} */ totals) => totals.by_status.pending],
  ["paused", "paused", "status:paused", (/** @type {any} */ totals) => totals.by_status.paused],
  ["failed", "failed", "failed:true", (/** @type {any} */ totals) => totals.attention.failed],
  ["lost", "lost", "health:lost", (/** @type {any} */ totals) => totals.by_health.lost],
]);

/**
 * The page that the rows are on.
 * @typedef {object} Rows
 * @property {string} scope `mine` or `everyone`
 * @property {Set<string>} open rows with an open text field, by id
 * @property {Set<string>} busy rows that wait for the API
 * @property {(id: string) => void} toggle opens or closes the text field of a row
 * @property {(id: string, method: "POST", path: string, body: any, said: string) => Promise<boolean>} act does something about a row, and returns whether it was done
 */

/**
 * A task whose agent waits, or ended badly.
 * @param {Rows} page
 * @param {{kind: string, task: any, since: string}} row
 * @param {string} became
 */
export function taskRow(page, { kind, task, since }, became) {
  const { id } = task;
  const path = api.taskPath(task);
  const byId = `/tasks/${task.owner_id}/${id}`; // another task may take the name of one that was deleted
  const state = describe(task);
  const target = link(task.current_state?.uri);
  const who = html`${page.scope === "everyone" ? html` · ${task.owner_name}` : nothing} · <bdi>${task.template_display_name || task.template_name}</bdi>${target
    ? html` · <a class="link" href=${target.href} title=${target.href} rel="noopener noreferrer" target="_blank">${target.text}</a>` : nothing}
    · <span class="state ${state.color}">${state.word}</span> <time-ago at=${since}></time-ago>`;
  const resume = html`<button class="button" ?disabled=${page.busy.has(id)}
    @click=${() => page.act(id, "POST", `${byId}/resume`, undefined, "Resumed")}>Resume</button>`;
  const answer = html`<button class="button" aria-expanded=${page.open.has(id)} @click=${() => page.toggle(id)}>Reply…</button>`;
  const send = (/** @type {string} */ text) => page.act(id, "POST", `${byId}/send`, { input: text }, "Sent");
  const waits = kind === "idle" || kind === "waiting";
  const headline = waits ? state.says : `${title(task)} ${HEADLINES[kind]?.(task) || ""}`;
  const about = waits ? html`<a href=${path} dir="auto">${title(task)}</a>`
    : html`<span class="truncate" dir="auto">${quote(task, kind)}</span>`;
  return html`<li class="need ${became ? "over" : ""}" data-id=${id} tabindex="-1">
    <div class="what"><p class="title">${dot(state)}<a href=${path} dir="auto">${prose(headline)}</a></p>
      <p class="sub">${about}${who}</p></div>
    <div class="acts">${became ? html`<span class="soft" role="status">${became}</span>` : html`
      ${waits ? nothing : html`<a class="button quiet" href=${path} aria-label="Why? ${title(task)}">Why?</a>`}
      ${canResume(task) ? resume : task.status === "active" ? answer : nothing}
      ${againLink(task)}`}</div>
    ${page.open.has(id) ? reply(page, id, `Your message to ${title(task)}`, send, became) : nothing}
  </li>`;
}

/**
 * A row that could not be drawn as what it is: it leads to its task.
 * @param {string} id
 * @param {{request?: any, task?: any}} row
 */
export function brokenRow(id, { request, task }) {
  const { owner_name, name, says } = request ? { ...request, name: request.task_name, says: request.title } : { ...task, says: title(task) };
  return html`<li class="need" data-id=${id} tabindex="-1"><div class="what">
    <p class="title"><i class="dot"></i><a href=${api.taskPath({ owner_name, name })} dir="auto">${says}</a></p>
    <p class="sub">This row could not be shown as what it is. The page of its task may say more.</p></div></li>`;
}

/**
 * The link to the form for a task with the same template, prompt and labels.
 * @param {any} task
 */
function againLink(task) {
  return html`<a class="again" href=${api.likePath(task)} title="Start one like it" aria-label="Start one like ${title(task)}">
    <svg viewBox="0 0 16 16" width="14" height="14" aria-hidden="true"><path d="M5.5 5.5h8v8h-8z M10.5 3v-.5h-8v8H3"/></svg></a>`;
}

/**
 * The field of a row. Once the row is over it stays, read-only, with what was written and not sent and for who writes in it: the next
 * letters would be shortcuts.
 * @param {Rows} page
 * @param {string} id
 * @param {string} label
 * @param {(text: string) => Promise<boolean>} send
 * @param {string} became what became of the row
 */
export function reply(page, id, label, send, became) {
  const name = `to/${id}`; // also of the field on the page of the task
  if (became && (page.busy.has(id) || !(session.draft(name) || isWrittenIn(id)))) return nothing;
  const submit = async (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    const text = String(new FormData(/** @type {HTMLFormElement} */ (event.currentTarget)).get("text"));
    if (!became && text.trim() && await send(text)) session.keepDraft(name, "");
  };
  const escape = (/** @type {KeyboardEvent} */ event) => {
    if (event.key === "Escape") page.toggle(id);
    else submitOnEnter(event);
  };
  return html`<form class="reply" @submit=${submit}><textarea name="text" dir="auto" rows="3" required ?readonly=${became !== ""} aria-label=${label} placeholder=${label}
    .value=${session.draft(name)} @input=${session.keepField(name)} @keydown=${escape}></textarea>
    ${became ? nothing : html`<div class="acts"><span class="faint tiny"><kbd>Ctrl</kbd> <kbd>⏎</kbd></span><button class="button go" ?disabled=${page.busy.has(id)}>Send</button></div>`}</form>`;
}

/** @type {Record<string, (task: any) => string>} */
const HEADLINES = {
  failed: (task) => (task.agent_exit ? lower(exitSays({ ...task.agent_exit, words: "" })) : "failed"),
  lost: (task) => `is lost: ${lower(task.agent_exit ? exitSays({ ...task.agent_exit, words: "" }) : "its machine is silent")}`,
  stalled: () => "has stalled: nothing but heartbeats",
};

/** @param {string} text */
function lower(text) {
  return text[0].toLowerCase() + text.slice(1);
}

/**
 * The last words of an agent that ended, or what it said last.
 * @param {any} task
 * @param {string} kind
 */
function quote(task, kind) {
  const words = (kind === "failed" && task.agent_exit?.words.trim().split("\n").pop()) || firstLine(task.current_state?.message);
  return words ? html`“${prose(words)}”` : task.name;
}

/**
 * The numbers of tasks by state, each a link to those that it counts.
 * @param {any} totals
 * @param {(q: string) => string} address of the list of the tasks that match
 */
export function totalsStrip(totals, address) {
  return html`<section aria-label="Totals"><ul class="card totals">${NUMBERS.map(([color, label, q, value]) => {
    const number = value(totals) || 0;
    return html`<li><a href=${address(q)} class=${number ? "" : "none"}><b>${count(number)}</b>
      <span><i class="dot ${color}"></i>${label}</span></a></li>`;
  })}</ul></section>`;
}

/**
 * A list of tasks that need nobody.
 * @param {string} name
 * @param {string} heading
 * @param {Listed[]} rows
 * @param {{address: (q: string) => string, owners: boolean}} page
 * @param {string} q
 */
export function taskList(name, heading, rows, { address, owners }, q, more = "") {
  return html`<section aria-labelledby=${name}>
    <div class="head"><h2 id=${name}>${heading}</h2><a class="link small right" href="${address(q)}${more}">All</a></div>
    <ul class=${owners ? "card lines owners" : "card lines"}>${repeat(rows, (/** @type {Listed} */ each) => each.task.id, (/** @type {Listed} */ each) =>
      guarded(() => line(each, owners), () => brokenRow(each.task.id, each)))}</ul></section>`;
}

/**
 * @param {Listed} row
 * @param {boolean} owners whether it says whose task it is
 */
function line({ task, state }, owners) {
  const target = link(task.current_state?.uri);
  return html`<li>
    <a class="name truncate" dir="auto" href=${api.taskPath(task)} title=${task.name}>${title(task)}</a>
    <span class="says truncate soft" dir="auto">${prose(state.says)}</span>
    <span class="where truncate">${target ? html`<a class="link" href=${target.href} title=${target.href} rel="noopener noreferrer" target="_blank">${target.text}</a>` : html`<span class="faint" dir="auto">${task.template_display_name || task.template_name}</span>`}</span>
    ${owners ? html`<span class="owner truncate faint">${task.owner_name}</span>` : nothing}
    ${badge(state)}${againLink(task)}
  </li>`;
}
