// @ts-check
// What is done to many tasks at once: a durable job of the API, with a question before, its progress, and who could not.
import * as api from "./api.js";
import { ask, showDialog, toast } from "./dialog.js";
import { count, plural } from "./format.js";
import * as session from "./session.js";
import { html, nothing } from "./vendor/lit-html/lit-html.js";

const SHOWN = 5; // names in a question
const TOLD_FOR = 3_600_000; // milliseconds after its end
const DISMISSED_KEY = "taskherd-dismissed-jobs";
const MAX_DISMISSED = 50;
const READ_EVERY = 1_000; // milliseconds between two reads of the progress, while somebody looks
const MOST_BETWEEN = 10_000; // and while it cannot be read

/** @type {Record<string, {label: string, doing: string, done: string, danger?: boolean}>} */
export const ACTIONS = {
  pause: { label: "Pause", doing: "Pausing", done: "Paused" },
  resume: { label: "Resume", doing: "Resuming", done: "Resumed" },
  interrupt: { label: "Interrupt", doing: "Interrupting", done: "Interrupted" },
  send: { label: "Send…", doing: "Sending to", done: "Sent to" },
  delete: { label: "Delete", doing: "Deleting", done: "Deleted", danger: true },
};

/** Whether the API knows the action `interrupt`; asked until it has said so. @type {Promise<boolean> | undefined} */
let interrupts;
const DRAFT = "send"; // of the message to many tasks

/** @param {string} id of any task */
export function canInterrupt(id) {
  interrupts ||= api.send("POST", "/task-actions", { action: "interrupt", ids: [id], dry_run: true }).then((answer) => {
    if (!answer.ok && answer.status !== 400) interrupts = undefined; // which says nothing
    return answer.ok;
  });
  return interrupts;
}

/**
 * Ask whether to do something to many tasks, and have it done. Return the job, or null.
 * @param {string} action
 * @param {{q: string} | {ids: string[]}} target
 * @param {string} whose the target in words, such as `the 3 selected tasks`
 * @param {AbortSignal} signal aborts when the page is left
 */
export async function start(action, target, whose, signal) {
  const person = session.user();
  let input = "", problem = "", key = api.newKey(); // without an answer the same again may find that it has begun
  for (;;) {
    if (action === "send") {
      const content = problem ? html`<p class="problem" role="alert">${problem}</p>` : nothing;
      const text = await ask({ title: `Send to ${whose}`, label: "Message", action: "Go on", draft: DRAFT, content });
      if (text === null) return null;
      if (text !== input) key = api.newKey();
      input = text;
    }
    const body = { action, ...target, ...(input && { input }) };
    const preview = await api.send("POST", "/task-actions", { ...body, dry_run: true }, { signal });
    if (preview.ok && !await confirmed(action, target, input, preview.value)) {
      if (!signal.aborted) session.keepDraft(DRAFT, "");
      return null;
    }
    const confirmedIds = preview.ok && preview.value.ids; // none with a server of an earlier version
    const created = preview.ok ? await api.send("POST", "/task-actions", { ...body, ...(confirmedIds && { ids: confirmedIds }) }, { key }) : preview;
    if (created.ok) {
      session.keepDraft(DRAFT, "");
      return created.value;
    }
    problem = api.explain(created);
    if (signal.aborted) { // who has confirmed it is told that nothing was done, on whatever page
      const isTold = preview.ok && !created.aborted && session.user() === person;
      return isTold ? refused(`${ACTIONS[action].label.replace("…", " to")} ${whose}: ${problem}`) : null;
    }
    if (!input) return refused(problem); // what somebody has written is not lost with the refusal
  }
}

/**
 * Ask whether to do something to the tasks that are there now.
 * @param {string} action
 * @param {{q: string} | {ids: string[]}} target
 * @param {string} input
 * @param {{total: number, missing: number, tasks: any[]}} preview
 */
async function confirmed(action, target, input, { total, missing, tasks }) {
  const { label, danger } = ACTIONS[action];
  const left = total - missing;
  if (!left) return refused("No task matches any more.");
  const name = `${label.replace("…", "")} ${action === "send" ? "to " : ""}${plural(left, "task")}`;
  const more = left - Math.min(SHOWN, tasks.length);
  const content = html`
    ${danger ? html`<p>Their workspaces are deleted with everything in them. This cannot be undone.</p>` : nothing}
    ${"q" in target ? html`<p>All that match <code>${target.q}</code> now:</p>` : nothing}
    <ul class="names">${tasks.slice(0, SHOWN).map((/** @type {any} */ each) => html`<li><b>${each.name}</b> <span class="faint">${each.owner_name} · ${each.status}</span></li>`)}
      ${more > 0 ? html`<li class="soft">and ${count(more)} more</li>` : nothing}</ul>
    ${missing ? html`<p>${plural(missing, "task")} of your selection no longer ${missing === 1 ? "exists" : "exist"}.</p>` : nothing}
    ${action === "send" ? html`<blockquote class="truncate" dir="auto">${input}</blockquote>` : nothing}`;
  const actions = [{ label: "Cancel", value: "" }, { label: name, value: "yes", main: true, danger }];
  return (await showDialog({ title: `${name}?`, content, actions })).value === "yes";
}

