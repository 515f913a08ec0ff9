// @ts-check
// What happened to the task, the newest first: what changed, why, and who did it.
import "../format.js";
import { prose } from "../state.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";

const SHOWN = 40; // at first
export const MAX_KEPT = 500;

/** What is not worth a line of its own: it follows from what is said beside it. */
const SILENT = new Set(["id", "workspace_id", "workspace_agent_id", "workspace_app_id", "workspace_name", "created_at"]);
const NAMES = /** @type {Record<string, string>} */ ({
  status: "Status", workspace_status: "Workspace", workspace_agent_lifecycle: "Agent", workspace_agent_health: "Health", initial_prompt: "Prompt",
  stalled_since: "Stalled", workspace_build_number: "Start", agent_exit: "End",
});

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
    return html`<ol class="timeline">${shown.map((item) => html`<li>${item.cause ? change(item) : action(item)}</li>`)}</ol>
      ${shown.length < items.length ? html`<button class="link small" @click=${() => { this.all = true; redraw(); }}>Show all ${items.length}</button>` : nothing}`;
  }
}

/**
 * @param {string} words
 * @param {string} time
 * @param {string} [by] who said so, if not the words
 */
function heading(words, time, by = "") {
  return html`<p><b><bdi>${prose(sentence(words))}</bdi></b> <span class="faint tiny"><time-ago at=${time} form="clock"></time-ago>${by}</span></p>`;
}

/** @param {any} item an input that somebody sent */
function action({ words, time, input, state, detail }) {
  return html`${heading(words, time)}<p class="quote">${input}</p><p class="faint tiny">${state}${detail ? `: ${detail}` : nothing}</p>`;
}

/** @param {any} item a change of the document */
function change({ time, cause, changes: changed }) {
  const said = cause.type === "app.status" && changed.current_state?.to;
  if (!said) return html`${heading(cause.words, time)}${changes(changed)}`;
  const { current_state: _, ...others } = changed;
  return html`${heading(said.state, time, " · agent")}${said.message ? html`<p class="soft">“${said.message}”</p>` : nothing}${changes(others)}`;
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
    return to.message ? html`${to.state}: “${to.message}”` : to.state;
  }
  if (name === "initial_prompt") return from === null || from === undefined ? null : "The prompt was changed";
  const label = NAMES[name];
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
