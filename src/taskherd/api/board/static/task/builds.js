// @ts-check
// The builds of the task's workspace: each start, stop and delete, with its log and that of its agent.
import * as api from "../api.js";
import "../format.js";
import { clock, compare } from "../format.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";
import { repeat } from "../vendor/lit-html/directives/repeat.js";
import { sourceButton } from "./commands.js";

const COLORS = /** @type {Record<string, string>} */ ({
  succeeded: "done", failed: "failed", canceled: "paused", canceling: "paused", pending: "paused", running: "working", unknown: "idle",
});
const WORDS = /** @type {Record<string, string>} */ ({ start: "Start", stop: "Stop", delete: "Delete" });

const PAGE = 20; // builds that are shown at first, and more each time somebody asks for more
const MOST = 100; // builds that the API lists at once
const MAX_LINES = 2_000; // of each log; the newest are kept
const ENDED = new Set(["succeeded", "failed", "canceled"]);

/** @typedef {{time: string, level: string, text: string}} Line */

/** The log of a build, with those of its agents. */
class BuildLog {
  constructor() {
    /** @type {Line[] | null} null until it was read */
    this.lines = null;
    /** @type {Map<string, number>} the last id of each part, by its path */
    this.last = new Map();
    /** @type {string[]} why parts of it could not be read */
    this.problems = [];
    this.reading = false;
  }

  /**
   * Read what is new in it.
   * @param {string[]} paths of its parts
   * @param {AbortSignal} signal
   */
  async read(paths, signal) {
    if (this.reading) return;
    this.reading = true;
    const answers = await Promise.all(paths.map((path) => api.get(`${path}?after=${this.last.get(path) || 0}`, { signal, cached: false })));
    this.reading = false;
    if (signal.aborted) return;
    const entries = answers.flatMap((each) => (each.ok ? each.value : []));
    answers.forEach((each, index) => {
      if (each.ok && each.value.length) this.last.set(paths[index], each.value.at(-1).id);
    });
    this.problems = [...new Set(answers.flatMap((each) => (each.ok ? [] : [api.explain(each)])))];
    const added = entries.map((/** @type {any} */ each) => ({ time: each.created_at, level: each.log_level || each.level, text: each.output }));
    if (answers.some((each) => each.ok)) this.lines = [...(this.lines || []), ...added].sort((one, other) => compare(one.time, other.time)).slice(-MAX_LINES);
  }
}

export class Builds {
  /** @param {{signal: AbortSignal, redraw: () => void, more: () => void}} options `more` is called when `limit` has grown */
  constructor({ signal, redraw, more }) {
    this.signal = signal;
    this.redraw = redraw;
    this.more = more;
    this.limit = PAGE;
    /** @type {any[]} */
    this.builds = [];
    /** @type {Map<string, BuildLog>} of the builds that are unfolded, by their ids */
    this.logs = new Map();
  }

  /**
   * Take the builds as they are now, and read what was added to the logs that are unfolded: their lines are of the task's changes.
   * @param {any[]} builds the newest first
   */
  set(builds) {
    const going = [...this.logs.keys()].filter((id) => this.isGoing(id));
    this.builds = builds;
    for (const id of this.logs.keys()) if (going.includes(id) || this.isGoing(id)) this.read(id);
  }

  /**
   * Whether lines may still be added, or could not be read.
   * @param {string} id
   */
  isGoing(id) {
    const at = this.builds.findIndex((each) => each.id === id);
    return at === 0 || (at > 0 && !ENDED.has(this.builds[at].job.status)) || Boolean(this.logs.get(id)?.problems.length);
  }

  /**
   * @param {string} id
   * @param {boolean} isOpen
   */
  toggle(id, isOpen) {
    if (isOpen === this.logs.has(id)) return;
    if (isOpen) this.logs.set(id, new BuildLog());
    else this.logs.delete(id);
    this.read(id);
    this.redraw();
  }

  /** @param {string} id */
  async read(id) {
    const build = this.builds.find((each) => each.id === id);
    await this.logs.get(id)?.read([logPath(id), ...agentLogs(build)], this.signal);
    if (!this.signal.aborted) this.redraw();
  }

  /** @param {string} task its reference on a command line */
  view(task) {
    return html`<ol class="builds">${repeat(this.builds, (/** @type {any} */ { id }) => id, (/** @type {any} */ build) => html`<li>
      <details ?open=${this.logs.has(build.id)} @toggle=${(/** @type {Event} */ event) => this.toggle(build.id, /** @type {HTMLDetailsElement} */ (event.currentTarget).open)}>
        <summary><span class=${`state ${COLORS[build.job.status] || "idle"}`}><i class="dot"></i>${WORDS[build.transition] || build.transition} ${build.build_number}</span>
          <span class="soft">${build.job.status}</span> <time-ago class="faint tiny" at=${build.created_at} form="clock"></time-ago></summary>
        ${this.log(build, task)}</details></li>`)}</ol>
      ${this.builds.length >= this.limit && this.limit < MOST ? html`<button class="link small" @click=${() => { this.limit += PAGE; this.more(); }}>Earlier ones</button>` : nothing}`;
  }

  /**
   * @param {any} build
   * @param {string} task its reference on a command line
   */
  log(build, task) {
    const { id, transition, build_number: number, job } = build;
    const log = this.logs.get(id);
    if (!log) return nothing;
    const { lines, problems } = log;
    const name = `${WORDS[transition] || transition} ${number}, log`;
    const others = agentLogs(build).map((path) => ({ path, cli: [] }));
    const empty = ENDED.has(job.status) ? "Its log is empty, or was pruned." : "Nothing is in its log yet.";
    return html`${problems.map((each) => html`<p class="problem" role="alert">${each}</p>`)}
      ${lines ? nothing : problems.length ? nothing : html`<p class="soft tiny" role="status">Reading its log…</p>`}
      ${lines && !lines.length && !problems.length ? html`<p class="soft tiny">${empty}</p>` : nothing}
      ${lines?.length ? html`<pre class="build-log" tabindex="0" role="group" aria-label=${name}>${lines.map((each) => html`<span class=${each.level === "error" ? "log-error" : ""}>${clock(each.time)} ${each.text}
</span>`)}</pre>` : nothing}
      <div class="side-head">${sourceButton({ title: name, path: logPath(id), cli: [`task builds ${task} --log ${number}`], others })}</div>`;
  }
}

/** @param {string} id */
function logPath(id) {
  return `/workspacebuilds/${id}/logs`;
}

/**
 * The paths of the logs of its agents.
 * @param {any} build
 * @returns {string[]}
 */
function agentLogs(build) {
  const agents = (build?.resources || []).flatMap((/** @type {any} */ each) => each.agents || []);
  return agents.map((/** @type {any} */ each) => `/workspaceagents/${each.id}/logs`);
}