/**
 * @param {string} reason
 * @returns {null}
 */
function refused(reason) {
  toast(reason, { bad: true });
  return null;
}

/** @typedef {{tasks: any[], next: number | null}} Refused the tasks that a job could not change, as far as they were read */

/**
 * Follow a job until it is finished. It is read, not streamed: browsers have six connections for all pages.
 * @param {string} id
 * @param {(job: any) => void} changed
 * @param {AbortSignal} signal
 */
export async function follow(id, changed, signal) {
  let wait = READ_EVERY;
  while (!signal.aborted) {
    await new Promise((done) => setTimeout(done, wait));
    await seen();
    const answer = await api.get(`/task-actions/${id}`, { signal, cached: false });
    if (signal.aborted || (!answer.ok && (answer.status === 404 || answer.status === 401))) return;
    wait = answer.ok ? READ_EVERY : Math.min(2 * wait, MOST_BETWEEN);
    if (!answer.ok) continue;
    changed(answer.value);
    if (answer.value.finished_at !== null) return;
  }
}

/** Wait until somebody looks. */
async function seen() {
  if (document.hidden) await new Promise((done) => document.addEventListener("visibilitychange", done, { once: true }));
}

/**
 * Whether a page that opens shows a job: one under way, or one that ended a while ago with tasks that it could not change.
 * @param {any} job
 */
export function isTold(job) {
  if (job.finished_at === null) return true;
  const isRecent = api.now() - Date.parse(job.finished_at) < TOLD_FOR;
  return isRecent && (withError(job) > 0 || job.failure !== null) && !dismissed().includes(job.id);
}

/** How many tasks have an error, or an unknown end. @param {any} job */
export const withError = (job) => job.refused + (job.unconfirmed || 0); // none with a server of an earlier version

/** @param {string} id of a job that somebody has read about */
export function dismiss(id) {
  sessionStorage.setItem(DISMISSED_KEY, JSON.stringify([...dismissed(), id].slice(-MAX_DISMISSED)));
}

/** @returns {string[]} */
function dismissed() {
  return JSON.parse(sessionStorage.getItem(DISMISSED_KEY) || "[]");
}

/**
 * The next tasks that a job could not change, with the reasons; those that are known if they cannot be read.
 * @param {string} id
 * @param {Refused} known
 * @param {AbortSignal} signal
 * @returns {Promise<Refused>}
 */
export async function moreRefused(id, { tasks, next }, signal) {
  const after = next === null ? "" : `&after=${next}`;
  const answer = await api.get(`/task-actions/${id}/results?refused=true&limit=100${after}`, { signal, cached: false });
  return answer.ok ? { tasks: [...tasks, ...answer.value.results], next: answer.value.next } : { tasks, next };
}

/**
 * One job with its progress. It is as high when it has ended as before, so that the rows below it stay where they are.
 * @param {any} job
 * @param {Refused} refused
 * @param {{cancel: () => void, dismiss: () => void, more: () => void}} on
 */
export function panel(job, { tasks, next }, { cancel, dismiss, more }) {
  const { doing, done } = ACTIONS[job.action] || { doing: job.action, done: job.action };
  const over = job.finished_at !== null;
  const headline = over ? `${done} ${plural(job.succeeded, "task")}` : `${doing} ${plural(job.total, "task")}`;
  const rest = [
    !over && `${count(job.succeeded)} done`, job.refused && `${count(job.refused)} could not`, job.unconfirmed && `${count(job.unconfirmed)} not confirmed`,
    over && job.pending && `${count(job.pending)} left as they were`, job.state === "canceling" && "canceling",
  ].filter(Boolean).join(" · ");
  const problems = [
    job.refused && `${plural(job.refused, "task")} could not be changed`,
    job.unconfirmed && `${plural(job.unconfirmed, "task")} may still be changed`,
  ].filter(Boolean).join(" · ");
  return html`<section class="card job" aria-label="Progress of ${doing.toLowerCase()}">
    <div class="job-line"><b role="status">${headline}</b><span class="soft small">${rest}${job.q ? html` · <code>${job.q}</code>` : nothing}</span>
      <span class="right">${over ? html`<button class="button quiet small" @click=${dismiss}>Dismiss</button>`
        : html`<button class="button small" ?disabled=${job.state === "canceling"} @click=${cancel}>Stop</button>`}</span></div>
    ${job.failure ? html`<p class="problem">${job.failure}</p>` : nothing}
    <div class="job-rest">${over ? nothing : html`<progress max=${job.total} value=${job.succeeded + job.refused} aria-label=${headline}></progress>`}
    ${over && withError(job) ? html`<details><summary>${problems}</summary><ul class="refused">
      ${tasks.map((each) => html`<li>${each.name ? html`<a class="link" href=${api.taskPath(each)}>${each.name}</a>` : html`<code>${each.task_id}</code>`}
        <span class="soft">${each.error?.message || `status ${each.status}`} ${each.error?.detail || ""}</span></li>`)}</ul>
      ${next !== null || !tasks.length ? html`<button class="link small" @click=${more}>Show more: ${count(withError(job) - tasks.length)} are not shown</button>` : nothing}</details>` : nothing}</div>
  </section>`;
}
