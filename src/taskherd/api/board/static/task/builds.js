// @ts-check
// The builds of the task's workspace: each start, stop and delete, with its log and that of its agent.
import * as api from "../api.js";
import "../format.js";
import { clock } from "../format.js";
import { html, nothing } from "../vendor/lit-html/lit-html.js";

const COLORS = /** @type {Record<string, string>} */ ({
  succeeded: "done", failed: "failed", canceled: "paused", canceling: "paused", pending: "paused", running: "working", unknown: "idle",
});
const WORDS = /** @type {Record<string, string>} */ ({ start: "Start", stop: "Stop", delete: "Delete" });

export class Builds {
  /** @param {() => void} redraw */
  constructor(redraw) {
    this.redraw = redraw;
    /** @type {any[]} */
    this.builds = [];
    /** @type {Map<string, {time: string, level: string, text: string}[] | string>} by the build's id; a text is a problem */
    this.logs = new Map();
  }

  /** @param {string} id of the build whose log is opened */
  async open(id) {
    const build = this.builds.find((each) => each.id === id);
    if (!build) return;
    const agents = build.resources.flatMap((/** @type {any} */ each) => each.agents || []);
    const [own, ...others] = await Promise.all([`/workspacebuilds/${id}/logs`, ...agents.map((/** @type {any} */ each) => `/workspaceagents/${each.id}/logs`)]
      .map((path) => api.get(path, { cached: false })));
    if (!own.ok) this.logs.set(id, api.explain(own));
    else {
      const lines = [...own.value, ...others.flatMap((each) => (each.ok ? each.value : []))];
      this.logs.set(id, lines.map((each) => ({ time: each.created_at, level: each.log_level || each.level, text: each.output }))
        .sort((one, other) => (one.time < other.time ? -1 : Number(one.time > other.time))));
    }
    this.redraw();
  }

  view() {
    return html`<ol class="builds">${this.builds.map((build) => html`<li>
      <details @toggle=${(/** @type {Event} */ event) => /** @type {HTMLDetailsElement} */ (event.currentTarget).open && this.open(build.id)}>
        <summary><span class=${`state ${COLORS[build.job.status] || "idle"}`}><i class="dot"></i>${WORDS[build.transition] || build.transition} ${build.build_number}</span>
          <span class="soft">${build.job.status}</span> <time-ago class="faint tiny" at=${build.created_at} form="clock"></time-ago></summary>
        ${this.log(build.id)}</details></li>`)}</ol>`;
  }

  /** @param {string} id */
  log(id) {
    const lines = this.logs.get(id);
    if (!lines) return nothing;
    if (typeof lines === "string") return html`<p class="problem">${lines}</p>`;
    if (!lines.length) return html`<p class="soft tiny">Its log is empty, or was pruned.</p>`;
    return html`<pre class="build-log">${lines.map((each) => html`<span class=${each.level === "error" ? "log-error" : ""}>${clock(each.time)} ${each.text}
</span>`)}</pre>`;
  }
}
