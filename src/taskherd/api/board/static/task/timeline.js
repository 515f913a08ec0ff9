// @ts-check
// What happened to the task, the newest first: what changed, why, and who did it.
import "../format.js";
import { guarded, prose } from "../state.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";

const SHOWN = 40; // at first
export const MAX_KEPT = 500;

/** What is not worth a line of its own: it follows from what is said beside it. */
const SILENT = new Set(["id", "workspace_id", "workspace_agent_id", "workspace_app_id", "workspace_name", "created_at"]);
const NAMES = new Map(Object.entries({
  status: "Status", workspace_status: "Workspace", workspace_agent_lifecycle: "Agent", workspace_agent_health: "Health", initial_prompt: "Prompt",
  stalled_since: "Stalled", workspace_build_number: "Start", agent_exit: "End",
}));

/** What a report says, by the type of the report and what it changed, in words that need no glossary. @type {Record<string, [string, Record<string, string>]>} */
const SAID = {
  "workspace.build": ["workspace_status", {
    pending: "its workspace waits for a runner", starting: "its workspace is being prepared", running: "its workspace runs",
    stopping: "its workspace is being stopped", stopped: "its workspace was stopped", failed: "its workspace could not be built",
    canceling: "its build is being canceled", canceled: "its build was canceled",
    deleting: "its workspace is being deleted", deleted: "its workspace was deleted",
  }],
  "agent.lifecycle": ["workspace_agent_lifecycle", {
    created: "the agent is about to start", starting: "the agent starts up", start_timeout: "the agent takes long to start up",
    start_error: "the agent could not start up", ready: "the agent is ready", shutting_down: "the agent shuts down",
    shutdown_timeout: "the agent takes long to shut down", shutdown_error: "the agent could not shut down", off: "the agent is off",
  }],
  "app.health": ["status", { initializing: "the agent does not take messages yet", active: "the agent takes messages", error: "the agent does not take messages any more" }],
};

/** What became of an input. */
const DELIVERY = new Map(Object.entries({
  queued: "Waits until the agent is ready", sent: "On its way to the agent", delivered: "The agent has it", failed: "The agent did not get it",
}));

export class Timeline {
  constructor() {
    /** @type {Map<string, any>} events and actions by their keys */
    this.items = new Map();
    this.position = 0;
    this.all = false;
  }

  /** @param {{events: any[], actions: any[]}} answer */
  add({ events, actions }) {
    for (const event of events) {
      this.items.set(`e${event.position}`, event);
      this.position = Math.max(this.position, event.position);
    }
    for (const action of actions) this.items.set(`a${action.id}`, action);
    const excess = this.items.size - MAX_KEPT;
    if (excess > 0) for (const [key] of this.newestFirst().slice(-excess)) this.items.delete(key);
  }

  newestFirst() { // times are in one format, so their texts are in order
    return [...this.items].sort(([, one], [, other]) => (one.time < other.time ? 1 : one.time > other.time ? -1 : (other.position || 0) - (one.position || 0)));
  }

  /** @param {() => void} redraw */
  view(redraw) {
    const items = this.newestFirst().map(([, item]) => item);
    const shown = this.all ? items : items.slice(0, SHOWN);
    return html`<ol class="timeline">${shown.map((item) => html`<li>${guarded(() => (item.cause ? change(item) : action(item)), () => "This entry could not be shown.")}</li>`)}</ol>
      ${shown.length < items.length ? html`<button class="link small" @click=${() => { this.all = true; redraw(); }}>Show all ${items.length}</button>` : nothing}`;
  }
}

/**
 * @param {string} words
 * @param {string} time
 * @param {string} [type] of the command, the report or the finding, for who looks closer
 * @param {string} [by] who said so, if not the words
 * @param {string} [actor] the username with which the words may begin
 */
function heading(words, time, type = "", by = "", actor = "") {
  const said = actor && words.startsWith(actor) ? words : sentence(words); // a username stays as it is written
  return html`<p><b title=${type || nothing}><bdi>${prose(said)}</bdi></b> <span class="faint tiny"><time-ago at=${time} form="clock"></time-ago>${by}</span></p>`;
}

/** @param {any} item an input that somebody sent */
function action({ words, time, input, state, detail, actor_name: actor }) {
  return html`${heading(words, time, "", "", actor || "")}<p class="quote" dir="auto">${input}</p><p class="faint tiny"><span title=${state}>${DELIVERY.get(state) || state}</span>${detail ? `: ${detail}` : nothing}</p>`;
}

/** @param {any} item a change of the document */
function change({ time, cause, changes: changed }) {
  const said = cause.type === "app.status" && changed.current_state?.to;
  if (!said) return plainly(cause, time, changed);
  const { current_state: _, ...others } = changed;
  return html`${heading(said.state, time, cause.type, " · agent")}${said.message ? html`<p class="soft" dir="auto">“${said.message}”</p>` : nothing}${changes(others)}`;
}

/**
 * What happened; what the heading says is not said again below it.
 * @param {{type: string, words: string, actor_name?: string | null}} cause
 * @param {string} time
 * @param {Record<string, {from: any, to: any}>} changed
 */
function plainly(cause, time, changed) {
  const [name, words] = (Object.hasOwn(SAID, cause.type) && SAID[cause.type]) || [];
  const to = name && changed[name]?.to;
  const said = words && Object.hasOwn(words, to) && words[to];
  if (!name || !said) return html`${heading(cause.words, time, cause.type, "", cause.actor_name || "")}${changes(changed)}`;
  const { [name]: _, ...others } = changed;
  return html`${heading(said, time, cause.type)}${changes(others)}`;
}

/** @param {Record<string, {from: any, to: any}>} changed */
function changes(changed) {
  const lines = Object.entries(changed).filter(([name]) => !SILENT.has(name)).map(([name, { from, to }]) => line(name, from, to)).filter(Boolean);
  return lines.length ? html`<p class="soft">${lines.map((each, index) => html`${index ? " · " : nothing}${each}`)}</p>` : nothing;
}

/**
 * @param {string} name
 * @param {any} from
 * @param {any} to
 */
function line(name, from, to) {
  if (name === "current_state") {
    if (!to || (from?.state === to.state && from.message === to.message)) return null;
    return to.message ? html`${to.state}: “<bdi>${to.message}</bdi>”` : to.state;
  }
  if (name === "initial_prompt") return from === null || from === undefined ? null : "The prompt was changed";
  const label = NAMES.get(name);
  if (!label) return null;
  if (name === "workspace_build_number") return from ? `Start ${from} → ${to}` : null;
  if (name === "agent_exit" || name === "stalled_since") return null; // the cause says it in words
  return to === null || to === undefined ? null : `${label}: ${value(to)}`;
}

/** @param {any} it */
function value(it) {
  if (typeof it !== "object") return String(it).replaceAll("_", " ");
  if ("healthy" in it) return it.healthy ? "healthy" : it.reason;
  return JSON.stringify(it);
}

/** @param {string} text */
function sentence(text) {
  return text && text[0].toUpperCase() + text.slice(1);
}
